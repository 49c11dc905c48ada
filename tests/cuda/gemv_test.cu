// gptq::cuda::gemv against the reference: every width and scheme, type, group size, odd shapes.
#include <gptq/cuda/gemv.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

template <class Format, class X, class Y>
void check_gemv(test::random& random) {
  index_t const shapes[][2] = {{1, 8}, {16, 128}, {40, 264}, {100, 1000}, {129, 2312}};
  for (auto const& [out, in] : shapes) {
    for (index_t const tokens : {1, 2, 3, 5, 8, 9, 16, 19}) {
      bool const permuted = random.below(3) == 0;
      test::check_product<Format, X, Y>(
          out, in, tokens, permuted, random, [](auto const& w, X const* x, index_t n, Y* y) {
            test::device_vector<std::uint8_t> const workspace(cuda::gemv_workspace_bytes<X>(w, n));
            cuda::gemv(w, x, n, y, {.workspace = workspace.data(), .workspace_bytes = workspace.size()});
          });
    }
  }
}

}  // namespace

TEST_CASE("gemv agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  check_gemv<format<gptq::symmetric, 4, 128>, __half, __half>(random);
  check_gemv<format<gptq::asymmetric, 4, 32>, __half, float>(random);
  check_gemv<format<gptq::half_step, 4, 64>, __nv_bfloat16, float>(random);
  check_gemv<format<gptq::asymmetric, 4, gptq::whole_row>, float, float>(random);
  check_gemv<format<gptq::fixed_zero, 8, 128, float>, float, float>(random);
  check_gemv<format<gptq::asymmetric, 8, 32>, __half, __half>(random);
  check_gemv<format<gptq::half_step, 3, 128>, __half, float>(random);
  check_gemv<format<gptq::asymmetric, 3, 64>, __nv_bfloat16, float>(random);
  check_gemv<format<gptq::asymmetric, 2, 256>, float, __nv_bfloat16>(random);
  check_gemv<format<gptq::half_step, 2, 32>, __half, float>(random);
}

namespace {

/// Every way to share out the work of the kernel for compute capability 9.0, among few multiprocessors.
template <class Format, class X, class Y>
void check_shares(test::random& random) {
  using cuda::detail::operand;
  cuda::device gpu = cuda::device::current();
  if (gpu.capability < 90 ||
      !cuda::detail::compiled_for(cuda::detail::gemv_sm90<Format, operand<X>, 1, Y, 2, 1, 1>,
                                  cuda::detail::gemv_sm90_threads)) {
    return;
  }
  gpu.multiprocessors = 3;
  // Among three, 648 rows are 13 or 14 row tiles each: a last round of blocks has 6 for two warps of 4.
  for (auto const& [out, in] : {std::pair<index_t, index_t>{1, 8}, {40, 264}, {500, 2312}, {648, 520}}) {
    for (index_t const tokens : {1, 3, 8, 9, 11, 16}) {
      for (int const row_warps : {1, 2}) {
        test::check_product<Format, X, Y>(
            out, in, tokens, false, random, [&](auto const& w, X const* x, index_t n, Y* y) {
              cuda::detail::operands<operand<X>> const columns{x, static_cast<int>(n), w.in, w.in};
              cuda::detail::gemv_launcher<Format, operand<X>, 1, Y> const launcher(w, columns, y, nullptr,
                                                                                   false, gpu);
              std::vector<unsigned char> first(static_cast<std::size_t>(n * w.out) * sizeof(Y)),
                  other(first.size());
              bool launched = false;
              for (int const row_tiles : {2, 3, 4}) {
                for (bool const in_turn : {false, true}) {
                  for (auto const& [halves, pause] : {std::pair{true, false}, {true, true}, {false, false}}) {
                    cuda::check(cudaMemset(y, 0xff, first.size()), "poisoning");
                    if (!launcher({{row_tiles, row_warps}, halves, in_turn, pause})) continue;
                    cuda::check(cudaMemcpy(other.data(), y, first.size(), cudaMemcpyDeviceToHost), "copying");
                    if (launched) CHECK(first == other);  // a sum does not depend on who makes it
                    launched = true;
                    first = other;
                  }
                }
              }
              REQUIRE(launched);
              cuda::check(cudaMemcpy(y, first.data(), first.size(), cudaMemcpyHostToDevice), "copying");
            });
      }
    }
  }
}

}  // namespace

TEST_CASE("gemv on compute capability 9.0, however its work is shared out") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  check_shares<format<gptq::symmetric, 4, 128>, __half, __half>(random);
  check_shares<format<gptq::asymmetric, 4, 128>, __half, __half>(random);
  check_shares<format<gptq::asymmetric, 8, 32, float>, __half, __half>(random);
  check_shares<format<gptq::half_step, 3, 64>, __half, __half>(random);
  check_shares<format<gptq::asymmetric, 2, 256>, __nv_bfloat16, float>(random);
}

