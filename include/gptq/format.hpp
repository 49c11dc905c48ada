// The storage format of a packed matrix as a type. Everything that kernels know at compile time follows from it.
//
//   using q4 = gptq::format<gptq::symmetric, 4, 128>;                  // 4 bits, a scale for 128 columns
//   using q8 = gptq::format<gptq::asymmetric, 8, gptq::whole_row>;     // a scale and a zero point a row
//   static_assert(q4::levels.decode(15, {.scale = 0.5F}) == 3.5F);     // what a code is worth: scheme.hpp
//
// format_spec.hpp has formats as values and the way from values, a configuration file's say, to a type.
#pragma once

#include <type_traits>

#include <gptq/config.hpp>
#include <gptq/float16.hpp>
#include <gptq/float8.hpp>
#include <gptq/scheme.hpp>

namespace gptq {

/// The group size that stands for one group a row.
inline constexpr int whole_row = -1;

namespace detail {
template <class T>
inline constexpr bool is_scale = false;
template <>
inline constexpr bool is_scale<float16> = true;
template <>
inline constexpr bool is_scale<float> = true;
template <>
inline constexpr bool is_scale<e8m0> = true;
template <>
inline constexpr bool is_scale<e4m3> = true;

template <class Scale>
inline constexpr scale_type type_of_scale = std::is_same_v<Scale, float16> ? scale_type::float16
                                            : std::is_same_v<Scale, float> ? scale_type::float32
                                            : std::is_same_v<Scale, e8m0>  ? scale_type::e8m0
                                                                           : scale_type::e4m3;
}  // namespace detail

/// What a packed matrix holds.
/// @tparam Scheme     what a code means (scheme.hpp)
/// @tparam Bits       width of a code: 2, 3, 4 or 8; of a code book's 2, 3 or 4
/// @tparam GroupSize  columns that share a scale: a positive multiple of 8, or whole_row
/// @tparam Scale      how scales are stored: float16, float, e8m0, or e4m3, which are multiples of a float a matrix
template <quantization_scheme Scheme, int Bits, int GroupSize, class Scale = float16>
struct format {
  static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8, "gptq::format: Bits must be 2, 3, 4 or 8");
  static_assert(GroupSize == whole_row || (GroupSize > 0 && GroupSize % 8 == 0),
                "gptq::format: GroupSize must be a positive multiple of 8, or gptq::whole_row");
  static_assert(detail::is_scale<Scale>,
                "gptq::format: Scale must be gptq::float16, float, gptq::e8m0 or gptq::e4m3");

  using scheme = Scheme;
  using scale = Scale;
  static constexpr int bits = Bits;
  static constexpr int group_size = GroupSize;
  static constexpr code_levels levels = scheme_levels<Scheme>(Bits);
  static constexpr bool has_zero_point = levels.has_zero_point;
  static constexpr bool is_code_book = levels.is_code_book();
  static constexpr scale_type scales = detail::type_of_scale<Scale>;
  /// Whether scales are multiples of a float a matrix (quantized_layer::matrix_scale).
  static constexpr bool has_matrix_scale = scales == scale_type::e4m3;

  static_assert(0 <= levels.min_code && levels.min_code < levels.max_code && levels.max_code < (1 << Bits),
                "gptq::format: the scheme's codes do not fit into Bits bits");
  static_assert(has_zero_point || 2 * levels.zero == static_cast<float>(static_cast<int>(2 * levels.zero)),
                "gptq::format: the scheme's zero point must be a multiple of 1/2");
  static_assert(has_zero_point || is_code_book ||
                    (static_cast<float>(levels.min_code) < levels.zero &&
                     levels.zero < static_cast<float>(levels.max_code)),
                "gptq::format: the scheme's zero point must lie between its lowest and its highest code");
  static_assert(!is_code_book || Bits <= 4, "gptq::format: a code book has codes of 2, 3 or 4 bits");
  static_assert(!is_code_book ||
                    (levels.lowest() >= -127.0F && levels.lowest() < 0.0F && levels.highest() > 0.0F),
                "gptq::format: a code book's levels must lie between -127 and 127, on both sides of zero");
  static_assert(scales != scale_type::e8m0 || levels.least() == 0.0F,
                "gptq::format: powers of two, scales that are never 0, need a scheme with a level 0");

  /// Columns a group of a row of `in` columns; the last group may have fewer.
  GPTQ_INLINE GPTQ_HOST_DEVICE static constexpr index_t group_columns(index_t in) {
    return GroupSize == whole_row ? in : index_t{GroupSize};
  }
  /// Groups a row of `in` columns.
  GPTQ_INLINE GPTQ_HOST_DEVICE static constexpr index_t groups(index_t in) {
    return in == 0 ? 0 : (in + group_columns(in) - 1) / group_columns(in);
  }
};

namespace detail {
template <class T>
inline constexpr bool is_format = false;
template <class Scheme, int Bits, int GroupSize, class Scale>
inline constexpr bool is_format<format<Scheme, Bits, GroupSize, Scale>> = true;
}  // namespace detail

/// Any gptq::format.
template <class T>
concept storage_format = detail::is_format<T>;

/// The formats that a program wants compiled in.
template <storage_format... Formats>
struct format_list {};

template <quantization_scheme... Schemes>
struct schemes {};
template <int... Bits>
struct bit_widths {};
template <int... GroupSizes>
struct group_sizes {};
template <class... Scales>
struct scale_types {};

}  // namespace gptq
