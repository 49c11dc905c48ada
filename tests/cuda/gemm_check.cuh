// gptq::cuda::gemm against the reference: what is done for each format and types of numbers.
#pragma once

#include <initializer_list>
#include <utility>

#include <gptq/cuda/gemm.cuh>
#include <gptq/cuda/gemv.cuh>

#include "product_check.cuh"

namespace test {

namespace cuda = gptq::cuda;

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
    device_vector<std::uint8_t> const workspace(plan.operand_bytes + plan.rest_bytes);
    cuda::detail::run_gemm(
        plan, w, gptq::input<X>{x, w.in}, n, cuda::detail::plain_results(y, w.out),
        {.workspace = workspace.data(), .workspace_bytes = workspace.size(), .blas = blas});
  };
}

/// 16 columns a block.
template <class X, class Y>
auto by_column_groups() {
  return [gpu = cuda::device::current()](auto const& w, X const* x, index_t n, Y* y) {
    gptq::input<X> const from{x, w.in};
    device_vector<std::uint8_t> const workspace(cuda::detail::operand_bytes<X>(w, n));
    cuda::product_options const options{.workspace = workspace.data(), .workspace_bytes = workspace.size()};
    if constexpr (cuda::detail::parts<X> == 1) {
      cuda::detail::launch_column_groups(w, cuda::detail::readable_operands(w, from, n, options),
                                         cuda::detail::plain_results(y, w.out), options, gpu);
    } else {
      cuda::gemv(w, x, n, y, options);
    }
  };
}

/// As gemm() decides for more than 16 columns, but for small products.
template <class X, class Y>
auto as_chosen(cublasHandle_t blas) {
  return [blas](auto const& w, X const* x, index_t n, Y* y) {
    auto const method = cuda::detail::choose_method<X, cuda::detail::results<Y>>(w, n, blas != nullptr,
                                                                                 cuda::device::current());
    by<X, Y>(method, blas)(w, x, n, y);
  };
}

/// Calls check(out, in, tokens), but for what would take the reference too long.
inline void for_each_size(std::initializer_list<std::pair<index_t, index_t>> shapes, auto&& check) {
  for (auto const& [out, in] : shapes) {
    for (index_t const tokens : {6, 17, 33, 64, 100, 200}) {
      if (out * in * tokens <= 50'000'000) check(out, in, tokens);
    }
  }
}

/// By this library's kernels, as many as run on this device, and by the one that is chosen.
template <class Format, class X, class Y>
void check_gemm(random& random) {
  using cuda::detail::gemm_method;
  auto const warps = by<X, Y>(gemm_method::warps, nullptr);
  auto const warpgroups = by<X, Y>(gemm_method::warpgroups, nullptr);
  bool const have_warpgroups =
      cuda::detail::warpgroups_run<Format, cuda::detail::operand<X>, cuda::detail::results<Y>>(
          cuda::device::current());
  auto const chosen = as_chosen<X, Y>(nullptr);
  auto const groups = by_column_groups<X, Y>();
  // The last has more chunks for a block than its ring has stages.
  for_each_size({{16, 128}, {40, 264}, {50, 320}, {150, 1000}, {260, 4104}, {24, 20488}},
                [&](index_t out, index_t in, index_t tokens) {
                  if (tokens * cuda::detail::parts<X> <= 16) return;  // gemv's
                  bool const permuted = random.below(3) == 0;
                  if (have_warpgroups) {
                    check_product<Format, X, Y>(out, in, tokens, permuted, random, chosen, groups, warps,
                                                warpgroups);
                  } else {
                    check_product<Format, X, Y>(out, in, tokens, permuted, random, chosen, groups, warps);
                  }
                });
}

template <class Format, class X>
void check_gemm_by_blas(cublasHandle_t blas, random& random) {
  for_each_size({{16, 128}, {50, 320}, {260, 4160}}, [&](index_t out, index_t in, index_t tokens) {
    if (tokens <= 16) return;
    check_product<Format, X, X>(out, in, tokens, random.below(3) == 0, random,
                                by<X, X>(cuda::detail::gemm_method::blas, blas), as_chosen<X, X>(blas));
  });
}

}  // namespace test
