// Grouped gemm: products of many matrices in one call, with one share-out of the work over threads. The experts of a
// mixture, each with the tokens that a router sends it; or q, k and v, which read the same x.
//
//   gptq::grouped_product<q4> const products[] = {          // matrices of one format and as many columns
//       {q, {0, tokens}, {y_q}}, {k, {0, tokens}, {y_k}}, {v, {0, tokens}, {y_v}}};
//   gptq::index_t const work = gptq::grouped_work(products, 3);
//   gptq::grouped_gemm(products, 3, a, gptq::work_share(work, thread, threads));     // on each thread
//
// Experts want tokens in an order of their own. From expert_ids[tokens, top_k], the router's choice, to y[token, out]:
//
//   gptq::fault what = gptq::sort_by_expert(expert_ids, tokens * top_k, experts, entries, first);
//   for (gptq::index_t i = 0; i < tokens * top_k; ++i) token_ids[i] = entries[i] / top_k;
//   auto a = gptq::prepare(expert[0], gptq::gathered_input<float>{x, in, token_ids}, tokens * top_k, workspace,
//                          {0, tokens * top_k});
//   for (int e = 0; e < experts; ++e) list[e] = {expert[e], {first[e], first[e + 1]}, {y + first[e] * out}};
//   gptq::grouped_gemm(list, experts, a, {0, gptq::grouped_work(list, experts)});    // y[i] is of token_ids[i]
//
// A single token needs no order: its experts' products all read token 0. Products without tokens cost nothing.
// examples/06_experts.cpp is all of a mixture of experts.
//
// The contract is that of gemm.hpp, and results are the same bits. Steps are those of epilogue.hpp; `token` is the one
// of the activations. A step may take the number of the product before all else, for a bias of each expert, say:
//   step(index_t product, float* values, index_t token, index_t first_row, index_t count)
#pragma once

#include <cstdint>

#include <gptq/epilogue.hpp>
#include <gptq/kernels/grouped.hpp>

namespace gptq {

/// One matrix, and what of the call is its part.
/// @tparam T  of y: float, float16 or bfloat16
template <storage_format Format, class T = float>
struct grouped_product {
  packed_view<Format> w;
  token_range tokens;  ///< of the prepared activations
  output<T> y;         ///< y[token - tokens.first, row]; products must not overlap
};

/// A share of the work of a call: units first..last-1 of grouped_work(). Shares that cover all units without overlap
/// cover all results once.
struct work_range {
  index_t first = 0;
  index_t last = 0;
};

/// Part `part` of `parts`, as even as that allows. May be empty.
GPTQ_INLINE constexpr work_range work_share(index_t work, int part, int parts) {
  return {work * part / parts, work * (part + 1) / parts};
}

/// How much work these products are, in units that take about the same time: a row block for each of its tokens, and
/// as much as four for reading its codes.
template <storage_format Format, class T>
GPTQ_INLINE index_t grouped_work(grouped_product<Format, T> const* products, index_t count) {
  index_t work = 0;
  for (index_t i = 0; i < count; ++i) work += detail::product_work(products[i]);
  return work;
}

/// What of these products begins in `share`, and then `steps`. All matrices have the columns, groups and column order
/// that x was prepared for.
template <precision Precision, class Isa = isa::native, storage_format Format, class T, class... Steps>
void grouped_gemm(grouped_product<Format, T> const* products, index_t count, activations<Precision> const& x,
                  work_range share, Steps const&... steps) noexcept {
  for (index_t i = 0, begin = 0; i < count && begin < share.last; ++i) {
    auto const& product = products[i];
    row_range const rows = detail::rows_of_share(product, share.first - begin, share.last - begin);
    begin += detail::product_work(product);
    if (rows.first >= rows.last) continue;
    detail::expect_none(detail::find_group_fault(product, x), "gptq::grouped_gemm");
    detail::slab_rows<Isa>(product.w, x, product.tokens, product.y, rows, detail::step_for(i, steps)...);
  }
}

/// What is wrong with the arguments of grouped_gemm(), if anything.
template <precision Precision, storage_format Format, class T>
GPTQ_INLINE fault find_fault(grouped_product<Format, T> const* products, index_t count,
                             activations<Precision> const& x) {
  for (index_t i = 0; i < count; ++i) {
    fault const what = detail::find_group_fault(products[i], x);
    if (what != fault::none) return what;
  }
  return fault::none;
}

/// Sorts places 0..count-1 by the expert that stands there, those of one expert in their order: a counting sort.
/// @param expert_ids  [count], each 0..experts-1; otherwise fault::expert is returned, and nothing is written
/// @param entries     [count]: the places
/// @param first       [experts + 1]: those of expert e are entries[first[e]] ... entries[first[e + 1] - 1]
GPTQ_INLINE fault sort_by_expert(std::int32_t const* expert_ids, index_t count, int experts,
                                 std::int32_t* entries, std::int32_t* first) {
  return detail::sort_by_expert(expert_ids, count, experts, entries, first);
}

}  // namespace gptq
