// What a code means. A stored code q of b bits (0 <= q < 2^b) decodes to
//
//   weight = scale * (q - zero)
//
// with one scale for a group of columns of a row. A scheme says which codes are used and what zero is, the code
// that stands for 0: each group stores one (asymmetric), or the scheme fixes it, on a code or half way between two.
// Or it is a code book, a table of up to 16 levels, and weight = scale * level(q): code_books.hpp has some.
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
// examples/03_custom_scheme.cpp goes on from there. A code book of your own is one, too:
//
//   struct squares {
//     static constexpr std::string_view name = "squares";
//     static constexpr std::array<std::int8_t, 7> levels(int) { return {-9, -4, -1, 0, 1, 4, 9}; }
//   };
//   using s4 = gptq::format<squares, 4, 32>;
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>

#include <gptq/config.hpp>
#include <gptq/grids/code_levels.hpp>

namespace gptq {

/// The type that scales are stored in: float16.hpp, float, and those of float8.hpp. Scales of type e4m3 have few
/// exponents: they are multiples of one float a matrix.
enum class scale_type { float16, float32, e8m0, e4m3 };

/// "float16", and so on.
constexpr std::string_view to_string(scale_type type) {
  constexpr std::string_view names[] = {"float16", "float32", "e8m0", "e4m3"};
  return names[static_cast<int>(type)];
}

/// What a struct must offer to be a uniform scheme: a name, the codes in use at a width, and where the zero lies.
/// `zero_point(bits)` is needed only without a stored zero point; it is a multiple of 1/2, strictly between
/// the lowest and the highest code.
///
/// Optionally `static grid find_grid(std::span<float const> weights, int bits)`: the scheme's own way to find
/// a group's scale, used as its `grid_rule::published` (grid.hpp); the mse search leaves it alone.
template <class Scheme>
concept uniform_scheme = requires(int bits) {
  { Scheme::name } -> std::convertible_to<std::string_view>;
  { Scheme::has_zero_point } -> std::convertible_to<bool>;
  { Scheme::min_code(bits) } -> std::same_as<int>;
  { Scheme::max_code(bits) } -> std::same_as<int>;
  requires Scheme::has_zero_point || requires {
    { Scheme::zero_point(bits) } -> std::same_as<float>;
  };
};

/// What a struct must offer to be a code book: a name, and the levels of the codes 0, 1, ... at a width: an array of
/// at most 16 numbers between -127 and 127, in any order. Levels may repeat, as e2m1's two zeros do. Optionally
/// find_grid(), as above.
template <class Scheme>
concept code_book = !uniform_scheme<Scheme> && requires(int bits) {
  { Scheme::name } -> std::convertible_to<std::string_view>;
  { Scheme::levels(bits) } -> std::convertible_to<std::span<std::int8_t const>>;
};

/// Either of them.
template <class Scheme>
concept quantization_scheme = uniform_scheme<Scheme> || code_book<Scheme>;

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

namespace detail {
template <code_book Scheme, int Bits>
inline constexpr level_table levels_in_table = make_level_table(Scheme::levels(Bits));
}  // namespace detail

/// The levels of `Scheme` at `bits` bits: 2, 3, 4 or 8.
template <quantization_scheme Scheme>
constexpr code_levels scheme_levels(int bits) {
  if constexpr (code_book<Scheme>) {
    detail::level_table const* const table = bits == 2   ? &detail::levels_in_table<Scheme, 2>
                                             : bits == 3 ? &detail::levels_in_table<Scheme, 3>
                                             : bits == 4 ? &detail::levels_in_table<Scheme, 4>
                                                         : &detail::levels_in_table<Scheme, 8>;
    return {0, table->codes - 1, false, 0.0F, table};
  } else if constexpr (Scheme::has_zero_point) {
    return {Scheme::min_code(bits), Scheme::max_code(bits), true, 0.0F};
  } else {
    return {Scheme::min_code(bits), Scheme::max_code(bits), false, Scheme::zero_point(bits)};
  }
}

}  // namespace gptq
