// What of the C interface is compiled for each ISA, as a table of functions: kernels.cpp is all of them.
#pragma once

#include <gptq/activations.hpp>
#include <gptq/format.hpp>
#include <gptq/formats/combinations.hpp>
#include <gptq/gptq.h>
#include <gptq/layout.hpp>

namespace gptq::c_interface {

/// GPTQ_WHOLE_ROW, as CMakeLists.txt spells it.
inline constexpr int row = whole_row;
static_assert(whole_row == GPTQ_WHOLE_ROW);

/// The formats that cmake/c.cmake was told of.
using formats = detail::cross_product<schemes<GPTQ_C_SCHEMES>, bit_widths<GPTQ_C_BITS>,
                                      group_sizes<GPTQ_C_GROUP_SIZES>, scale_types<float16>>::type;

template <class List>
inline constexpr int format_count = 0;
template <class... Formats>
inline constexpr int format_count<format_list<Formats...>> = sizeof...(Formats);

using int8_activations = activations<precision::int8>;

/// Some rows, counted from row `first`, a multiple of 32, times some tokens: y[token - tokens.first, row].
using product = void (*)(gptq_matrix const& w, index_t first, int8_activations const& x, token_range tokens,
                         float* y, index_t stride, row_range rows) noexcept;

struct kernels {
  char const* isa;
  void (*prepare)(int8_activations const& a, gptq_input const& x, std::int32_t const* order,
                  token_range share) noexcept;
  product products[format_count<formats>];
  void (*multiply_add)(product multiply, gptq_matrix const& w, int8_activations const& x,
                       gptq_output const& y, row_range rows, gptq_epilogue const& epilogue) noexcept;
};

/// The table for one ISA.
template <class Isa>
kernels const& kernels_for() noexcept;

template <storage_format Format>
GPTQ_INLINE packed_view<Format> view(gptq_matrix const& w) {
  return {w.codes, static_cast<typename Format::scale const*>(w.scales), w.zeros, w.order, w.rows, w.columns};
}

}  // namespace gptq::c_interface
