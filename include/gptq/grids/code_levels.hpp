// The levels of any scheme as values, and what a code of them is worth.
#pragma once

#include <gptq/config.hpp>
#include <gptq/grids/level_table.hpp>
#include <gptq/grids/rounding.hpp>

namespace gptq {

/// Scale and zero point of one group. `zero` is a code; schemes without a stored zero point ignore it.
struct grid {
  float scale = 1.0F;
  int zero = 0;
};

/// The levels of a scheme at a width, as values: what the solver and the reference work with.
struct code_levels {
  int min_code;
  int max_code;
  bool has_zero_point;  ///< each group stores its own
  float zero;           ///< the constant zero point; 0 where each group stores its own, and for a code book
  detail::level_table const* table = nullptr;  ///< a code book's levels

  GPTQ_HOST_DEVICE constexpr bool is_code_book() const {
#if defined(__CUDA_ARCH__)
    if (!__builtin_is_constant_evaluated()) return false;  // refused before there
#endif
    return table != nullptr;
  }
  /// Whether the zero lies between two codes, so that no level is exactly zero.
  GPTQ_HOST_DEVICE constexpr bool is_half_step() const {
    return zero != static_cast<float>(static_cast<int>(zero));
  }
  /// The zero point of a group.
  GPTQ_HOST_DEVICE constexpr float zero_point(grid g) const {
    return has_zero_point ? static_cast<float>(g.zero) : zero;
  }
  /// The lowest and the highest level, where groups store no zero points.
  GPTQ_HOST_DEVICE constexpr float lowest() const {
    return is_code_book() ? table->ascending[0] : static_cast<float>(min_code) - zero;
  }
  GPTQ_HOST_DEVICE constexpr float highest() const {
    return is_code_book() ? table->highest() : static_cast<float>(max_code) - zero;
  }
  /// The least magnitude of a level: 0 for most, 1/2 of a half step.
  GPTQ_HOST_DEVICE constexpr float least() const {
    return is_code_book() ? table->least() : is_half_step() ? 0.5F : 0.0F;
  }
  /// Whether there are levels without their negatives, so that a scale's sign makes a difference.
  GPTQ_HOST_DEVICE constexpr bool is_lopsided() const {
    if (is_code_book()) return table->is_lopsided();
    return !has_zero_point && static_cast<float>(min_code + max_code) != 2.0F * zero;
  }
  /// What `code` is multiplied by the scale as.
  GPTQ_HOST_DEVICE constexpr float level(int code, grid g) const {
    if (is_code_book()) return static_cast<float>(table->of_code[code]);
    return static_cast<float>(code) - zero_point(g);
  }
  /// The weight that `code` stands for.
  GPTQ_HOST_DEVICE constexpr float decode(int code, grid g) const { return g.scale * level(code, g); }
  /// The code of the level nearest to the finite `weight`: weight / scale (a division, as in the published
  /// code, never a product with a reciprocal) rounded half to even for whole zeros, down for half-integer
  /// ones, and clamped to the codes in use; of a code book's levels, a tie goes to the one nearer to zero. A scale
  /// of 0 decodes to 0 whatever the code is.
  GPTQ_HOST_DEVICE constexpr int encode(float weight, grid g) const {
    if (is_code_book()) return table->code(table->nearest(weight / detail::safe_divisor(g.scale)));
    auto const nearest = is_half_step() ? detail::nearest_code<true> : detail::nearest_code<false>;
    return static_cast<int>(nearest(weight, detail::safe_divisor(g.scale), zero_point(g),
                                    static_cast<float>(min_code), static_cast<float>(max_code)));
  }
};

}  // namespace gptq
