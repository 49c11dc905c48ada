// Products in slabs, some row blocks times some tokens, small enough to stay in the cache for what is done to them
// next. (epilogue.hpp.)
#pragma once

#include <type_traits>

#include <gptq/activations.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/rows.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

/// Rows of a slab, at most: of one token, and of more, which share an unpacked panel. 4 and 32 KiB of floats.
inline constexpr index_t single_slab_rows = 1024;
inline constexpr index_t slab_rows_of_many = 64;

/// The row blocks of a matrix from row `first` on, a multiple of packed_rows.
template <storage_format Format>
GPTQ_INLINE packed_view<Format> rows_from(packed_view<Format> w, index_t first) {
  auto const layout = w.layout();
  index_t const block = first / packed_rows;
  w.codes += layout.code_offset(block, 0);
  w.scales += layout.scale_offset(block, 0);
  if constexpr (Format::has_zero_point) w.zeros += layout.zero_offset(block, 0);
  w.out -= first;
  return w;
}

/// Calls f(tokens, first, rows) for each slab: rows.first..rows.last-1, counted from row `first`, a multiple of
/// packed_rows.
template <class F>
GPTQ_INLINE void for_each_slab(index_t tokens, row_range rows, F&& f) {
  index_t const height = tokens == 1 ? single_slab_rows : slab_rows_of_many;
  for (index_t token = 0; token < tokens; token += panel_tokens) {
    index_t const last = token + panel_tokens < tokens ? token + panel_tokens : tokens;
    for (index_t first = rows.first / packed_rows * packed_rows; first < rows.last; first += height) {
      index_t const from = rows.first > first ? rows.first - first : 0;
      index_t const to = rows.last - first < height ? rows.last - first : height;
      f(token_range{token, last}, first, row_range{from, to});
    }
  }
}

/// Steps done to a slab, slab[token - tokens.first, row], `height` apart, and stored. Each step by itself: no compiler
/// makes a fused multiply-add of two.
template <class Output, class... Steps>
GPTQ_INLINE void finish_slab(float* slab, index_t height, token_range tokens, index_t first, row_range rows,
                             Output const& y, index_t out, Steps const&... steps) {
  index_t const stride = y.stride != 0 ? y.stride : out;
  index_t const count = rows.last - rows.first;
  for (index_t token = tokens.first; token < tokens.last; ++token) {
    float* const values = slab + (token - tokens.first) * height + rows.first;
    (steps(values, token, first + rows.first, count), ...);
    auto* const to = y.data + token * stride + first + rows.first;
    using type = std::remove_reference_t<decltype(*to)>;
    for (index_t i = 0; i < count; ++i) to[i] = static_cast<type>(values[i]);
  }
}

template <class Isa, precision Precision, storage_format Format>
GPTQ_INLINE void product_slab(packed_view<Format> const& w, index_t first, activations<Precision> const& x,
                              token_range tokens, float* slab, index_t height, row_range rows) {
  if (x.tokens == 1) {
    gemv_rows<Isa>(rows_from(w, first), x, slab, rows);
  } else {
    gemm_rows<Isa>(rows_from(w, first), x, tokens, slab, height, rows);
  }
}

inline constexpr index_t slab_floats = slab_rows_of_many * panel_tokens;
static_assert(slab_floats >= single_slab_rows);

template <class Isa, precision Precision, storage_format Format, class Output, class... Steps>
GPTQ_INLINE void slab_rows(packed_view<Format> const& w, activations<Precision> const& x, Output const& y,
                           row_range rows, Steps const&... steps) {
  alignas(64) float slab[slab_floats];
  index_t const height = x.tokens == 1 ? single_slab_rows : slab_rows_of_many;
  for_each_slab(x.tokens, rows, [&](token_range tokens, index_t first, row_range some) {
    product_slab<Isa>(w, first, x, tokens, slab, height, some);
    finish_slab(slab, height, tokens, first, some, y, w.out, steps...);
  });
}

template <class Isa, precision Precision, storage_format Format, class Output, class Activation,
          class... Steps>
GPTQ_INLINE void gated_slab_rows(packed_view<Format> const& gate, packed_view<Format> const& up,
                                 activations<Precision> const& x, Output const& y, row_range rows,
                                 Activation const& activation, Steps const&... steps) {
  alignas(64) float slab[slab_floats];
  alignas(64) float factors[slab_floats];
  index_t const height = x.tokens == 1 ? single_slab_rows : slab_rows_of_many;
  for_each_slab(x.tokens, rows, [&](token_range tokens, index_t first, row_range some) {
    product_slab<Isa>(gate, first, x, tokens, slab, height, some);
    product_slab<Isa>(up, first, x, tokens, factors, height, some);
    auto const multiply = [&](float* v, index_t token, index_t row, index_t count) {
      float const* const factor = factors + (token - tokens.first) * height + (row - first);
      for (index_t i = 0; i < count; ++i) v[i] *= factor[i];
    };
    finish_slab(slab, height, tokens, first, some, y, gate.out, activation, multiply, steps...);
  });
}

}  // namespace gptq::detail
