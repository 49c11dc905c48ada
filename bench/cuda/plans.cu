// Every way that gemv on compute capability 9.0 and newer could share out a matrix, beside the one that it
// takes and the kernel of older devices: what the rule in gptq/cuda/kernels/gemv_sm90.cuh comes from, and how
// to see whether it suits another device. Measured as in bench_cuda_products, symmetric and asymmetric.
//
//   bench_cuda_plans
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <gptq/cuda/gemv.cuh>

#include "matrices.cuh"

namespace cuda = gptq::cuda;
namespace detail = gptq::cuda::detail;
using bench::allocate;
using bench::check;
using gptq::index_t;

namespace {

constexpr std::size_t largest = std::size_t{400} << 20;  // bytes of a matrix, or fewer
constexpr index_t widest = 1 << 17;                      // rows or columns of a matrix
constexpr int most_tokens = 16;

// Of LLaMA, Qwen, Mistral and TinyLlama models, and some between them.
constexpr std::pair<index_t, index_t> shapes[] = {
    {1024, 4096},  {2048, 2048},  {2048, 5632},   {2048, 8192},  {2560, 2560},  {2560, 9728},
    {3072, 3072},  {3072, 8192},  {3584, 3584},   {3584, 18944}, {4096, 2048},  {4096, 4096},
    {4096, 11008}, {4096, 14336}, {5120, 5120},   {5120, 13824}, {5120, 27648}, {5632, 2048},
    {6144, 4096},  {6656, 6656},  {6656, 17920},  {7168, 7168},  {8192, 3072},  {8192, 8192},
    {8192, 22016}, {8192, 28672}, {9728, 2560},   {10240, 8192}, {11008, 4096}, {12288, 4096},
    {13824, 5120}, {14336, 4096}, {16384, 16384}, {17920, 6656}, {18944, 3584}, {22016, 4096},
    {22016, 8192}, {27648, 5120}, {28672, 4096},  {28672, 8192}, {32000, 4096}, {128256, 4096}};

struct machine {
  cudaStream_t stream;
  cuda::device gpu;
  char* weights;
  __half *x, *y;
};

struct plan_time {
  double microseconds;
  std::string name;
};

/// How many times as long as with the best plan gemv takes.
template <class Format>
double measure(machine const& m, char const* scheme, index_t out, index_t in, int tokens) {
  bench::matrices<Format> const w(m.stream, m.weights, out, in);
  detail::operands<__half> const x{m.x, tokens, in, in};
  auto const time = [&](auto&& product) {
    return bench::microseconds(
        m.stream, std::max(w.count(), 24), [&](int i) { product(w[i]); }, 9);
  };
  auto const launch = [&](cuda::prepacked_view<Format> const& matrix, detail::gemv_plan const& plan) {
    detail::gemv_launcher<Format, __half, 1, detail::results<__half>> const launcher(
        matrix, x, detail::plain_results(m.y, matrix.out), m.stream, true, m.gpu);
    return launcher(plan);
  };

  double const chosen = time([&](auto const& matrix) {
    cuda::gemv(matrix, m.x, index_t{tokens}, m.y, {.stream = m.stream, .overlap = true});
  });
  std::vector<plan_time> plans;
  for (detail::block_shape const shape : {detail::block_shape{2, 1}, {3, 1}, {4, 1}, {3, 2}, {4, 2}}) {
    for (bool const halves : {false, true}) {
      for (bool const in_turn : {false, true}) {
        for (bool const pause : {false, true}) {
          detail::gemv_plan const plan{shape, halves, in_turn, pause};
          if ((pause && !halves) || !launch(w[0], plan)) continue;
          plans.push_back({time([&](auto const& matrix) { launch(matrix, plan); }),
                           std::to_string(shape.row_tiles) + " x " + std::to_string(shape.row_warps) +
                               (halves ? ", half of the memory" : "") + (pause ? ", a pause" : "") +
                               (in_turn ? ", in turn" : ", equal shares")});
        }
      }
    }
  }
  auto const older = [&]<int RowTiles, int Tiles>() {
    plans.push_back({time([&](auto const& matrix) {
                       detail::launch_gemv<Format, __half, 1, RowTiles, Tiles>(
                           matrix, x, detail::plain_results(m.y, matrix.out),
                           {.stream = m.stream, .overlap = true}, m.gpu);
                     }),
                     "older devices', " + std::to_string(RowTiles)});
  };
  if (tokens <= 8) {
    older.template operator()<1, 1>();
    older.template operator()<2, 1>();
  } else {
    older.template operator()<1, 2>();
    older.template operator()<2, 2>();
    older.template operator()<4, 2>();
  }
  plan_time const best = *std::min_element(plans.begin(), plans.end(), [](auto const& a, auto const& b) {
    return a.microseconds < b.microseconds;
  });
  double const ratio = chosen / best.microseconds;
  std::printf("| %-10s | %6td x %5td | %6d | %6.2f | %5.2f | %6.2f | %-48s |\n", scheme, out, in, tokens,
              chosen, ratio, best.microseconds, best.name.c_str());
  std::fflush(stdout);
  return ratio;
}

}  // namespace

int main() try {
  machine m{};
  m.gpu = cuda::device::current();
  if (m.gpu.capability < 90) {
    std::fprintf(stderr, "there is one plan below compute capability 9.0, and this device has %d.%d\n",
                 m.gpu.capability / 10, m.gpu.capability % 10);
    return 1;
  }
  check(cudaStreamCreateWithFlags(&m.stream, cudaStreamNonBlocking), "a stream");
  m.weights = allocate<char>(bench::rotated + largest);
  m.x = allocate<__half>(most_tokens * widest), m.y = allocate<__half>(most_tokens * widest);
  bench::fill_activations(m.stream, m.x, most_tokens * widest);

  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, m.gpu.id), "the device's name");
  std::printf("%s; 4 bits, groups of 128, float16; microseconds\n\n", properties.name);
  std::printf("| %-10s | %14s | tokens | %6s | ratio | %6s | %-48s |\n", "scheme", "out x in", "ours", "best",
              "row tiles of a warp x warps of a chunk");
  std::printf("|------------|----------------|--------|--------|-------|--------|%s|\n",
              std::string(50, '-').c_str());
  double logarithms = 0.0, most = 0.0;
  int count = 0;
  for (auto const& [out, in] : shapes) {
    for (int const tokens : {1, 2, 4, 8, 16}) {
      for (double const ratio :
           {measure<gptq::format<gptq::symmetric, 4, 128>>(m, "symmetric", out, in, tokens),
            measure<gptq::format<gptq::asymmetric, 4, 128>>(m, "asymmetric", out, in, tokens)}) {
        logarithms += std::log(ratio), most = std::max(most, ratio), ++count;
      }
    }
  }
  std::printf("\nOurs over the best plan: %.3f in the geometric mean, %.2f at most\n",
              std::exp(logarithms / count), most);
} catch (std::exception const& error) {
  std::fprintf(stderr, "bench_cuda_plans: %s\n", error.what());
  return 1;
}
