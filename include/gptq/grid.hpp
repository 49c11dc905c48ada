// How a group's scale and zero point are found from its weights.
//
//   std::vector<float> const group{0.1F, -0.7F, 0.3F, 0.2F};             // the weights of one group
//   auto const levels = gptq::scheme_levels<gptq::symmetric>(4);
//   gptq::grid const g = gptq::find_grid(group, levels, {.mse = true});  // scale and zero point
//   int const code = levels.encode(group[0], g);                         // scheme.hpp
//
// The rules are those of the published implementations (GPTQ, GPTQ-for-LLaMa, GGUF); which codes a group may
// use is the scheme's business. Quality plain and reference use what a rule gives; fast and best start from it and
// search on (solver/grid_search.hpp).
#pragma once

#include <limits>
#include <span>
#include <string>

#include <gptq/error.hpp>
#include <gptq/grids/ranges.hpp>
#include <gptq/scheme.hpp>

namespace gptq {

/// How a group's scale is found. amax is the largest magnitude of the group. Top level: what is there on both sides.
///
///   rule          with a zero point                  without one
///   published     (max - min) / (codes - 1), zero    2 amax / (codes - 1): amax/7 for -7..7, amax/7.5 for
///                 included in the range;             the published "sym" and for half step
///                 zero = round(-min / scale)
///   amax          -                                  amax / top level: amax/7 for -7..7 and for -8..7
///   signed_amax   -                                  the weight of largest magnitude, sign included, on the
///                                                    level of largest magnitude: w/-8 for -8..7
///
/// For a code book, (codes - 1) is the highest level less the lowest. Scales of type e8m0 have no sign, so that
/// signed_amax is amax; and with these, published is what the OCP's Microscaling Formats do: the power of two below
/// amax over the one below the largest level, so that a part of the range may be clipped.
enum class grid_rule { published, amax, signed_amax };

/// Everything but the weights that decides a group's grid. Grids are rounded to `scales` before any weight is
/// quantized with them.
struct grid_options {
  grid_rule rule = grid_rule::published;
  /// Search 80 ranges shrunk by 0..79 % for the least sum of |error|^2.4 (the published "mse" option).
  bool mse = false;
  /// Repeat the published treatment of a group without negative weights in a scheme without a zero point: its
  /// scale is half of what its largest weight needs, so that 1.0 decodes to 0.467 at 4 bits. For comparisons.
  bool published_defects = false;
  scale_type scales = scale_type::float16;
  /// What scales of type e4m3 are multiples of, positive. quantize() chooses a power of two.
  float matrix_scale = 1.0F;

  /// A scale as it will be stored.
  GPTQ_HOST_DEVICE float stored(float scale) const {
    return detail::stored_scale(scale, scales, matrix_scale);
  }
};

/// Whether `rule` makes sense for these levels; throws gptq::error if not.
void check_grid_rule(grid_rule rule, code_levels const& levels);

/// The grid of one group. `weights` are finite. A group of zeros gets a grid that decodes to exact zeros.
grid find_grid(std::span<float const> weights, code_levels const& levels, grid_options const& options);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// The scale of type e8m0 for weights up to `amax`: powers of two over powers of two, or the least with which nothing
/// is clipped.
inline float scale_for_powers(float amax, code_levels const& levels, grid_rule rule) {
  float const top = levels.highest();
  float const bottom = -levels.lowest();
  if (rule == grid_rule::published) {
    return power_of_two_below(amax) / power_of_two_below(bottom > top ? bottom : top);
  }
  float const least = amax / (bottom < top ? bottom : top);
  float const below = power_of_two_below(least);
  return below < least ? 2.0F * below : below;
}

/// The grid that a rule gives for a range of weights.
GPTQ_HOST_DEVICE inline grid grid_for_range(range r, code_levels const& levels, grid_options const& options) {
  if (levels.has_zero_point) {
    auto const steps = static_cast<float>(levels.max_code - levels.min_code);
    float const scale = options.stored((r.high - r.low) / steps);
    // A range of a few of the smallest floats has no step left, and 0 / 0 is no zero point.
    float const steps_below = scale == 0.0F ? 0.0F : round_half_even(-r.low / scale);
    float const zero = static_cast<float>(levels.min_code) + steps_below;
    return {scale, static_cast<int>(clamp(zero, static_cast<float>(levels.min_code),
                                          static_cast<float>(levels.max_code)))};
  }
  float const amax = -r.low > r.high ? -r.low : r.high;
  float const top = levels.highest();
  float const bottom = levels.lowest();
  bool const unsigned_defect = options.published_defects && r.low == 0.0F;
  float scale = (unsigned_defect ? amax : 2.0F * amax) / (top - bottom);
  if (options.rule == grid_rule::amax || (options.rule == grid_rule::signed_amax && -bottom == top)) {
    scale = amax / (levels.is_code_book() && -bottom < top ? -bottom : top);
  } else if (options.rule == grid_rule::signed_amax) {
    float const extreme = -r.low > r.high ? r.low : r.high;
    scale = extreme / (-bottom > top ? bottom : top);
  }
#if !defined(__CUDA_ARCH__)
  if (options.scales == scale_type::e8m0) scale = scale_for_powers(amax, levels, options.rule);
#endif
  scale = options.stored(scale);
  // Where no level is zero, weights that are nearer to it than to the levels beside it, even those of the smallest
  // scale, become zeros.
  float const step = levels.least() * (scale < 0.0F ? -scale : scale);
  if (!options.published_defects && 2.0F * amax < step) scale = 0.0F;
  return {scale, 0};
}

/// "amax"; for a value that is no rule, its number.
inline std::string rule_name(grid_rule rule) {
  switch (rule) {
    case grid_rule::published:
      return "published";
    case grid_rule::amax:
      return "amax";
    case grid_rule::signed_amax:
      return "signed_amax";
  }
  return std::to_string(static_cast<int>(rule));
}

}  // namespace detail

inline void check_grid_rule(grid_rule rule, code_levels const& levels) {
  if (levels.has_zero_point && rule != grid_rule::published) {
    throw error("grid rule " + detail::rule_name(rule) +
                " is for schemes without a zero point; use published");
  }
}

inline grid find_grid(std::span<float const> weights, code_levels const& levels,
                      grid_options const& options) {
  detail::range const full = detail::weight_range(weights);
  if (full.low == 0.0F && full.high == 0.0F) {
    // The published code spans -1..1 here. Where no level is zero only a scale of 0 decodes to zeros.
    if (levels.least() != 0.0F && !options.published_defects) return {0.0F, 0};
    return detail::grid_for_range({-1.0F, 1.0F}, levels, options);
  }
  grid best = detail::grid_for_range(full, levels, options);
  if (!options.mse) return best;
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 80; ++i) {
    float const keep = static_cast<float>(1.0 - i / 100.0);
    grid const candidate = detail::grid_for_range({keep * full.low, keep * full.high}, levels, options);
    float const error = detail::grid_error(weights, candidate, levels);
    if (error < least) {
      least = error;
      best = candidate;
    }
  }
  return best;
}

}  // namespace gptq
