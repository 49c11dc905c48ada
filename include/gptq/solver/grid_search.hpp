// A group's grid in the metric of the sweep that will use it.
//
// The sweep's loss is the sum of (error of column j)^2 R_jj^2 (sweep.hpp), where the columns that follow make
// up for the rest. So a group's grid is the one that loses least by that measure when its weights are
// rounded: the weights' own range, shrunk step by step, and from there an exact least-squares fit of the
// scale. Where a scheme's levels differ on the two sides of zero and it stores no zero point, negative scales turn it
// round. Scales that are powers of two are tried one by one.
#pragma once

#include <cmath>
#include <cstddef>
#include <span>

#include <gptq/grid.hpp>
#include <gptq/solver/problem.hpp>

namespace gptq::solver {

/// Sum of metric * (decoded - weight)^2.
template <class Rounding>
float weighted_error(std::span<float const> weights, float const* metric, grid g, code_levels const& levels,
                     Rounding const& rounding) {
  constexpr std::size_t lanes = 16;
  float const zero = levels.zero_point(g);
  float const divisor = detail::safe_divisor(g.scale);
  auto const error = [&](std::size_t i) {
    float const code = rounding.nearest(weights[i], divisor, zero);
    float const e = g.scale * (code - zero) - weights[i];
    return metric[i] * (e * e);
  };
  float sums[lanes] = {};
  std::size_t i = 0;
  for (; i + lanes <= weights.size(); i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] += error(i + lane);
  }
  for (std::size_t lane = 0; i < weights.size(); ++i, ++lane) sums[lane] += error(i);
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

/// The scale that loses least for the codes which `g` gives to the weights; 0 when they are all zero.
template <class Rounding>
float fitted_scale(std::span<float const> weights, float const* metric, grid g, code_levels const& levels,
                   Rounding const& rounding) {
  float const zero = levels.zero_point(g);
  float const divisor = detail::safe_divisor(g.scale);
  double along = 0.0;
  double square = 0.0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    float const level = rounding.nearest(weights[i], divisor, zero) - zero;
    along += static_cast<double>(metric[i] * level * weights[i]);
    square += static_cast<double>(metric[i] * level * level);
  }
  return square > 0.0 ? static_cast<float>(along / square) : 0.0F;
}

template <class Rounding>
grid search_grid(std::span<float const> weights, float const* metric, format_values const& format,
                 Rounding const& rounding) {
  constexpr int steps = 16;
  constexpr int fits = 2;
  code_levels const& levels = format.levels;
  auto const stored = [&](float scale) { return format.grids.stored(scale); };
  auto const error_with = [&](grid g) { return weighted_error(weights, metric, g, levels, rounding); };
  grid best = format.find(weights);
  detail::range const full = detail::weight_range(weights);
  if (full.low == full.high) return best;  // zeros
  float least = error_with(best);
  auto const consider = [&](grid candidate) {
    if (!std::isfinite(candidate.scale)) return false;
    float const error = error_with(candidate);
    if (!(error < least)) return false;
    least = error;
    best = candidate;
    return true;
  };
  grid const first = best;
  bool const has_sign = format.grids.scales != scale_type::e8m0;
  if (!has_sign && !levels.has_zero_point) {  // there are few of them in reach
    for (float const times : {0.125F, 0.25F, 0.5F, 2.0F}) consider({stored(times * first.scale), first.zero});
    return best;
  }
  bool const lopsided = has_sign && levels.is_lopsided();
  // The fewer the levels, the more of the range is worth giving up.
  float const shrink = 1.4F / static_cast<float>(format.bits);
  int at = 0;
  float side = 1.0F;
  auto const consider_step = [&](int i, float sign) {
    float const keep = 1.0F - shrink * static_cast<float>(i) / steps;
    // A scheme's own way to find grids says where its zero point is.
    grid candidate = format.own_grid != nullptr
                         ? grid{stored(keep * first.scale), first.zero}
                         : detail::grid_for_range({keep * full.low, keep * full.high}, levels, format.grids);
    candidate.scale *= sign;
    if (!consider(candidate)) return;
    at = i;
    side = sign;
  };
  for (int i = 0; i < steps; i += 2) {
    consider_step(i, 1.0F);
    if (lopsided) consider_step(i, -1.0F);
  }
  int const coarse = at;
  if (coarse > 0) consider_step(coarse - 1, side);
  consider_step(coarse + 1, side);
  for (int i = 0; i < fits; ++i) {
    grid candidate = best;
    candidate.scale = stored(fitted_scale(weights, metric, best, levels, rounding));
    if (candidate.scale == 0.0F || !consider(candidate)) break;
  }
  return best;
}

/// The grid of a group of weights; `metric` has one number > 0 a weight.
inline grid search_grid(std::span<float const> weights, float const* metric, format_values const& format) {
  return detail::with_rounding(
      format.levels, [&](auto const& rounding) { return search_grid(weights, metric, format, rounding); });
}

}  // namespace gptq::solver
