// Code books that files and hardware use, and formats made of them. scheme.hpp says how to write your own.
//
//   gptq::quantized_layer<gptq::mxfp4> layer;           // what a quantizer makes of a weight: quantize.hpp
//   using nf4 = gptq::format<gptq::nf4_levels, 4, 64>;  // or any width, group size and type of scales
//   static_assert(gptq::mxfp4::levels.decode(7, {.scale = 0.5F}) == 6.0F);
//
//   code book       levels                                                        known as
//   e2m1_levels     0 1 2 3 4 6 8 12 and their negatives: FP4's values twice over   MXFP4, NVFP4
//   iq4_nl_levels   -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113       GGUF IQ4_NL, IQ4_XS
//   nf4_levels      -127 -88 -67 -50 -36 -23 -12 0 10 20 31 43 56 71 92 127         NF4, rounded to int8
//
// A scale of e2m1_levels is half of that of FP4's own values: 2^-k in a file is 2^-(k+1) here.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include <gptq/float8.hpp>
#include <gptq/format.hpp>

namespace gptq {

/// Twice the values of FP4, 0, 0.5, 1, 1.5, 2, 3, 4 and 6, codes 8 to 15 their negatives: OCP Microscaling Formats
/// (MX) Specification 1.0, 5.3.3. Code 8 is a second zero.
struct e2m1_levels {
  static constexpr std::string_view name = "e2m1";
  static constexpr std::array<std::int8_t, 16> levels(int /*bits*/) {
    return {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  }
};

/// The table of GGUF's non-linear types: kvalues_iq4nl of ggml. No level is zero; scales may be negative.
struct iq4_nl_levels {
  static constexpr std::string_view name = "iq4_nl";
  static constexpr std::array<std::int8_t, 16> levels(int /*bits*/) {
    return {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  }
};

/// Quantiles of the normal distribution, Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA", 2023, appendix E, times
/// 127 and rounded.
struct nf4_levels {
  static constexpr std::string_view name = "nf4";
  static constexpr std::array<std::int8_t, 16> levels(int /*bits*/) {
    return {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};
  }
};

/// FP4 in groups of 32 columns with powers of two as scales: 4.25 bits a weight.
using mxfp4 = format<e2m1_levels, 4, 32, e8m0>;

/// FP4 in groups of 16 columns with scales of type e4m3 and a float a matrix: 4.5 bits a weight.
using nvfp4 = format<e2m1_levels, 4, 16, e4m3>;

}  // namespace gptq
