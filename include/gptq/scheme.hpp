// What a code means. A stored code q of b bits (0 <= q < 2^b) decodes to
//
//   weight = scale * (q - zero)
//
// with one scale for a group of columns of a row. A scheme says which codes are used and what zero is, the code
// that stands for 0: each group stores one (asymmetric), or the scheme fixes it, on a code or half way between two.
//
//   scheme      codes used  zero             levels q - zero                    known as
//   asymmetric  0..2^b-1    stored, a code   -zero .. 2^b-1-zero                GPTQ's default, GGUF Q4_1
//   symmetric   1..2^b-1    2^(b-1)          -(2^(b-1)-1) .. 2^(b-1)-1          -7..7, "remove-zp"
//   fixed_zero  0..2^b-1    2^(b-1)          -2^(b-1) .. 2^(b-1)-1              "sym": true, GGUF Q4_0
//   half_step   0..2^b-1    2^(b-1) - 1/2    -(2^(b-1)-1/2) .. 2^(b-1)-1/2      "use-fixed-zp": floor, not round
//
// ("remove-zp" and "use-fixed-zp" are branches of GPTQ-for-LLaMa.)
//
// A scheme of your own is one struct with the same members (see the concept below); nothing is registered:
//
//   struct ternary {
//     static constexpr std::string_view name = "ternary";
//     static constexpr bool has_zero_point = false;
//     static constexpr int min_code(int) { return 0; }
//     static constexpr int max_code(int) { return 2; }
//     static constexpr float zero_point(int) { return 1.0F; }
//   };
//   using t2 = gptq::format<ternary, 2, 64>;  // format.hpp
//
// examples/03_custom_scheme.cpp goes on from there.
#pragma once

#include <concepts>
#include <string_view>

#include <gptq/config.hpp>
#include <gptq/grids/rounding.hpp>

namespace gptq {

/// Scale and zero point of one group. `zero` is a code; schemes without a stored zero point ignore it.
struct grid {
  float scale = 1.0F;
  int zero = 0;
};

/// The type that scales are stored in.
enum class scale_type { float16, float32 };

/// What a struct must offer to be a scheme: a name, the codes in use at a width, and where the zero lies.
/// `zero_point(bits)` is needed only without a stored zero point; it is a multiple of 1/2, strictly between
/// the lowest and the highest code.
///
/// Optionally `static grid find_grid(std::span<float const> weights, int bits)`: the scheme's own way to find
/// a group's scale, used as its `grid_rule::published` (grid.hpp); the mse search leaves it alone.
template <class Scheme>
concept quantization_scheme = requires(int bits) {
  { Scheme::name } -> std::convertible_to<std::string_view>;
  { Scheme::has_zero_point } -> std::convertible_to<bool>;
  { Scheme::min_code(bits) } -> std::same_as<int>;
  { Scheme::max_code(bits) } -> std::same_as<int>;
  requires Scheme::has_zero_point || requires {
    { Scheme::zero_point(bits) } -> std::same_as<float>;
  };
};

/// A zero point for each group, stored as a code: 0 <= zero < 2^bits.
struct asymmetric {
  static constexpr std::string_view name = "asymmetric";
  static constexpr bool has_zero_point = true;
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int bits) { return (1 << bits) - 1; }
};

/// Levels -(2^(b-1)-1)..2^(b-1)-1; the lowest code is not used.
struct symmetric {
  static constexpr std::string_view name = "symmetric";
  static constexpr bool has_zero_point = false;
  static constexpr int min_code(int /*bits*/) { return 1; }
  static constexpr int max_code(int bits) { return (1 << bits) - 1; }
  static constexpr float zero_point(int bits) { return static_cast<float>(1 << (bits - 1)); }
};

/// Levels -2^(b-1)..2^(b-1)-1. A negative scale is allowed: it turns the longer side up.
struct fixed_zero {
  static constexpr std::string_view name = "fixed_zero";
  static constexpr bool has_zero_point = false;
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int bits) { return (1 << bits) - 1; }
  static constexpr float zero_point(int bits) { return static_cast<float>(1 << (bits - 1)); }
};

/// Levels q + 1/2 for q in -2^(b-1)..2^(b-1)-1: as many on either side of zero, and none at zero.
struct half_step {
  static constexpr std::string_view name = "half_step";
  static constexpr bool has_zero_point = false;
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int bits) { return (1 << bits) - 1; }
  static constexpr float zero_point(int bits) { return static_cast<float>(1 << (bits - 1)) - 0.5F; }
};

/// The levels of a scheme at a width, as values: what the solver and the reference work with.
struct code_levels {
  int min_code;
  int max_code;
  bool has_zero_point;  ///< each group stores its own
  float zero;           ///< the constant zero point; 0 where each group stores its own

  /// Whether the zero lies between two codes, so that no level is exactly zero.
  GPTQ_HOST_DEVICE constexpr bool is_half_step() const {
    return zero != static_cast<float>(static_cast<int>(zero));
  }
  /// The zero point of a group.
  GPTQ_HOST_DEVICE constexpr float zero_point(grid g) const {
    return has_zero_point ? static_cast<float>(g.zero) : zero;
  }
  /// The weight that `code` stands for.
  GPTQ_HOST_DEVICE constexpr float decode(int code, grid g) const {
    return g.scale * (static_cast<float>(code) - zero_point(g));
  }
  /// The code of the level nearest to the finite `weight`: weight / scale (a division, as in the published
  /// code, never a product with a reciprocal) rounded half to even for whole zeros, down for half-integer
  /// ones, and clamped to the codes in use. A scale of 0 decodes to 0 whatever the code is.
  GPTQ_HOST_DEVICE constexpr int encode(float weight, grid g) const {
    auto const nearest = is_half_step() ? detail::nearest_code<true> : detail::nearest_code<false>;
    return static_cast<int>(nearest(weight, detail::safe_divisor(g.scale), zero_point(g),
                                    static_cast<float>(min_code), static_cast<float>(max_code)));
  }
};

/// The levels of `Scheme` at `bits` bits.
template <quantization_scheme Scheme>
constexpr code_levels scheme_levels(int bits) {
  if constexpr (Scheme::has_zero_point) {
    return {Scheme::min_code(bits), Scheme::max_code(bits), true, 0.0F};
  } else {
    return {Scheme::min_code(bits), Scheme::max_code(bits), false, Scheme::zero_point(bits)};
  }
}

}  // namespace gptq
