// Formats as values, and the way from such values (a configuration file's) to a format type.
//
//   gptq::format_spec const spec{.scheme = "symmetric", .bits = 4, .group_size = 128};
//   gptq::with_format(spec, []<class Format>() { run<Format>(); });          // of gptq::default_formats
//
//   using four_or_eight = gptq::bit_widths<4, 8>;                              // or of those that you need,
//   using few = gptq::combinations<gptq::schemes<gptq::symmetric>, four_or_eight, gptq::group_sizes<128>>;
//   gptq::with_format<few>({"symmetric", 4, 128}, []<class Format>() { run<Format>(); });  // for all are compiled
//
// gemv, gemm and prepare of a format take one to two seconds to compile for an ISA, and some 25 kB. Formats of the
// same width, scale type and kind of zero point (2^(bits-1), another constant, stored), and of groups of 128 columns
// and more, share their kernels.
#pragma once

#include <string>
#include <string_view>

#include <gptq/format.hpp>
#include <gptq/formats/combinations.hpp>
#include <gptq/formats/find.hpp>

namespace gptq {

/// A format as values.
struct format_spec {
  std::string
      scheme;  ///< a scheme's name: "asymmetric", "symmetric", "fixed_zero", "half_step", "e2m1", or your own
  int bits = 4;
  int group_size = 128;  ///< or whole_row
  scale_type scales = scale_type::float16;

  bool operator==(format_spec const&) const = default;
};

/// "symmetric, 4 bits, groups of 128, float16 scales".
inline std::string to_string(format_spec const& spec) {
  return spec.scheme + ", " + std::to_string(spec.bits) + " bits, " +
         (spec.group_size == whole_row ? std::string("one group a row")
                                       : "groups of " + std::to_string(spec.group_size)) +
         ", " + std::string(to_string(spec.scales)) + " scales";
}

/// The values of a format type.
template <storage_format Format>
format_spec to_spec() {
  return {std::string(std::string_view(Format::scheme::name)), Format::bits, Format::group_size,
          Format::scales};
}

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
decltype(auto) with_format(format_spec const& spec, F&& f) {
  return detail::find_format<List>(spec, f, List{});
}

}  // namespace gptq
