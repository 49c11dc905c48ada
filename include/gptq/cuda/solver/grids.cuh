// Scales and zero points of groups, found by some lanes of a warp together.
#pragma once

#include <gptq/config.hpp>
#include <gptq/cuda/solver/faults.cuh>
#include <gptq/grid.hpp>

namespace gptq::cuda::detail {

using gptq::detail::nearest_code;
using gptq::detail::range;
using gptq::detail::safe_divisor;

inline constexpr unsigned all_lanes = 0xffffffffu;

/// The same sum in each of `Lanes` neighbouring lanes.
template <int Lanes, class T>
__device__ T sum_over_lanes(T value) {
  for (int step = Lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(all_lanes, value, step);
  return value;
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

/// The grids of the groups first_group..first_group+count of every row, a warp a group.
template <bool HalfStep, class Weights>
__global__ void find_grids(Weights weights, grid_store grids, code_levels levels, grid_options options,
                           index_t rows, index_t columns, index_t group_columns, index_t first_group,
                           index_t count) {
  index_t const warp = (index_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  index_t const row = warp / count;
  index_t const group = first_group + warp % count;
  if (row >= rows) return;
  index_t const first = group * group_columns;
  index_t const end = first + group_columns < columns ? first + group_columns : columns;
  int const lane = static_cast<int>(threadIdx.x % 32);
  auto const each = [&](auto&& use) {
    for (index_t column = first + lane; column < end; column += 32) use(weights(row, column));
  };
  grid const g = find_grid<32, HalfStep>(each, levels, options);
  if (lane == 0) grids.set(row, group, g);
}

}  // namespace gptq::cuda::detail
