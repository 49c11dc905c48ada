// gptq::cuda::gemv against the reference: what is done for each format and types of numbers.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include <gptq/cuda/gemv.cuh>

#include "product_check.cuh"

namespace test {

namespace cuda = gptq::cuda;

/// Odd shapes and every number of tokens that leads to something else.
template <class Format, class X, class Y>
void check_gemv(random& random) {
  index_t const shapes[][2] = {{1, 8}, {16, 128}, {40, 264}, {100, 1000}, {129, 2312}};
  for (auto const& [out, in] : shapes) {
    for (index_t const tokens : {1, 2, 3, 5, 8, 9, 16, 19}) {
      bool const permuted = random.below(3) == 0;
      check_product<Format, X, Y>(
          out, in, tokens, permuted, random, [](auto const& w, X const* x, index_t n, Y* y) {
            device_vector<std::uint8_t> const workspace(cuda::gemv_workspace_bytes<X>(w, n));
            cuda::gemv(w, x, n, y, {.workspace = workspace.data(), .workspace_bytes = workspace.size()});
          });
    }
  }
}

/// Every way to share out the work of the kernel for compute capability 9.0, among few multiprocessors.
template <class Format, class X, class Y>
void check_shares(random& random) {
  using cuda::detail::operand;
  using results = cuda::detail::results<Y>;
  cuda::device gpu = cuda::device::current();
  if (gpu.capability < 90 ||
      !cuda::detail::compiled_for(cuda::detail::gemv_sm90<Format, operand<X>, 1, results, 2, 1, 1>,
                                  cuda::detail::gemv_sm90_threads)) {
    return;
  }
  gpu.multiprocessors = 3;
  // Among three, 648 rows are 13 or 14 row tiles each: a last round of blocks has 6 for two warps of 4.
  for (auto const& [out, in] : {std::pair<index_t, index_t>{1, 8}, {40, 264}, {500, 2312}, {648, 520}}) {
    for (index_t const tokens : {1, 3, 8, 9, 11, 16}) {
      for (int const row_warps : {1, 2}) {
        check_product<Format, X, Y>(
            out, in, tokens, false, random, [&](auto const& w, X const* x, index_t n, Y* y) {
              cuda::detail::operands<operand<X>> const columns{x, static_cast<int>(n), w.in, w.in};
              cuda::detail::gemv_launcher<Format, operand<X>, 1, results> const launcher(
                  w, columns, cuda::detail::plain_results(y, w.out), nullptr, false, gpu);
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

}  // namespace test
