// What grouped_gemm() shares out: row blocks of products with few or many tokens, and steps that know their product.
#pragma once

#include <cstdint>
#include <type_traits>

#include <gptq/checks.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

/// Reading the codes of a row block takes about as long as multiplying it by this many tokens.
inline constexpr index_t tokens_worth_a_read = 4;

/// Units of work of one of a product's row blocks; 0 without tokens.
/// @tparam Product  grouped_product
template <class Product>
GPTQ_INLINE constexpr index_t row_block_work(Product const& p) {
  index_t const tokens = p.tokens.last - p.tokens.first;
  return tokens <= 0 ? 0 : tokens < tokens_worth_a_read ? tokens_worth_a_read : tokens;
}

template <class Product>
GPTQ_INLINE constexpr index_t product_work(Product const& p) {
  return p.w.layout().row_blocks() * row_block_work(p);
}

/// The rows whose blocks begin in units first..last-1, counted from the product's first unit.
template <class Product>
GPTQ_INLINE constexpr row_range rows_of_share(Product const& p, index_t first, index_t last) {
  index_t const work = row_block_work(p);
  if (work == 0) return {};
  auto const row = [&](index_t unit) {
    index_t const at = unit <= 0 ? 0 : (unit + work - 1) / work * packed_rows;
    return at < p.w.out ? at : p.w.out;
  };
  return {row(first), row(last)};
}

template <class Product, class Activations>
GPTQ_INLINE fault find_group_fault(Product const& p, Activations const& x) {
  if (p.tokens.first < 0 || p.tokens.last > x.tokens) return fault::tokens;
  return p.tokens.first < p.tokens.last ? find_fault(p.w, x) : fault::none;
}

/// A step that takes the number of its product, or one that does not.
template <class Step>
struct product_step {
  index_t product;
  Step const& step;

  GPTQ_INLINE void operator()(float* values, index_t token, index_t row, index_t count) const noexcept {
    if constexpr (std::is_invocable_v<Step const&, index_t, float*, index_t, index_t, index_t>) {
      step(product, values, token, row, count);
    } else {
      step(values, token, row, count);
    }
  }
};
template <class Step>
GPTQ_INLINE product_step<Step> step_for(index_t product, Step const& step) {
  return {product, step};
}

GPTQ_INLINE fault sort_by_expert(std::int32_t const* expert_ids, index_t count, int experts,
                                 std::int32_t* entries, std::int32_t* first) {
  for (index_t i = 0; i < count; ++i) {
    if (expert_ids[i] < 0 || expert_ids[i] >= experts) return fault::expert;
  }
  for (int e = 0; e <= experts; ++e) first[e] = 0;
  for (index_t i = 0; i < count; ++i) ++first[expert_ids[i] + 1];
  for (int e = 0; e < experts; ++e) first[e + 1] += first[e];
  // first[e] walks to the end of its expert, which is the beginning of the next, and is put back.
  for (index_t i = 0; i < count; ++i) entries[first[expert_ids[i]]++] = static_cast<std::int32_t>(i);
  for (int e = experts; e > 0; --e) first[e] = first[e - 1];
  first[0] = 0;
  return fault::none;
}

}  // namespace gptq::detail
