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

/// Rows of a slab of so many tokens.
GPTQ_INLINE constexpr index_t slab_height(token_range tokens) {
  return tokens.last - tokens.first == 1 ? single_slab_rows : slab_rows_of_many;
}

/// Calls f(tokens, first, rows) for each slab: rows.first..rows.last-1, counted from row `first`, a multiple of
/// packed_rows.
template <class F>
GPTQ_INLINE void for_each_slab(token_range tokens, row_range rows, F&& f) {
  index_t const height = slab_height(tokens);
  for (index_t token = tokens.first; token < tokens.last; token += panel_tokens) {
    index_t const last = token + panel_tokens < tokens.last ? token + panel_tokens : tokens.last;
    for (index_t first = rows.first / packed_rows * packed_rows; first < rows.last; first += height) {
      index_t const from = rows.first > first ? rows.first - first : 0;
      index_t const to = rows.last - first < height ? rows.last - first : height;
      f(token_range{token, last}, first, row_range{from, to});
    }
  }
}

/// Steps done to a slab, slab[token - tokens.first, row], `height` apart, and stored in y, which has the results of
/// `first_token` at its beginning. Each step by itself: no compiler makes a fused multiply-add of two.
template <class Output, class... Steps>
GPTQ_INLINE void finish_slab(float* slab, index_t height, token_range tokens, index_t first, row_range rows,
                             Output const& y, index_t first_token, index_t out, Steps const&... steps) {
  index_t const stride = y.stride != 0 ? y.stride : out;
  index_t const count = rows.last - rows.first;
  for (index_t token = tokens.first; token < tokens.last; ++token) {
    float* const values = slab + (token - tokens.first) * height + rows.first;
    (steps(values, token, first + rows.first, count), ...);
    auto* const to = y.data + (token - first_token) * stride + first + rows.first;
    using type = std::remove_reference_t<decltype(*to)>;
    for (index_t i = 0; i < count; ++i) to[i] = static_cast<type>(values[i]);
  }
}

template <class Isa, precision Precision, storage_format Format>
GPTQ_INLINE void product_slab(packed_view<Format> const& w, index_t first, activations<Precision> const& x,
                              token_range tokens, float* slab, index_t height, row_range rows) {
  token_rows<Isa>(rows_from(w, first), x, tokens, slab, height, rows);
}

inline constexpr index_t slab_floats = slab_rows_of_many * panel_tokens;
static_assert(slab_floats >= single_slab_rows);

/// `rows` of some tokens; y has those of the first at its beginning.
template <class Isa, precision Precision, storage_format Format, class Output, class... Steps>
GPTQ_INLINE void slab_rows(packed_view<Format> const& w, activations<Precision> const& x, token_range range,
                           Output const& y, row_range rows, Steps const&... steps) {
  if constexpr (sizeof...(Steps) == 0 && std::is_same_v<decltype(y.data), float*>) {
    token_rows<Isa>(w, x, range, y.data, y.stride != 0 ? y.stride : w.out, rows);
  } else {
    alignas(64) float slab[slab_floats];
    index_t const height = slab_height(range);
    for_each_slab(range, rows, [&](token_range tokens, index_t first, row_range some) {
      product_slab<Isa>(w, first, x, tokens, slab, height, some);
      finish_slab(slab, height, tokens, first, some, y, range.first, w.out, steps...);
    });
  }
}

/// The same from x[in] as it is, rounded again for every slab: little work beside a thousand rows.
template <class Isa, precision Precision, storage_format Format, class T, class Output, class... Steps>
GPTQ_INLINE void raw_slab_rows(packed_view<Format> const& w, T const* x, Output const& y, row_range rows,
                               Steps const&... steps) {
  alignas(64) float slab[single_slab_rows];
  for_each_slab({0, 1}, rows, [&](token_range tokens, index_t first, row_range some) {
    auto const part = rows_from(w, first);
    if (w.in == 0) {
      zero_rows(slab, some);
    } else {
      gemv_raw_rows<kernel_for<Isa, Format, Precision>>(kernel_weights(part), w.order, x, slab, some);
    }
    finish_slab(slab, single_slab_rows, tokens, first, some, y, 0, w.out, steps...);
  });
}

template <class Isa, precision Precision, storage_format Format, class Output, class Activation,
          class... Steps>
GPTQ_INLINE void gated_slab_rows(packed_view<Format> const& gate, packed_view<Format> const& up,
                                 activations<Precision> const& x, token_range range, Output const& y,
                                 row_range rows, Activation const& activation, Steps const&... steps) {
  alignas(64) float slab[slab_floats];
  alignas(64) float factors[slab_floats];
  index_t const height = slab_height(range);
  for_each_slab(range, rows, [&](token_range tokens, index_t first, row_range some) {
    product_slab<Isa>(gate, first, x, tokens, slab, height, some);
    product_slab<Isa>(up, first, x, tokens, factors, height, some);
    auto const multiply = [&](float* v, index_t token, index_t row, index_t count) {
      float const* const factor = factors + (token - tokens.first) * height + (row - first);
      for (index_t i = 0; i < count; ++i) v[i] *= factor[i];
    };
    finish_slab(slab, height, tokens, first, some, y, range.first, gate.out, activation, multiply, steps...);
  });
}

}  // namespace gptq::detail
