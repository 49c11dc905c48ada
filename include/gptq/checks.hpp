// Whether memory and arguments are what kernels take for granted: as values, without exceptions, strings or the
// C++ runtime library. packed.hpp has check(view), which throws what find_fault() finds.
//
//   gptq::packed_view<q4> view;                                               // of a mapped file, say
//   gptq::fault what = gptq::make_view(view, out, in, code_bytes, scale_values);  // sizes alone, at once
//   if (what == gptq::fault::none) what = gptq::find_fault(view).what;        // contents: reads scales and order
//   if (what != gptq::fault::none) std::puts(gptq::message(what));
//
// With activations of another matrix, or of several tokens for gemv, kernels would compute wrong results and
// nobody would notice. So gemv() and gemm() check their arguments in debug builds (without NDEBUG), and stop the
// program with such a message. checked_gemv() of gemv.hpp and checked_gemm() of gemm.hpp check them in all builds,
// and return what is wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <span>

#include <gptq/activations.hpp>
#include <gptq/layout.hpp>
#include <gptq/layout/permutation.hpp>

namespace gptq {

/// What can be wrong.
enum class fault {
  none,
  shape,             ///< negative, or 2^31 rows or columns and more
  no_codes,          ///< null
  no_scales,         ///< null
  no_zeros,          ///< null, with a stored zero point
  few_codes,         ///< fewer bytes than layout().code_bytes()
  few_scales,        ///< fewer than layout().scale_count()
  few_zeros,         ///< fewer bytes than layout().zero_bytes()
  order_size,        ///< neither none nor `in` columns
  scale_alignment,   ///< scales at no multiple of their size
  order_alignment,   ///< the column order at no multiple of 4
  order,             ///< no permutation of the columns
  scale_value,       ///< infinite or NaN
  no_memory,         ///< for looking at the order: `in` bytes
  other_columns,     ///< activations of a matrix with another number of columns
  other_groups,      ///< of another group size
  other_order,       ///< of another column order
  number_of_tokens,  ///< gemv: activations of more or fewer tokens than one
  rows,              ///< a range that is not one of the matrix
  few_outputs,       ///< y has no room
  no_packed_file,    ///< bytes that packed_file.hpp does not describe
  file_version,      ///< of a later version, or another layout version
  other_format,      ///< of another format than the one asked for
  file_size,         ///< fewer bytes than the header says, or a header that contradicts itself
  checksum,          ///< bytes that have changed
  tokens,            ///< a range that is not one of the activations
  expert,            ///< grouped_gemm.hpp: an expert that is not there
  matrix_scale,      ///< neither positive nor finite
};

/// "activations of a matrix with another number of columns", and so on.
GPTQ_INLINE constexpr char const* message(fault what) {
  constexpr char const* messages[] = {
      "nothing is wrong",
      "a shape that is negative, or of 2^31 rows or columns and more",
      "no codes",
      "no scales",
      "no zero points",
      "fewer codes than the shape needs",
      "fewer scales than the shape needs",
      "fewer zero points than the shape needs",
      "a column order of another size",
      "scales at an address that is no multiple of their size",
      "a column order at an address that is no multiple of 4",
      "a column order that is no permutation",
      "a scale that is not finite",
      "no memory to look at the column order",
      "activations of a matrix with another number of columns",
      "activations of a matrix with another group size",
      "activations of a matrix with another column order",
      "activations of more or fewer tokens than one",
      "rows that the matrix does not have",
      "no room for the results",
      "no packed matrix",
      "a packed matrix of another version",
      "a packed matrix of another format",
      "fewer bytes than a packed matrix of that size has",
      "a packed matrix whose bytes have changed",
      "tokens that the activations do not have",
      "an expert that is not there",
      "a matrix scale that is no positive number",
  };
  return messages[static_cast<int>(what)];
}

/// A fault and where it is: the row and group of a scale, or the position of a column in the order; otherwise -1.
struct located_fault {
  fault what = fault::none;
  index_t row = -1;
  index_t group = -1;
  index_t position = -1;
};

/// A view of `out` rows and `in` columns in memory of known size, which may be larger than needed. On a fault the
/// view is left alone. Takes no time: find_fault() looks at what is there.
template <storage_format Format>
fault make_view(packed_view<Format>& view, index_t out, index_t in, std::span<std::uint8_t const> codes,
                std::span<typename Format::scale const> scales, std::span<std::uint8_t const> zeros = {},
                std::span<std::int32_t const> order = {},
                detail::matrix_scale_of<Format> matrix_scale = {}) noexcept {
  constexpr index_t limit = std::numeric_limits<std::int32_t>::max();
  if (out < 0 || in < 0 || out > limit || in > limit) return fault::shape;
  packed_layout<Format> const layout{out, in};
  if (codes.size() < static_cast<std::size_t>(layout.code_bytes())) return fault::few_codes;
  if (scales.size() < static_cast<std::size_t>(layout.scale_count())) return fault::few_scales;
  if (zeros.size() < static_cast<std::size_t>(layout.zero_bytes())) return fault::few_zeros;
  if (!order.empty() && order.size() != static_cast<std::size_t>(in)) return fault::order_size;
  view = {codes.data(),
          scales.data(),
          Format::has_zero_point ? zeros.data() : nullptr,
          order.empty() ? nullptr : order.data(),
          out,
          in,
          matrix_scale};
  return fault::none;
}

/// The first thing wrong with a view of memory that comes from elsewhere: pointers where there have to be, scales
/// aligned to their type and finite, order null or a permutation. That the memory is as large as layout() says
/// is for make_view() to know.
template <storage_format Format>
located_fault find_fault(packed_view<Format> const& view) noexcept {
  constexpr index_t limit = std::numeric_limits<std::int32_t>::max();
  if (view.out < 0 || view.in < 0 || view.out > limit || view.in > limit) return {fault::shape};
  if (view.out == 0 || view.in == 0) return {};
  if (view.codes == nullptr) return {fault::no_codes};
  if (view.scales == nullptr) return {fault::no_scales};
  if (Format::has_zero_point && view.zeros == nullptr) return {fault::no_zeros};
  constexpr auto off = [](auto const* p) {
    return reinterpret_cast<std::uintptr_t>(p) % alignof(decltype(*p));
  };
  if (off(view.scales) != 0) return {fault::scale_alignment};
  if (view.order != nullptr) {
    if (off(view.order) != 0) return {fault::order_alignment};
    index_t const position = detail::permutation_fault(view.order, view.in);
    if (position == detail::no_memory_for_it) return {fault::no_memory};
    if (position != detail::is_permutation) return {fault::order, -1, -1, position};
  }
  if constexpr (Format::has_matrix_scale) {
    if (!(view.matrix_scale > 0.0F && view.matrix_scale <= std::numeric_limits<float>::max())) {
      return {fault::matrix_scale};
    }
  }
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t group = 0; group < view.layout().groups(); ++group) {
      float const scale = view.grid(row, group).scale;
      if (!(scale - scale == 0.0F)) return {fault::scale_value, row, group};
    }
  }
  return {};
}

