// What the rules of grid.hpp are made of: ranges of weights, stored scales, and the error that the published
// "mse" search minimizes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include <gptq/float16.hpp>
#include <gptq/float8.hpp>
#include <gptq/grids/level_rounding.hpp>
#include <gptq/scheme.hpp>

namespace gptq::detail {

/// The scale as it will be stored; never 0 for a scale that was not, because the group would lose its sign.
/// @param matrix_scale  what scales of type e4m3 are multiples of
GPTQ_HOST_DEVICE inline float stored_scale(float scale, scale_type type,
                                           [[maybe_unused]] float matrix_scale = 1.0F) {
#if !defined(__CUDA_ARCH__)  // where there are float16 and float32 alone
  if (type == scale_type::e8m0) return e8m0(scale);
  if (type == scale_type::e4m3) {
    float const stored = e4m3(scale / matrix_scale);
    return (stored == 0.0F && scale != 0.0F ? std::copysign(0x1p-9F, scale) : stored) * matrix_scale;
  }
#endif
  float const smallest = type == scale_type::float16 ? 0x1p-24F : 0x1p-126F;
  float const stored = type == scale_type::float16 ? static_cast<float>(float16(scale)) : scale;
  return stored == 0.0F && scale != 0.0F ? std::copysign(smallest, scale) : stored;
}

/// e^2.4 = e^2 * (e^2)^(1/5) for e >= 0, relative error below 1e-6 from 1e-11 on (below it, nearly e^2);
/// vectorizes, unlike std::pow.
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

inline range weight_range(std::span<float const> weights) {
  range r{0.0F, 0.0F};
  for (float const w : weights) {
    r.low = w < r.low ? w : r.low;
    r.high = w > r.high ? w : r.high;
  }
  return r;
}

/// The largest power of two that is at most x > 0; 0 below the normal floats.
inline float power_of_two_below(float x) { return bit_cast<float>(bit_cast<std::uint32_t>(x) & 0x7f800000u); }

/// Sum of |decoded - weight|^2.4. Errors first, then eight interleaved sums: both loops vectorize.
template <class Rounding>
float grid_error(std::span<float const> weights, grid g, code_levels const& levels,
                 Rounding const& rounding) {
  constexpr std::size_t chunk = 64;
  float const zero = levels.zero_point(g);
  float const divisor = safe_divisor(g.scale);
  float sums[8] = {};
  for (std::size_t first = 0; first < weights.size(); first += chunk) {
    std::size_t const count = std::min(chunk, weights.size() - first);
    float const* const w = weights.data() + first;
    float errors[chunk];
    for (std::size_t i = 0; i < count; ++i) {
      float const code = rounding.nearest(w[i], divisor, zero);
      errors[i] = power_2_4(std::abs(g.scale * (code - zero) - w[i]));
    }
    std::fill(errors + count, errors + chunk, 0.0F);
    for (std::size_t i = 0; i < chunk; ++i) sums[i % 8] += errors[i];
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}
inline float grid_error(std::span<float const> weights, grid g, code_levels const& levels) {
  return with_rounding(levels,
                       [&](auto const& rounding) { return grid_error(weights, g, levels, rounding); });
}

}  // namespace gptq::detail