TEST_CASE("gemv on compute capability 9.0 keeps multiprocessors about equally busy") {
  auto const over = [](index_t a, index_t b) { return (a + b - 1) / b; };
  int uneven = 0, missing = 0, idle = 0;
  for (index_t const sms : {78, 132, 148}) {
    for (index_t tiles = 1; tiles < 3000; ++tiles) {
      for (index_t const chunks : {2, 32, 48, 64, 65, 224}) {
        for (int const columns : {1, 2, 3, 4, 8, 9, 16}) {
          auto const plan = cuda::detail::plan_gemv(tiles, chunks, tiles * chunks * 1024, columns, sms);
          index_t const share = over(tiles, sms);
          if (!plan) {
            uneven += share > 1;
            continue;
          }
          auto const [row_tiles, row_warps] = plan->shape;
          index_t const at_once = row_tiles * row_warps;
          uneven += plan->in_turn && over(over(tiles, at_once), sms) * at_once > share + 5;
          missing += columns > 8 && (plan->halves || plan->shape == cuda::detail::block_shape{3, 1});
          idle += plan->pause && !plan->halves;
        }
      }
    }
  }
  CHECK(uneven == 0);
  CHECK(missing == 0);  // of these there is no kernel
  CHECK(idle == 0);     // a pause is for a kernel that runs beside the one before
}

TEST_CASE("gemv in a graph, one kernel starting while another runs") {
  if (!test::have_gpu()) return;
  using q4 = format<gptq::asymmetric, 4, 128>;
  auto random = test::fresh_random();
  index_t const n = 512;
  auto const packed = test::random_matrix<q4>(n, n, false, random);
  cuda::prepacked_matrix<q4> const w(packed.view());
  std::vector<float> x(n);
  for (float& value : x) value = random.normal();
  std::vector<gptq::float16> half(x.begin(), x.end());
  test::device_vector<gptq::float16> const a(half), b(n), c(n);
  auto const of = [](auto const& v) { return reinterpret_cast<__half*>(v.data()); };
  cudaStream_t stream;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  cudaGraph_t graph;
  cudaGraphExec_t instance;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (auto const& [from, to] : {std::pair{of(a), of(b)}, std::pair{of(b), of(c)}, std::pair{of(c), of(b)}}) {
    cuda::gemv(w.view(), from, to, {.stream = stream, .overlap = true});
  }
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&instance, graph, 0), "graph");
  for (int repeat = 0; repeat < 20; ++repeat) {
    b.poison(), c.poison();
    cuda::check(cudaDeviceSynchronize(), "poisoning");
    cuda::check(cudaGraphLaunch(instance, stream), "graph");
    cuda::check(cudaStreamSynchronize(stream), "graph");
    std::vector<double> expected(n);
    std::vector<gptq::float16> input = half;
    for (int step = 0; step < 3; ++step) {
      gptq::reference::gemv(packed.view(), input.data(), expected.data());
      for (index_t i = 0; i < n; ++i)
        input[static_cast<std::size_t>(i)] = gptq::float16(static_cast<float>(expected[i]));
    }
    auto const y = b.host();
    double error = 0.0, size = 0.0;
    for (index_t i = 0; i < n; ++i) {
      double const off = static_cast<double>(static_cast<float>(y[i])) - expected[i];
      error += off * off, size += expected[i] * expected[i];
    }
    CHECK(std::sqrt(error / size) < 4e-3);
  }
  cudaGraphExecDestroy(instance), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

TEST_CASE("gemv says what is wrong, and launches nothing") {
  using q4 = format<gptq::symmetric, 4, 128>;
  cuda::prepacked_view<q4> w{.out = 16, .in = 128};
  __half* const x = reinterpret_cast<__half*>(256);
  CHECK_THROWS_AS(cuda::gemv(w, x, x), cuda::invalid_argument);  // no codes
  w.codes = reinterpret_cast<std::uint32_t const*>(256);
  w.scales = reinterpret_cast<gptq::float16 const*>(256);
  CHECK_THROWS_AS(cuda::gemv(w, x, -1, x), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::gemv(w, static_cast<__half*>(nullptr), x), cuda::invalid_argument);
  w.codes = reinterpret_cast<std::uint32_t const*>(260);
  CHECK_THROWS_AS(cuda::gemv(w, x, x), cuda::invalid_argument);
  if (!test::have_gpu()) return;
  w.codes = reinterpret_cast<std::uint32_t const*>(256);
  CHECK_THROWS_AS(cuda::gemv(w, reinterpret_cast<float*>(256), x), cuda::invalid_argument);  // no workspace
}