namespace detail {

/// What is wrong with activations `x` for a matrix of these columns and groups, and this column order.
template <precision Precision>
GPTQ_INLINE fault find_mismatch(chunk_layout w, std::int32_t const* order, activations<Precision> const& x) {
  if (x.chunks.in != w.in) return fault::other_columns;
  if (x.chunks.group_columns != w.group_columns) return fault::other_groups;
  if (x.order == order) return fault::none;
  if (x.order == nullptr || order == nullptr) return fault::other_order;
  for (index_t p = 0; p < w.in; ++p) {
    if (x.order[p] != order[p]) return fault::other_order;
  }
  return fault::none;
}

}  // namespace detail

/// What is wrong with activations for this matrix: they are of another one.
template <storage_format Format, precision Precision>
GPTQ_INLINE fault find_fault(packed_view<Format> const& w, activations<Precision> const& x) {
  return detail::find_mismatch({w.in, Format::group_columns(w.in)}, w.order, x);
}

namespace detail {

/// What is wrong with the arguments of gemm(), and of gemv() where `one_token`.
template <storage_format Format, precision Precision>
GPTQ_INLINE fault find_argument_fault(packed_view<Format> const& w, activations<Precision> const& x,
                                      row_range rows, bool one_token) {
  if (rows.first < 0 || rows.last > w.out) return fault::rows;
  if (one_token && x.tokens != 1) return fault::number_of_tokens;
  return find_fault(w, x);
}

/// In debug builds: stops the program where something is wrong.
GPTQ_INLINE void expect_none([[maybe_unused]] fault what, [[maybe_unused]] char const* function) {
#if !defined(NDEBUG)
  if (what != fault::none) {
    std::fprintf(stderr, "%s: %s\n", function, message(what));
    std::abort();
  }
#endif
}

}  // namespace detail
}  // namespace gptq
