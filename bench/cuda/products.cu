// Products on the GPU: gptq::cuda::gemm, of float16 and of int8 activations, beside the time of merely
// reading the weights and beside cuBLAS in float16, in one run. Weights are rotated through more than 512 MB,
// so that none comes from the cache; launches are in a graph, kernels may start while the one before ends;
// medians. int8 has the preparation of the activations in it.
//
//   bench_cuda_products [--model name]... [--shape out x in]... [--tokens n]... [--all-columns] [--json file]
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
#include <gptq/cuda/prepare.cuh>

#include "../shapes.hpp"
#include "matrices.cuh"

namespace cuda = gptq::cuda;
using bench::allocate;
using bench::check;
using gptq::index_t;
using symmetric = gptq::format<gptq::symmetric, 4, 128>;
using asymmetric = gptq::format<gptq::asymmetric, 4, 128>;

namespace {

/// sums[0] += the squares of a - b, sums[1] += those of b.
__global__ void compare(__half const* a, __half const* b, std::size_t count, double* sums) {
  double error = 0.0, size = 0.0;
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    float const x = __half2float(a[i]), y = __half2float(b[i]);
    error += (x - y) * (x - y), size += y * y;
  }
  atomicAdd(sums, error), atomicAdd(sums + 1, size);
}

struct machine {
  cudaStream_t stream;
  cublasHandle_t blas;
  cuda::device gpu;
  char* weights;  ///< rotated bytes, or a little more
  std::size_t capacity;
  __half *x, *y, *expected, *decoded;
  char *workspace, *prepared;
  std::size_t workspace_bytes = std::size_t{1} << 30;
  unsigned* sink;
  double* sums;

  /// |y - expected| / |expected|
  double relative_error(std::size_t count) const {
    check(cudaMemsetAsync(sums, 0, 2 * sizeof(double), stream), "zeroing");
    compare<<<264, 256, 0, stream>>>(y, expected, count, sums);
    double host[2];
    check(cudaMemcpyAsync(host, sums, sizeof(host), cudaMemcpyDeviceToHost, stream), "copying");
    check(cudaStreamSynchronize(stream), "the product");
    return std::sqrt(host[0] / host[1]);
  }
};

struct row {
  index_t out, in, tokens;
  double reading, ours, with_zeros, int8, blas;
};

