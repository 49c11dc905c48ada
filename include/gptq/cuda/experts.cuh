// Grouped gemm: the experts of a mixture, each with the tokens that a router sends it, in one launch.
//
//   auto const sent = gptq::cuda::sort_by_expert(expert_ids, tokens * top_k, experts, memory, {.stream = stream});
//   gptq::cuda::grouped_gemm(stack, sent, x, top_k, gptq::output{y}, {.stream = stream});
//
// The experts are one prepacked matrix: of [experts, out, in] weights that of experts * out rows, with `out`
// a multiple of 16. expert_ids[tokens, top_k] is the router's choice, on the device; entry i of it, token i /
// top_k's, has
//
//   y[i, row] = sum over columns of weight[expert_ids[i], row, column] * x[i / top_k, column]
//
// and where each entry has an x of its own, as the second layer of an MLP, top_k is 1 there. An entry whose
// id is not 0..experts-1 gets NaN. Sums are float32, as in gemv.cuh; steps (steps.hpp) take the entry for the
// token, and rows of an expert. Nothing is read back: router, sorting and products may be one graph. With
// product_options::overlap the kernel before grouped_gemm() must not be what writes expert_ids.
#pragma once

#include <cstddef>
#include <cstdint>

#include <gptq/cuda/gemv.cuh>
#include <gptq/cuda/kernels/experts.cuh>
#include <gptq/cuda/kernels/gated.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/prepacked.cuh>
#include <gptq/steps.hpp>

namespace gptq::cuda {

/// Bytes of device memory that sort_by_expert() needs; 0 for few entries, which need no order.
inline std::size_t sorting_bytes(index_t entries, int experts) {
  return detail::sorting_bytes(entries, experts);
}

/// Makes groups of expert_ids[entries] that one expert has, in stream order, in `memory` of sorting_bytes()
/// bytes, aligned to 16. For every layer of the same choice. At most 1024 experts and 2^20 entries. Throws
/// invalid_argument or runtime_error.
inline expert_entries sort_by_expert(std::int32_t const* expert_ids, index_t entries, int experts,
                                     void* memory, product_options const& options = {}) {
  return detail::run_sort_by_expert(expert_ids, entries, experts, memory, options);
}

/// y[entry, row] as above, and then `steps`. With a column order, with `in` no multiple of 8, or x not
/// aligned to 16 bytes, x is prepared first and needs a workspace: gemv_workspace_bytes() of as many tokens.
/// x is float16 or bfloat16.
/// @param x         x[entries / of_token, in] without gaps, or gptq::input{x, stride}
/// @param of_token  entries of each row of x: top_k, or 1
template <device_format Format, class X, device_number Y, class... Steps>
void grouped_gemm(prepacked_view<Format> const& stack, expert_entries const& sent, X const& x, int of_token,
                  output<Y> y, product_options const& options = {}, Steps const&... steps) {
  detail::run_grouped(stack, sent, detail::as_input(x, stack.in), of_token,
                      detail::as_results(y, sent.experts > 0 ? stack.out / sent.experts : 0, steps...),
                      options);
}

}  // namespace gptq::cuda
