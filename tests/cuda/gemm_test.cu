// What gptq::cuda::gemm decides, and what it asks for. The formats: gemm_half.cu and those beside it.
#include <gptq/cuda/gemm.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

/// From one token, where it is gemv's, on; with the workspace that it asks for.
template <class Format, class X, class Y>
void check_decisions(test::random& random) {
  for (index_t const tokens : {1, 5, 6, 16, 17, 200}) {
    for (bool const permuted : {false, true}) {
      test::check_product<Format, X, Y>(
          50, 328, tokens, permuted, random, [](auto const& w, X const* x, index_t n, Y* y) {
            test::device_vector<std::uint8_t> const workspace(cuda::workspace_bytes<X, Y>(w, n));
            cuda::gemm(w, x, n, y, {.workspace = workspace.data(), .workspace_bytes = workspace.size()});
          });
    }
  }
}

}  // namespace

TEST_CASE("gemm takes any number of tokens, with the workspace that it asks for") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  check_decisions<format<gptq::symmetric, 4, 128>, __half, __half>(random);
  check_decisions<format<gptq::asymmetric, 3, 128, float>, float, float>(random);
}

TEST_CASE("gemm asks for its workspace") {
  if (!test::have_gpu()) return;
  using q4 = format<gptq::symmetric, 4, 128>;
  auto* const p = reinterpret_cast<std::uint32_t*>(256);
  cuda::prepacked_view<q4> const w{
      .codes = p, .scales = reinterpret_cast<gptq::float16*>(p), .out = 8192, .in = 4096};
  auto* const x = reinterpret_cast<__half*>(p);
  CHECK(cuda::workspace_bytes<__half, __half>(w, 64) > 0);
  CHECK_THROWS_AS(cuda::gemm(w, x, 64, x), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::gemm(w, x, 70000, x), cuda::invalid_argument);
}
