// How a group's scale and zero point are found from its weights.
//
// The rules are those of the published implementations (GPTQ, GPTQ-for-LLaMa, GGUF); which codes a group may
// use is the scheme's business (scheme.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/scheme.hpp>

namespace gptq {

/// How a group's scale is found. amax is the largest magnitude of the group.
///
///   rule          with a zero point                           without
///   published     (max - min) / (codes - 1), zero included    2 amax / (codes - 1): amax/7 for -7..7,
///   amax/7.5
///                 in the range; zero = round(-min / scale)    for the published "sym" and for half step
///   amax          -                                           amax / top level: amax/7 for -7..7 and for
///   -8..7 signed_amax   -                                           the weight of largest magnitude, sign
///   included, on
///                                                             the level of largest magnitude: w/-8 for -8..7
enum class grid_rule { published, amax, signed_amax };

/// The type that scales are stored in. Grids are rounded to it before any weight is quantized with them.
enum class scale_type { float16, float32 };

/// Everything but the weights that decides a group's grid.
struct grid_options {
  grid_rule rule = grid_rule::published;
  /// Search 80 ranges shrunk by 0..79 % for the least sum of |error|^2.4 (the published "mse" option).
  bool mse = false;
  /// Repeat the published treatment of a group without negative weights in a scheme without a zero point: its
  /// scale is half of what its largest weight needs, so that 1.0 decodes to 0.467 at 4 bits. For comparisons.
  bool published_defects = false;
  scale_type scales = scale_type::float16;
};

/// Whether `rule` makes sense for these levels; throws gptq::error if not.
void check_grid_rule(grid_rule rule, code_levels const& levels);

/// The grid of one group. `weights` are finite. A group of zeros gets a grid that decodes to exact zeros.
grid find_grid(std::span<float const> weights, code_levels const& levels, grid_options const& options);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

// The scale as it will be stored; never 0 for a scale that was not, because the group would lose its sign.
GPTQ_HOST_DEVICE inline float stored_scale(float scale, scale_type type) {
  float const smallest = type == scale_type::float16 ? 0x1p-24F : 0x1p-126F;
  float const stored = type == scale_type::float16 ? static_cast<float>(float16(scale)) : scale;
  return stored == 0.0F && scale != 0.0F ? std::copysign(smallest, scale) : stored;
}

// e^2.4 = e^2 * (e^2)^(1/5) for e >= 0, relative error below 1e-6 from 1e-11 on (below it, nearly e^2);
// vectorizes, unlike std::pow.
GPTQ_HOST_DEVICE inline float power_2_4(float e) {
  float const y = e * e;
  float const x = y + 1e-30F;  // keeps the iteration finite at 0
  float r = bit_cast<float>(0x4c2d0000u - bit_cast<std::uint32_t>(x) / 5u);  // about x^(-1/5)
  for (int step = 0; step < 3; ++step) {
    float const r2 = r * r;
    r *= 1.2F - 0.2F * x * r2 * r2 * r;
  }
  float const r2 = r * r;
  return y * (x * (r2 * r2));
}

struct range {
  float low;
  float high;
};

inline range range_of(std::span<float const> weights) {
  range r{0.0F, 0.0F};
  for (float const w : weights) {
    r.low = w < r.low ? w : r.low;
    r.high = w > r.high ? w : r.high;
  }
  return r;
}

// The grid that a rule gives for a range of weights.
GPTQ_HOST_DEVICE inline grid grid_of_range(range r, code_levels const& levels, grid_options const& options) {
  auto const steps = static_cast<float>(levels.max_code - levels.min_code);
  if (levels.has_zero_point) {
    float const scale = stored_scale((r.high - r.low) / steps, options.scales);
    // A range of a few of the smallest floats has no step left, and 0 / 0 is no zero point.
    float const steps_below = scale == 0.0F ? 0.0F : round_half_even(-r.low / scale);
    float const zero = static_cast<float>(levels.min_code) + steps_below;
    return {scale, static_cast<int>(clamp(zero, static_cast<float>(levels.min_code),
                                          static_cast<float>(levels.max_code)))};
  }
  float const amax = -r.low > r.high ? -r.low : r.high;
  float const top = static_cast<float>(levels.max_code) - levels.zero;
  float const bottom = static_cast<float>(levels.min_code) - levels.zero;
  switch (options.rule) {
    case grid_rule::amax:
      return {stored_scale(amax / top, options.scales), 0};
    case grid_rule::signed_amax: {
      if (-bottom == top) return {stored_scale(amax / top, options.scales), 0};
      float const extreme = -r.low > r.high ? r.low : r.high;
      return {stored_scale(extreme / (-bottom > top ? bottom : top), options.scales), 0};
    }
    case grid_rule::published:
      break;
  }
  bool const unsigned_defect = options.published_defects && r.low == 0.0F;
  return {stored_scale((unsigned_defect ? amax : 2.0F * amax) / steps, options.scales), 0};
}

// Sum of |decoded - weight|^2.4. Errors first, then eight interleaved sums: both loops vectorize.
template <bool HalfStep>
float grid_error(std::span<float const> weights, grid g, code_levels const& levels) {
  constexpr std::size_t chunk = 64;
  float const zero = levels.zero_of(g);
  float const divisor = divisor_of(g.scale);
  auto const lowest = static_cast<float>(levels.min_code);
  auto const highest = static_cast<float>(levels.max_code);
  float sums[8] = {};
  for (std::size_t first = 0; first < weights.size(); first += chunk) {
    std::size_t const count = std::min(chunk, weights.size() - first);
    float const* const w = weights.data() + first;
    float errors[chunk];
    for (std::size_t i = 0; i < count; ++i) {
      float const code = nearest_code<HalfStep>(w[i], divisor, zero, lowest, highest);
      errors[i] = power_2_4(std::abs(g.scale * (code - zero) - w[i]));
    }
    std::fill(errors + count, errors + chunk, 0.0F);
    for (std::size_t i = 0; i < chunk; ++i) sums[i % 8] += errors[i];
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace detail

inline void check_grid_rule(grid_rule rule, code_levels const& levels) {
  if (levels.has_zero_point && rule != grid_rule::published) {
    throw error(std::string("grid rule ") + (rule == grid_rule::amax ? "amax" : "signed_amax") +
                " is for schemes without a zero point; use published");
  }
}

inline grid find_grid(std::span<float const> weights, code_levels const& levels,
                      grid_options const& options) {
  detail::range const full = detail::range_of(weights);
  if (full.low == 0.0F && full.high == 0.0F) {
    // The published code spans -1..1 here. Half step has no level at zero: only a scale of 0 decodes to
    // zeros.
    if (levels.is_half_step() && !options.published_defects) return {0.0F, 0};
    return detail::grid_of_range({-1.0F, 1.0F}, levels, options);
  }
  grid best = detail::grid_of_range(full, levels, options);
  if (!options.mse) return best;
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 80; ++i) {
    float const keep = static_cast<float>(1.0 - i / 100.0);
    grid const candidate = detail::grid_of_range({keep * full.low, keep * full.high}, levels, options);
    float const error = levels.is_half_step() ? detail::grid_error<true>(weights, candidate, levels)
                                              : detail::grid_error<false>(weights, candidate, levels);
    if (error < least) {
      least = error;
      best = candidate;
    }
  }
  return best;
}

}  // namespace gptq
