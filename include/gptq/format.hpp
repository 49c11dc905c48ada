// A storage format as a type: scheme, bit width, group size, type of the scales; and the way from run-time
// values (a configuration file's) to such a type.
//
//   using q4 = gptq::format<gptq::symmetric, 4, 128>;
//
//   gptq::with_format({.scheme = "symmetric", .bits = 4, .group_size = 128},
//                     [&]<class Format>() { run<Format>(); });
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gptq/config.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/grid.hpp>
#include <gptq/scheme.hpp>

namespace gptq {

/// The group size that stands for one group a row.
inline constexpr int whole_row = -1;

/// What a packed matrix holds.
/// @tparam Scheme     what a code means (scheme.hpp)
/// @tparam Bits       width of a code: 2, 3, 4 or 8
/// @tparam GroupSize  columns that share a scale: a positive multiple of 8, or whole_row
/// @tparam Scale      how scales are stored: float16 or float
template <quantization_scheme Scheme, int Bits, int GroupSize, class Scale = float16>
struct format {
  static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8, "gptq::format: Bits must be 2, 3, 4 or 8");
  static_assert(GroupSize == whole_row || (GroupSize > 0 && GroupSize % 8 == 0),
                "gptq::format: GroupSize must be a positive multiple of 8, or gptq::whole_row");
  static_assert(std::is_same_v<Scale, float16> || std::is_same_v<Scale, float>,
                "gptq::format: Scale must be gptq::float16 or float");

  using scheme = Scheme;
  using scale = Scale;
  static constexpr int bits = Bits;
  static constexpr int group_size = GroupSize;
  static constexpr bool has_zero_point = Scheme::has_zero_point;
  static constexpr code_levels levels = levels_of<Scheme>(Bits);
  static constexpr scale_type scales =
      std::is_same_v<Scale, float16> ? scale_type::float16 : scale_type::float32;

  static_assert(0 <= levels.min_code && levels.min_code < levels.max_code && levels.max_code < (1 << Bits),
                "gptq::format: the scheme's codes do not fit into Bits bits");
  static_assert(has_zero_point || 2 * levels.zero == static_cast<float>(static_cast<int>(2 * levels.zero)),
                "gptq::format: the scheme's zero point must be a multiple of 1/2");
  static_assert(has_zero_point || (static_cast<float>(levels.min_code) < levels.zero &&
                                   levels.zero < static_cast<float>(levels.max_code)),
                "gptq::format: the scheme's zero point must lie between its lowest and its highest code");

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

/// A format as values.
struct format_spec {
  std::string scheme;  ///< a scheme's name: "asymmetric", "symmetric", "fixed_zero", "half_step", or your own
  int bits = 4;
  int group_size = 128;  ///< or whole_row
  scale_type scales = scale_type::float16;

  bool operator==(format_spec const&) const = default;
};

/// "symmetric, 4 bits, groups of 128, float16 scales".
std::string to_string(format_spec const& spec);

/// The values of a format type.
template <storage_format Format>
format_spec spec_of();

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

namespace detail {
template <class... Lists>
struct concatenation {
  using type = format_list<>;
};
template <class... Formats>
struct concatenation<format_list<Formats...>> {
  using type = format_list<Formats...>;
};
template <class... A, class... B, class... Lists>
struct concatenation<format_list<A...>, format_list<B...>, Lists...>
    : concatenation<format_list<A..., B...>, Lists...> {};

template <class Schemes, class Widths, class Groups, class Scales>
struct cross_product;
template <class... S, int... B, int... G, class... T>
struct cross_product<schemes<S...>, bit_widths<B...>, group_sizes<G...>, scale_types<T...>> {
  template <class Scheme, int Bits, int GroupSize>
  using over_scales = format_list<format<Scheme, Bits, GroupSize, T>...>;
  template <class Scheme, int Bits>
  using over_groups = typename concatenation<over_scales<Scheme, Bits, G>...>::type;
  template <class Scheme>
  using over_widths = typename concatenation<over_groups<Scheme, B>...>::type;
  using type = typename concatenation<over_widths<S>...>::type;
};
}  // namespace detail

/// Every combination of the given schemes, widths, group sizes and scale types, as a format_list.
template <class Schemes, class Widths, class Groups, class Scales = scale_types<float16>>
using combinations = typename detail::cross_product<Schemes, Widths, Groups, Scales>::type;

/// The library's own schemes at every width, groups of 32, 64, 128 and whole rows, float16 scales.
using default_formats = combinations<schemes<asymmetric, symmetric, fixed_zero, half_step>,
                                     bit_widths<2, 3, 4, 8>, group_sizes<32, 64, 128, whole_row>>;

/// Calls `f.template operator()<Format>()` with the format of `List` that `spec` names and returns its
/// result, which has the same type for all of them. Throws gptq::error, naming what is compiled in, when
/// there is none.
template <class List = default_formats, class F>
decltype(auto) with_format(format_spec const& spec, F&& f);

// ---- implementation -------------------------------------------------------------------------------------

inline std::string to_string(format_spec const& spec) {
  return spec.scheme + ", " + std::to_string(spec.bits) + " bits, " +
         (spec.group_size == whole_row ? std::string("one group a row")
                                       : "groups of " + std::to_string(spec.group_size)) +
         ", " + (spec.scales == scale_type::float16 ? "float16" : "float32") + " scales";
}

template <storage_format Format>
format_spec spec_of() {
  return {std::string(std::string_view(Format::scheme::name)), Format::bits, Format::group_size,
          Format::scales};
}

namespace detail {

template <class... Formats>
[[noreturn]] void throw_not_compiled_in(format_spec const& spec, format_list<Formats...>) {
  std::vector<std::string> names, widths, groups, scales;
  auto const note = [](std::vector<std::string>& seen, std::string value) {
    if (std::find(seen.begin(), seen.end(), value) == seen.end()) seen.push_back(std::move(value));
  };
  (
      [&] {
        note(names, std::string(std::string_view(Formats::scheme::name)));
        note(widths, std::to_string(Formats::bits));
        note(groups, std::to_string(Formats::group_size));
        note(scales, Formats::scales == scale_type::float16 ? "float16" : "float32");
      }(),
      ...);
  auto const join = [](std::vector<std::string> const& values) {
    std::string all;
    for (auto const& value : values) all += (all.empty() ? "" : ", ") + value;
    return all;
  };
  throw error("format (" + to_string(spec) + ") is not compiled into this program; it has schemes " +
              join(names) + "; bits " + join(widths) + "; group sizes " + join(groups) + "; scales " +
              join(scales) +
              (sizeof...(Formats) < names.size() * widths.size() * groups.size() * scales.size()
                   ? " (not in every combination)"
                   : ""));
}

template <class All, class F, class First, class... Rest>
decltype(auto) find_format(format_spec const& spec, F& f, format_list<First, Rest...>) {
  if (std::string_view(First::scheme::name) == spec.scheme && First::bits == spec.bits &&
      First::group_size == spec.group_size && First::scales == spec.scales) {
    return f.template operator()<First>();
  }
  if constexpr (sizeof...(Rest) == 0) {
    throw_not_compiled_in(spec, All{});
  } else {
    return find_format<All>(spec, f, format_list<Rest...>{});
  }
}

}  // namespace detail

template <class List, class F>
decltype(auto) with_format(format_spec const& spec, F&& f) {
  return detail::find_format<List>(spec, f, List{});
}

}  // namespace gptq
