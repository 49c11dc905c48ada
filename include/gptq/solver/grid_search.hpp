// A group's grid in the metric of the sweep that will use it.
//
// The sweep's loss is the sum of (error of column j)^2 R_jj^2 (sweep.hpp), where the columns that follow make
// up for the rest. So a group's grid is the one that loses least by that measure when its weights are
// rounded: the weights' own range, shrunk step by step, and from there an exact least-squares fit of the
// scale. Where a scheme's levels differ on the two sides of zero and it stores no zero point, negative scales turn it
// round. Scales that are powers of two are tried one by one.
#pragma once

#include <cstddef>
#include <span>

#include <gptq/grid.hpp>
#include <gptq/solver/grid_steps.hpp>
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
  code_levels const& levels = format.levels;
  return search_from(
      format.find(weights), detail::weight_range(weights), format.rules(),
      [&](grid g) { return weighted_error(weights, metric, g, levels, rounding); },
      [&](grid g) { return fitted_scale(weights, metric, g, levels, rounding); });
}

/// The grid of a group of weights; `metric` has one number > 0 a weight.
inline grid search_grid(std::span<float const> weights, float const* metric, format_values const& format) {
  return detail::with_rounding(
      format.levels, [&](auto const& rounding) { return search_grid(weights, metric, format, rounding); });
}

}  // namespace gptq::solver