/// Microseconds of our product with W rotated, checked against cuBLAS on the decoded weights first.
template <class Format>
double ours(machine const& m, index_t out, index_t in, index_t tokens, bool int8 = false) {
  bench::matrices<Format> const w(m.stream, m.weights, out, in);
  cuda::product_options options{m.stream, m.workspace, m.workspace_bytes, m.blas, true};
  auto const multiply = [&](int i) {
    if (!int8) return cuda::gemm(w[i], m.x, tokens, m.y, options);
    cuda::int8_activations const x = cuda::prepare(w[i], m.x, tokens, m.prepared, options);
    cuda::gemm(w[i], x, m.y, options);
  };
  float const one = 1.0F, zero = 0.0F;
  cuda::dequantize(w[0], m.decoded, m.stream);
  check(cublasGemmEx(m.blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(out), static_cast<int>(tokens),
                     static_cast<int>(in), &one, m.decoded, CUDA_R_16F, static_cast<int>(in), m.x, CUDA_R_16F,
                     static_cast<int>(in), &zero, m.expected, CUDA_R_16F, static_cast<int>(out),
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "the expected product");
  std::size_t const count = static_cast<std::size_t>(out * tokens);
  check(cudaMemsetAsync(m.y, 0xff, count * 2, m.stream), "poisoning");
  multiply(0);
  double const error = m.relative_error(count), tolerance = int8 ? 1e-2 : 2e-3;
  if (!(error <= tolerance)) {
    std::fprintf(stderr, "%td x %td, %td tokens%s: relative error %g\n", out, in, tokens,
                 int8 ? ", int8" : "", error);
    std::exit(1);
  }
  int const launches = tokens > 128 ? std::max(w.count(), 4) : std::max(w.count(), 24);
  return bench::microseconds(m.stream, launches, multiply, tokens > 128 ? 9 : 21);
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

bench::shape parse_shape(std::string const& text) {
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
  std::vector<bench::shape> shapes;
  std::vector<index_t> counts;
  bool all_columns = false;
  for (int i = 1; i < argc; ++i) {
    if (i + 1 < argc && std::strcmp(argv[i], "--json") == 0) {
      json = argv[++i];
    } else if (i + 1 < argc && std::strcmp(argv[i], "--model") == 0) {
      auto const of_model = bench::required_shapes(argv[++i]);
      shapes.insert(shapes.end(), of_model.begin(), of_model.end());
    } else if (i + 1 < argc && std::strcmp(argv[i], "--shape") == 0) {
      shapes.push_back(parse_shape(argv[++i]));
    } else if (i + 1 < argc && std::strcmp(argv[i], "--tokens") == 0) {
      counts.push_back(parse_tokens(argv[++i]));
    } else if (std::strcmp(argv[i], "--all-columns") == 0) {
      all_columns = true;
    } else {
      std::fprintf(
          stderr,
          "usage: %s [--model name]... [--shape out x in]... [--tokens n]... [--all-columns] [--json file]\n",
          argv[0]);
      return 2;
    }
  }
  if (shapes.empty()) {
    for (auto const& known : bench::all_models())
      shapes.insert(shapes.end(), known.shapes.begin(), known.shapes.end());
  }
  if (counts.empty()) counts = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
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
  m.prepared = allocate<char>(cuda::activation_bytes(widest, most_tokens));
  std::size_t const numbers = static_cast<std::size_t>(most_tokens * widest);
  m.x = allocate<__half>(numbers), m.y = allocate<__half>(numbers), m.expected = allocate<__half>(numbers);
  m.decoded = allocate<__half>(largest / 2);
  m.sink = allocate<unsigned>(1);
  m.sums = allocate<double>(2);
  bench::fill_activations(m.stream, m.x, numbers);

  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, m.gpu.id), "the device's name");
  std::printf("%s; 4 bits, groups of 128, float16; microseconds\n\n", properties.name);
  std::printf("|    out x in    | tokens |   ours | cuBLAS | cuBLAS / ours |   int8 | cuBLAS / int8 |%s\n",
              all_columns ? " reading | ours / reading | with zeros / without |" : "");
  std::printf("|----------------|--------|--------|--------|---------------|--------|---------------|%s\n",
              all_columns ? "---------|----------------|----------------------|" : "");
  std::vector<row> rows;
  for (auto const& [out, in] : shapes) {
    double const floor = all_columns ? reading(m, out, in) : 0.0;
    for (index_t const tokens : counts) {
      row r{out, in, tokens, floor, ours<symmetric>(m, out, in, tokens), 0.0, 0.0, blas(m, out, in, tokens)};
      std::printf("| %6td x %5td | %6td | %6.1f | %6.1f | %13.2f |", out, in, tokens, r.ours, r.blas,
                  r.blas / r.ours);
      if (tokens > 16) {
        r.int8 = ours<symmetric>(m, out, in, tokens, true);
        std::printf(" %6.1f | %13.2f |", r.int8, r.blas / r.int8);
      } else {
        std::printf("        |               |");
      }
      if (all_columns) {
        r.with_zeros = ours<asymmetric>(m, out, in, tokens);
        std::printf(" %7.2f | %14.2f | %20.3f |", r.reading, r.ours / r.reading, r.with_zeros / r.ours);
      }
      std::printf("\n");
      std::fflush(stdout);
      rows.push_back(r);
    }
  }
  std::printf("\ncuBLAS / the better of ours and int8 (*)\n\n|    out x in    |");
  for (index_t const tokens : counts) std::printf(" %6td |", tokens);
  std::printf("\n|----------------|");
  for (std::size_t i = 0; i < counts.size(); ++i) std::printf("--------|");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    row const& r = rows[i];
    if (i % counts.size() == 0) std::printf("\n| %6td x %5td |", r.out, r.in);
    bool const by_int8 = r.int8 > 0.0 && r.int8 < r.ours;
    std::printf(" %5.2f%c |", r.blas / (by_int8 ? r.int8 : r.ours), by_int8 ? '*' : ' ');
  }
  std::printf("\n");
  if (!json.empty()) {
    std::ofstream file(json);
    file << "{\"device\": \"" << properties.name << "\", \"unit\": \"us\", \"results\": [";
    for (std::size_t i = 0; i < rows.size(); ++i) {
      row const& r = rows[i];
      file << (i == 0 ? "\n" : ",\n") << "  {\"out\": " << r.out << ", \"in\": " << r.in
           << ", \"tokens\": " << r.tokens << ", \"ours\": " << r.ours << ", \"cublas\": " << r.blas;
      if (r.int8 > 0.0) file << ", \"int8\": " << r.int8;
      if (all_columns) file << ", \"reading\": " << r.reading << ", \"with_zeros\": " << r.with_zeros;
      file << "}";
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
