// Which grids are tried for a group, and which is taken, on the CPU and on a GPU: what they lose is measured
// by the caller.
#pragma once

#include <cmath>

#include <gptq/grid.hpp>

namespace gptq::solver {

/// Feedback moves weights, those of columns that count for next to nothing furthest: in the metric of the
/// sweep these count for this share of the average, or their range would be given away.
inline constexpr float least_share_of_metric = 0.1F;

/// What decides which grids are tried.
struct grid_rules {
  code_levels levels{};
  grid_options grids{};
  int bits = 0;
  bool own_grid =
      false;  ///< the scheme has its own way to find grids, which also says where its zero point is
};

#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // what is passed in runs where this runs
#endif
/// The best of the grids for weights of the range `full`: see grid_search.hpp.
/// @param first       by the rule of the options
/// @param error_with  what a grid loses
/// @param fitted      the scale that loses least for the codes that a grid gives to the weights; 0 where they
///                    are
///                    all zero
template <class Error, class Fit>
GPTQ_HOST_DEVICE grid search_from(grid const first, detail::range const full, grid_rules const& rules,
                                  Error const& error_with, Fit const& fitted) {
  constexpr int steps = 16;
  constexpr int fits = 2;
  code_levels const& levels = rules.levels;
  grid best = first;
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
#if !defined(__CUDA_ARCH__)  // where there are float16 and float32 alone
  if (rules.grids.scales == scale_type::e8m0 && !levels.has_zero_point) {  // there are few of them in reach
    for (float const times : {0.125F, 0.25F, 0.5F, 2.0F}) {
      consider({rules.grids.stored(times * first.scale), first.zero});
    }
    return best;
  }
#endif
  // The fewer the levels, the more of the range is worth giving up.
  float const shrink = 1.4F / static_cast<float>(rules.bits);
  // Every other step, on both sides where they differ, and then the steps beside the best one.
  int const sides = rules.grids.scales != scale_type::e8m0 && levels.is_lopsided() ? 2 : 1;
  int const coarse_tries = steps / 2 * sides;
  int coarse = 0;
  int at = 0;
  float side = 1.0F;
  for (int i = 0; i < coarse_tries + 2; ++i) {
    if (i == coarse_tries) coarse = at;
    bool const fine = i >= coarse_tries;
    int const step = !fine ? i / sides * 2 : i == coarse_tries ? coarse - 1 : coarse + 1;
    if (step < 0) continue;
    float const sign = fine ? side : i % sides == 0 ? 1.0F : -1.0F;
    float const keep = 1.0F - shrink * static_cast<float>(step) / steps;
    grid candidate = rules.own_grid
                         ? grid{rules.grids.stored(keep * first.scale), first.zero}
                         : detail::grid_for_range({keep * full.low, keep * full.high}, levels, rules.grids);
    candidate.scale *= sign;
    if (!consider(candidate)) continue;
    at = step;
    side = sign;
  }
  for (int i = 0; i < fits; ++i) {
    grid candidate = best;
    candidate.scale = rules.grids.stored(fitted(best));
    if (candidate.scale == 0.0F || !consider(candidate)) break;
  }
  return best;
}

/// Products of a group's levels l, less their center, of ones and of the gradient g in the metric M. Levels
/// that are all much the same, and the change of such ones, would be lost in the rounding of l M l'.
struct group_sums {
  double center = 0.0;
  double level_level = 0.0;  ///< l M l'
  double level_one = 0.0;    ///< l M 1'
  double one_one = 0.0;      ///< 1 M 1'
  double level_slope = 0.0;  ///< l g'
  double one_slope = 0.0;    ///< 1 g'
};

struct grid_change {
  grid to;
  double change = 0.0;  ///< of the row's loss
};

/// The best scale, and the best of the zero points next to its own, for a group's codes as they are.
GPTQ_HOST_DEVICE inline grid_change best_grid(group_sums const& s, grid from, grid_rules const& rules) {
  grid_change best{from};
  auto const old = static_cast<double>(from.scale);
  int const reach = rules.levels.has_zero_point && !rules.own_grid ? 1 : 0;
  for (int by = -reach; by <= reach; ++by) {
    grid to{from.scale, from.zero + by};
    if (reach > 0 && (to.zero < 0 || to.zero >= 1 << rules.bits)) continue;
    // Levels l + center become l + level, and the scale s becomes t: decoded weights rise by
    // v = (t - s) l + (t level - s center), and the loss changes by v M v' - 2 v g'.
    double const level = s.center - by;
    double const square = s.level_level + level * (2.0 * s.level_one + level * s.one_one);
    if (!(square > 0.0)) continue;
    double const slope = s.level_slope + level * s.one_slope;
    double const along = s.level_level + (s.center + level) * s.level_one + s.center * level * s.one_one;
    to.scale = rules.grids.stored(static_cast<float>((slope + old * along) / square));
    if (!std::isfinite(to.scale) || to.scale == 0.0F) continue;
    double const stretch = static_cast<double>(to.scale) - old;
    double const shift = static_cast<double>(to.scale) * level - old * s.center;
    double const change = stretch * (stretch * s.level_level - 2.0 * s.level_slope) +
                          shift * (shift * s.one_one + 2.0 * stretch * s.level_one - 2.0 * s.one_slope);
    if (change < best.change) best = {to, change};
  }
  return best;
}

}  // namespace gptq::solver
