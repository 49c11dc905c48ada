// What gptq::cuda::gemv does whatever the format: how it shares out its work, graphs, what it refuses. The
// formats: gemv_2_bits.cu and those beside it.
#include <gptq/cuda/gemv.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

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
