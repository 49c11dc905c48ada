// gptq::cuda::gemm and dequantize against the reference: what each number of tokens leads to.
#include <initializer_list>
#include <utility>

#include <gptq/cuda/dequantize.cuh>
#include <gptq/cuda/gemm.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

struct blas_handle {
  cublasHandle_t handle = nullptr;
  blas_handle() { cuda::check(cublasCreate(&handle), "a handle"); }
  ~blas_handle() { cublasDestroy(handle); }
};

/// A product computed in a given way.
template <class X, class Y>
auto by(cuda::detail::gemm_method method, cublasHandle_t blas) {
  return [method, blas, gpu = cuda::device::current()](auto const& w, X const* x, index_t n, Y* y) {
    auto const plan = cuda::detail::plan_gemm<X, Y>(method, w, n, gpu);
    test::device_vector<std::uint8_t> const workspace(plan.operand_bytes + plan.rest_bytes);
    cuda::detail::run_gemm(
        plan, w, x, n, y, {.workspace = workspace.data(), .workspace_bytes = workspace.size(), .blas = blas});
  };
}

/// As gemm() decides.
template <class X, class Y>
auto as_chosen(cublasHandle_t blas) {
  return [blas](auto const& w, X const* x, index_t n, Y* y) {
    test::device_vector<std::uint8_t> const workspace(cuda::workspace_bytes<X, Y>(w, n));
    cuda::gemm(w, x, n, y,
               {.workspace = workspace.data(), .workspace_bytes = workspace.size(), .blas = blas});
  };
}

/// Calls check(out, in, tokens), but for what would take the reference too long.
void for_each_size(std::initializer_list<std::pair<index_t, index_t>> shapes, auto&& check) {
  for (auto const& [out, in] : shapes) {
    for (index_t const tokens : {6, 17, 33, 64, 100, 200}) {
      if (out * in * tokens <= 50'000'000) check(out, in, tokens);
    }
  }
}

/// By this library's kernels, as many as run on this device, and by the one that is chosen.
template <class Format, class X, class Y>
void check_gemm(test::random& random) {
  using cuda::detail::gemm_method;
  auto const warps = by<X, Y>(gemm_method::warps, nullptr);
  auto const warpgroups = by<X, Y>(gemm_method::warpgroups, nullptr);
  bool const have_warpgroups =
      cuda::detail::warpgroups_run<Format, cuda::detail::operand<X>, Y>(cuda::device::current());
  auto const chosen = as_chosen<X, Y>(nullptr);
  // The last has more chunks for a block than its ring has stages.
  for_each_size({{16, 128}, {40, 264}, {50, 320}, {150, 1000}, {260, 4104}, {24, 20488}},
                [&](index_t out, index_t in, index_t tokens) {
                  bool const permuted = random.below(3) == 0;
                  if (tokens == 6) {
                    test::check_product<Format, X, Y>(out, in, tokens, permuted, random, chosen);
                  } else if (have_warpgroups) {
                    test::check_product<Format, X, Y>(out, in, tokens, permuted, random, chosen, warps,
                                                      warpgroups);
                  } else {
                    test::check_product<Format, X, Y>(out, in, tokens, permuted, random, chosen, warps);
                  }
                });
}

template <class Format, class X>
void check_gemm_by_blas(cublasHandle_t blas, test::random& random) {
  for_each_size({{16, 128}, {50, 320}, {260, 4160}}, [&](index_t out, index_t in, index_t tokens) {
    test::check_product<Format, X, X>(out, in, tokens, random.below(3) == 0, random,
                                      by<X, X>(cuda::detail::gemm_method::blas, blas), as_chosen<X, X>(blas));
  });
}

template <class Format, class T>
void check_dequantize(index_t out, index_t in, bool permuted, test::random& random) {
  INFO(gptq::to_string(gptq::to_spec<Format>())
       << ", " << out << " x " << in << (permuted ? ", permuted" : ""));
  auto const packed = test::random_matrix<Format>(out, in, permuted, random);
  cuda::prepacked_matrix<Format> const w(packed.view());
  std::vector<double> expected(static_cast<std::size_t>(out * in));
  gptq::reference::dequantize(packed.view(), expected.data());
  test::device_vector<test::host_number<T>> const weights(expected.size() + 8);
  cuda::dequantize(w.view(), reinterpret_cast<T*>(weights.data()));
  auto const result = weights.host();
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    wrong += static_cast<float>(result[i]) !=
             static_cast<float>(test::host_number<T>(static_cast<float>(expected[i])));
  }
  CHECK(wrong == 0);
  for (std::size_t i = expected.size(); i < result.size(); ++i)
    CHECK(std::isnan(static_cast<float>(result[i])));
}

}  // namespace

TEST_CASE("gemm agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  check_gemm<format<gptq::symmetric, 4, 128>, __half, __half>(random);
  check_gemm<format<gptq::asymmetric, 4, 64>, __nv_bfloat16, __nv_bfloat16>(random);
  check_gemm<format<gptq::half_step, 4, 32>, __half, float>(random);
  check_gemm<format<gptq::asymmetric, 3, 128, float>, float, float>(random);
  check_gemm<format<gptq::asymmetric, 8, gptq::whole_row>, __nv_bfloat16, float>(random);
  check_gemm<format<gptq::half_step, 2, 32>, __half, __half>(random);
  check_gemm<format<gptq::symmetric, 8, 128, float>, __nv_bfloat16, __nv_bfloat16>(random);
}

TEST_CASE("gemm by cuBLAS agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  blas_handle const blas;
  check_gemm_by_blas<format<gptq::symmetric, 4, 128>, __half>(blas.handle, random);
  check_gemm_by_blas<format<gptq::asymmetric, 4, 64>, __nv_bfloat16>(blas.handle, random);
  check_gemm_by_blas<format<gptq::half_step, 2, 32>, __half>(blas.handle, random);
  check_gemm_by_blas<format<gptq::symmetric, 8, 128, float>, __nv_bfloat16>(blas.handle, random);
}

TEST_CASE("dequantize gives the reference's weights, rounded once") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  for (bool const permuted : {false, true}) {
    check_dequantize<format<gptq::symmetric, 4, 128>, __half>(50, 264, permuted, random);
    check_dequantize<format<gptq::asymmetric, 4, 64>, __nv_bfloat16>(33, 1003, permuted, random);
    check_dequantize<format<gptq::asymmetric, 3, 128, float>, float>(16, 520, permuted, random);
    check_dequantize<format<gptq::asymmetric, 8, gptq::whole_row>, float>(50, 300, permuted, random);
  }
}

TEST_CASE("gemm asks for its workspace") {
  if (!test::have_gpu()) return;
  using q4 = format<gptq::symmetric, 4, 128>;
  auto* const p = reinterpret_cast<std::uint32_t*>(256);
  cuda::prepacked_view<q4> const w{
      .codes = p, .scales = reinterpret_cast<gptq::float16*>(p), .out = 128, .in = 4096};
  auto* const x = reinterpret_cast<__half*>(p);
  CHECK(cuda::workspace_bytes<__half, __half>(w, 64) > 0);
  CHECK_THROWS_AS(cuda::gemm(w, x, 64, x), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::gemm(w, x, 70000, x), cuda::invalid_argument);
}
