// Scales and zero points of groups, found by some lanes of a warp together.
#pragma once

#include <gptq/config.hpp>
#include <gptq/cuda/solver/faults.cuh>
#include <gptq/grid.hpp>
#include <gptq/solver/grid_steps.hpp>

namespace gptq::cuda::detail {

using gptq::detail::nearest_code;
using gptq::detail::range;
using gptq::detail::safe_divisor;

inline constexpr unsigned all_lanes = 0xffffffffu;

/// The same sum in each of `Lanes` neighbouring lanes.
/// @param taking_part  of the warp
template <int Lanes, class T>
__device__ T sum_over_lanes(T value, unsigned taking_part = all_lanes) {
  for (int step = Lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(taking_part, value, step);
  return value;
}

/// The `Lanes` neighbouring lanes that this one belongs to.
template <int Lanes>
__device__ unsigned own_lanes() {
  static_assert(Lanes == 16 || Lanes == 32);
  return Lanes == 32 ? all_lanes : 0xffffu << (threadIdx.x % 32 / 16 * 16);
}

/// find_grid() of grid.hpp. each(f) calls f(weight) for the lane's own weights of the group; all lanes of the
/// warp take part, those that have none included.
template <int Lanes, bool HalfStep, class Each>
__device__ grid find_grid(Each const& each, code_levels const& levels, grid_options const& options) {
  range full{0.0F, 0.0F};
  each([&](float w) {
    full.low = fminf(full.low, w);
    full.high = fmaxf(full.high, w);
  });
  for (int step = Lanes / 2; step > 0; step /= 2) {
    full.low = fminf(full.low, __shfl_xor_sync(all_lanes, full.low, step));
    full.high = fmaxf(full.high, __shfl_xor_sync(all_lanes, full.high, step));
  }
  bool const zeros = full.low == 0.0F && full.high == 0.0F;
  if (zeros) full = {-1.0F, 1.0F};
  grid best = gptq::detail::grid_for_range(full, levels, options);
  if (options.mse) {
    auto const lowest = static_cast<float>(levels.min_code);
    auto const highest = static_cast<float>(levels.max_code);
    float least = INFINITY;
    grid searched = best;
    for (int i = 0; i < 80; ++i) {
      auto const keep = static_cast<float>(1.0 - i / 100.0);
      grid const candidate =
          gptq::detail::grid_for_range({keep * full.low, keep * full.high}, levels, options);
      float const zero = levels.zero_point(candidate);
      float const divisor = safe_divisor(candidate.scale);
      float error = 0.0F;
      each([&](float w) {
        float const code = nearest_code<HalfStep>(w, divisor, zero, lowest, highest);
        error += gptq::detail::power_2_4(fabsf(candidate.scale * (code - zero) - w));
      });
      error = sum_over_lanes<Lanes>(error);
      if (error < least) {
        least = error;
        searched = candidate;
      }
    }
    if (!zeros) best = searched;
  }
  return zeros && HalfStep ? grid{0.0F, 0} : best;
}

/// search_grid() of solver/grid_search.hpp. each(f) calls f(weight, metric) for the lane's own weights of the
/// group; of a warp all lanes take part in the first grid, and those of a group go their own ways from there.
template <int Lanes, bool HalfStep, class Each>
__device__ grid search_grid(Each const& each, gptq::solver::grid_rules const& rules) {
  code_levels const& levels = rules.levels;
  auto const lowest = static_cast<float>(levels.min_code);
  auto const highest = static_cast<float>(levels.max_code);
  auto const each_weight = [&](auto&& use) { each([&](float w, float) { use(w); }); };
  grid const first = find_grid<Lanes, HalfStep>(each_weight, levels, rules.grids);
  range full{0.0F, 0.0F};
  each_weight([&](float w) {
    full.low = fminf(full.low, w);
    full.high = fmaxf(full.high, w);
  });
  for (int step = Lanes / 2; step > 0; step /= 2) {
    full.low = fminf(full.low, __shfl_xor_sync(all_lanes, full.low, step));
    full.high = fmaxf(full.high, __shfl_xor_sync(all_lanes, full.high, step));
  }
  unsigned const group = own_lanes<Lanes>();
  auto const error_with = [&](grid g) {
    float const zero = levels.zero_point(g);
    float const divisor = safe_divisor(g.scale);
    float error = 0.0F;
    each([&](float w, float metric) {
      float const e = g.scale * (nearest_code<HalfStep>(w, divisor, zero, lowest, highest) - zero) - w;
      error += metric * (e * e);
    });
    return sum_over_lanes<Lanes>(error, group);
  };
  auto const fitted = [&](grid g) {
    float const zero = levels.zero_point(g);
    float const divisor = safe_divisor(g.scale);
    double along = 0.0, square = 0.0;
    each([&](float w, float metric) {
      float const level = nearest_code<HalfStep>(w, divisor, zero, lowest, highest) - zero;
      along += static_cast<double>(metric * level * w);
      square += static_cast<double>(metric * level * level);
    });
    along = sum_over_lanes<Lanes>(along, group);
    square = sum_over_lanes<Lanes>(square, group);
    return square > 0.0 ? static_cast<float>(along / square) : 0.0F;
  };
  grid const best = gptq::solver::search_from(first, full, rules, error_with, fitted);
  __syncwarp();
  return best;
}

/// Where grids go.
struct grid_store {
  float* scales;        ///< [rows, groups]
  std::uint8_t* zeros;  ///< likewise; null without a stored zero point
  index_t groups;
  faults* found;

  __device__ void set(index_t row, index_t group, grid g) const {
    index_t const at = row * groups + group;
    scales[at] = g.scale;
    if (zeros != nullptr) zeros[at] = static_cast<std::uint8_t>(g.zero);
    if (!isfinite(g.scale)) atomicMin(&found->scale, static_cast<unsigned long long>(at));
  }
};

/// Weights as given, dead inputs taken as zero.
struct given_weights {
  float const* weight;    ///< [rows, in]
  float const* diagonal;  ///< [in], of the Hessian
  index_t in;

  __device__ float operator()(index_t row, index_t column) const {
    return diagonal[column] == 0.0F ? 0.0F : weight[row * in + column];
  }
};

/// Where weights that are not quantized yet will move to, in the reversed order of the sweep; see sweep.cuh.
struct expected_weights {
  float const* work;  ///< [rows, ld]
  index_t ld;
  float const* moves;  ///< [rows, columns], reversed, too; null: none
  index_t columns;     ///< of the group
  index_t first;       ///< its first position

  __device__ float operator()(index_t row, index_t column) const {
    index_t const at = column - first;
    float const w = work[row * ld + ld - 1 - column];
    return moves == nullptr ? w : w + moves[row * columns + columns - 1 - at];
  }
};

/// What is found of a run of columns.
struct group_run {
  index_t columns;  ///< of a row
  index_t group_columns;
  index_t first_group;
  index_t count;        ///< groups of every row
  int const* groups;    ///< the group that a run of positions is, by its first one; null: the run's number
  float const* metric;  ///< of each column, where grids are searched for
};

/// The grids of the groups first_group..first_group+count of every row, a warp a group.
template <bool HalfStep, bool Search, class Weights>
__global__ void find_grids(Weights weights, grid_store grids, gptq::solver::grid_rules rules, index_t rows,
                           group_run run) {
  index_t const warp = (index_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  index_t const row = warp / run.count;
  index_t const group = run.first_group + warp % run.count;
  if (row >= rows) return;
  index_t const first = group * run.group_columns;
  index_t const end = first + run.group_columns < run.columns ? first + run.group_columns : run.columns;
  int const lane = static_cast<int>(threadIdx.x % 32);
  grid g;
  if constexpr (Search) {
    auto const each = [&](auto&& use) {
      for (index_t column = first + lane; column < end; column += 32) {
        use(weights(row, column), run.metric[column]);
      }
    };
    g = search_grid<32, HalfStep>(each, rules);
  } else {
    auto const each = [&](auto&& use) {
      for (index_t column = first + lane; column < end; column += 32) use(weights(row, column));
    };
    g = find_grid<32, HalfStep>(each, rules.levels, rules.grids);
  }
  if (lane == 0) grids.set(row, run.groups == nullptr ? group : run.groups[first], g);
}

}  // namespace gptq::cuda::detail
