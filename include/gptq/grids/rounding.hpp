// Rounding to codes, so that loops over it vectorize, on the CPU and on a GPU. (code_levels::encode.)
#pragma once

#include <gptq/config.hpp>

namespace gptq::detail {

/// Half to even, for |x| < 2^22; beyond that the result is only about as large as x, which is all that a value
/// to be clamped needs. Written as additions because std::nearbyint does not vectorize before SSE4.1; the
/// additions would vanish under -ffast-math.
GPTQ_HOST_DEVICE constexpr float round_half_even(float x) {
#if defined(__FAST_MATH__)
  return __builtin_nearbyintf(x);
#else
  constexpr float shift = 12582912.0F;  // 1.5 * 2^23: the last bit of the sum is worth 1
  return (x + shift) - shift;
#endif
}

/// floor, within the same bounds. Without a branch, so that it vectorizes.
GPTQ_HOST_DEVICE constexpr float round_down(float x) {
  float const nearest = round_half_even(x);
  return nearest - static_cast<float>(nearest > x);
}

/// std::clamp returns a reference, which keeps the loops around it from vectorizing.
GPTQ_HOST_DEVICE constexpr float clamp(float x, float low, float high) {
  float const raised = x < low ? low : x;
  return raised > high ? high : raised;
}

/// What to divide a weight by: any number for a scale of 0, under which all codes mean 0.
GPTQ_HOST_DEVICE constexpr float safe_divisor(float scale) { return scale == 0.0F ? 1.0F : scale; }

/// code_levels::encode as a float. `divisor` is safe_divisor() of the scale.
template <bool HalfStep>
GPTQ_HOST_DEVICE constexpr float nearest_code(float weight, float divisor, float zero, float lowest,
                                              float highest) {
  float const steps = weight / divisor;
  float const level = HalfStep ? round_down(steps) + 0.5F : round_half_even(steps);
  return clamp(level + zero, lowest, highest);
}

}  // namespace gptq::detail
