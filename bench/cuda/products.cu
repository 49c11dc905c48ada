// Products on the GPU: gptq::cuda::gemm beside the time of merely reading the weights and beside cuBLAS in
// float16, in one run. Weights are rotated through more than 512 MB, so that none comes from the cache;
// launches are in a graph, kernels may start while the one before ends; medians.
//
//   bench_cuda_products [--json file] [--shape out x in]... [--tokens n]...
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gptq/cuda/dequantize.cuh>
#include <gptq/cuda/gemm.cuh>

#include "matrices.cuh"

namespace cuda = gptq::cuda;
using bench::allocate;
using bench::check;
using gptq::index_t;
using symmetric = gptq::format<gptq::symmetric, 4, 128>;
using asymmetric = gptq::format<gptq::asymmetric, 4, 128>;

namespace {

struct machine {
  cudaStream_t stream;
  cublasHandle_t blas;
  cuda::device gpu;
  char* weights;  ///< rotated bytes, or a little more
  std::size_t capacity;
  __half *x, *y, *expected, *decoded;
  char* workspace;
  std::size_t workspace_bytes = std::size_t{1} << 30;
  unsigned* sink;
};

struct row {
  index_t out, in, tokens;
  double reading, ours, with_zeros, blas;
};

/// Microseconds of our product with W rotated, checked against cuBLAS on the decoded weights first.
template <class Format>
double ours(machine const& m, index_t out, index_t in, index_t tokens) {
  bench::matrices<Format> const w(m.stream, m.weights, out, in);
  cuda::product_options const options{m.stream, m.workspace, m.workspace_bytes, m.blas, true};

  float const one = 1.0F, zero = 0.0F;
  cuda::dequantize(w[0], m.decoded, m.stream);
  check(cublasGemmEx(m.blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(out), static_cast<int>(tokens),
                     static_cast<int>(in), &one, m.decoded, CUDA_R_16F, static_cast<int>(in), m.x, CUDA_R_16F,
                     static_cast<int>(in), &zero, m.expected, CUDA_R_16F, static_cast<int>(out),
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "the expected product");
  std::size_t const count = static_cast<std::size_t>(out * tokens);
  check(cudaMemsetAsync(m.y, 0xff, count * 2, m.stream), "poisoning");
  cuda::gemm(w[0], m.x, tokens, m.y, options);
  std::vector<__half> y(count), expected(count);
  check(cudaStreamSynchronize(m.stream), "the product");
  check(cudaMemcpy(y.data(), m.y, count * 2, cudaMemcpyDeviceToHost), "copying");
  check(cudaMemcpy(expected.data(), m.expected, count * 2, cudaMemcpyDeviceToHost), "copying");
  double error = 0.0, size = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    double const a = __half2float(y[i]), b = __half2float(expected[i]);
    error += (a - b) * (a - b), size += b * b;
  }
  if (!(std::sqrt(error) <= 2e-3 * std::sqrt(size))) {
    std::fprintf(stderr, "%td x %td, %td tokens: relative error %g\n", out, in, tokens,
                 std::sqrt(error / size));
    std::exit(1);
  }
  int const launches = tokens > 128 ? std::max(w.count(), 4) : std::max(w.count(), 24);
  return bench::microseconds(
      m.stream, launches, [&](int i) { cuda::gemm(w[i], m.x, tokens, m.y, options); }, tokens > 128 ? 9 : 21);
}

double blas(machine const& m, index_t out, index_t in, index_t tokens) {
  std::size_t const bytes = static_cast<std::size_t>(out * in) * 2;
  int const copies = std::max(bench::copy_count(bytes), 2);
  bench::fill<<<1024, 256, 0, m.stream>>>(reinterpret_cast<std::uint64_t*>(m.weights), copies * bytes / 8,
                                          0x83ff83ff83ff83ffull, 0x2000200020002000ull);
  float const one = 1.0F, zero = 0.0F;
  int const launches = tokens > 128 ? std::max(copies, 4) : std::max(copies, 12);
  return bench::microseconds(
      m.stream, launches,
      [&](int i) {
        check(cublasGemmEx(m.blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(out), static_cast<int>(tokens),
                           static_cast<int>(in), &one, m.weights + i % copies * bytes, CUDA_R_16F,
                           static_cast<int>(in), m.x, CUDA_R_16F, static_cast<int>(in), &zero, m.y,
                           CUDA_R_16F, static_cast<int>(out), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
              "cuBLAS");
      },
      tokens > 128 ? 9 : 21);
}

double reading(machine const& m, index_t out, index_t in) {
  std::size_t const bytes = static_cast<std::size_t>(cuda::prepacked_layout<symmetric>{out, in}.bytes(false));
  int const copies = bench::copy_count(bytes);
  return bench::reading(
      m.stream, m.gpu.multiprocessors, bytes, std::max(copies, 24),
      [&](int i) { return m.weights + i % copies * bytes; }, m.sink);
}

std::pair<index_t, index_t> parse_shape(std::string const& text) {
  std::istringstream in(text);
  index_t a = 0, b = 0;
  char x = 0;
  if (!(in >> a >> x >> b) || x != 'x' || !in.eof() || a < 1 || b < 8 || b % 8 != 0) {
    std::fprintf(stderr, "a shape is out x in, as in 4096x4096, and `in` a multiple of 8; not %s\n",
                 text.c_str());
    std::exit(2);
  }
  return {a, b};
}

index_t parse_tokens(std::string const& text) {
  std::istringstream in(text);
  index_t n = 0;
  if (!(in >> n) || !in.eof() || n < 1 || n > 16384) {
    std::fprintf(stderr, "tokens are 1 to 16384; not %s\n", text.c_str());
    std::exit(2);
  }
  return n;
}

}  // namespace

int main(int argc, char** argv) try {
  std::string json;
  std::vector<std::pair<index_t, index_t>> shapes;
  std::vector<index_t> counts;
  for (int i = 1; i < argc; ++i) {
    if (i + 1 < argc && std::strcmp(argv[i], "--json") == 0) {
      json = argv[++i];
    } else if (i + 1 < argc && std::strcmp(argv[i], "--shape") == 0) {
      shapes.push_back(parse_shape(argv[++i]));
    } else if (i + 1 < argc && std::strcmp(argv[i], "--tokens") == 0) {
      counts.push_back(parse_tokens(argv[++i]));
    } else {
      std::fprintf(stderr, "usage: %s [--json file] [--shape out x in]... [--tokens n]...\n", argv[0]);
      return 2;
    }
  }
  if (shapes.empty()) shapes = {{4096, 4096}, {11008, 4096}, {4096, 11008}, {8192, 28672}, {28672, 8192}};
  if (counts.empty()) counts = {1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096};
  index_t const most_tokens = *std::max_element(counts.begin(), counts.end());
  std::size_t largest = 0;
  index_t widest = 0;
  for (auto const& [out, in] : shapes) {
    largest = std::max(largest, static_cast<std::size_t>(out * in) * 2);
    widest = std::max(widest, std::max(out, in));
  }
  machine m{};
  m.gpu = cuda::device::current();
  check(cudaStreamCreateWithFlags(&m.stream, cudaStreamNonBlocking), "a stream");
  check(cublasCreate(&m.blas), "cuBLAS");
  check(cublasSetStream(m.blas, m.stream), "cuBLAS");
  m.capacity = bench::rotated + 2 * largest;
  m.weights = allocate<char>(m.capacity);
  m.workspace = allocate<char>(m.workspace_bytes);
  std::size_t const numbers = static_cast<std::size_t>(most_tokens * widest);
  m.x = allocate<__half>(numbers), m.y = allocate<__half>(numbers), m.expected = allocate<__half>(numbers);
  m.decoded = allocate<__half>(largest / 2);
  m.sink = allocate<unsigned>(1);
  bench::fill_activations(m.stream, m.x, numbers);

  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, m.gpu.id), "the device's name");
  std::printf("%s; 4 bits, groups of 128, float16; microseconds\n\n", properties.name);
  std::printf(
      "|    out x in    | tokens | reading |   ours | ours / reading | with zeros / without | cuBLAS | "
      "cuBLAS / ours |\n");
  std::printf(
      "|----------------|--------|---------|--------|----------------|----------------------|--------|-------"
      "--------|\n");
  std::vector<row> rows;
  for (auto const& [out, in] : shapes) {
    double const floor = reading(m, out, in);
    for (index_t const tokens : counts) {
      row const r{out,
                  in,
                  tokens,
                  floor,
                  ours<symmetric>(m, out, in, tokens),
                  ours<asymmetric>(m, out, in, tokens),
                  blas(m, out, in, tokens)};
      std::printf("| %6td x %5td | %6td | %7.2f | %6.2f | %14.2f | %20.3f | %6.1f | %13.2f |\n", out, in,
                  tokens, r.reading, r.ours, r.ours / r.reading, r.with_zeros / r.ours, r.blas,
                  r.blas / r.ours);
      std::fflush(stdout);
      rows.push_back(r);
    }
  }
  if (!json.empty()) {
    std::ofstream file(json);
    file << "{\"device\": \"" << properties.name << "\", \"unit\": \"us\", \"results\": [";
    for (std::size_t i = 0; i < rows.size(); ++i) {
      row const& r = rows[i];
      file << (i == 0 ? "\n" : ",\n") << "  {\"out\": " << r.out << ", \"in\": " << r.in
           << ", \"tokens\": " << r.tokens << ", \"reading\": " << r.reading << ", \"ours\": " << r.ours
           << ", \"with_zeros\": " << r.with_zeros << ", \"cublas\": " << r.blas << "}";
    }
    file << "\n]}\n";
    if (!file.flush()) {
      std::fprintf(stderr, "cannot write %s\n", json.c_str());
      return 1;
    }
  }
} catch (std::exception const& error) {
  std::fprintf(stderr, "bench_cuda_products: %s\n", error.what());
  return 1;
}
