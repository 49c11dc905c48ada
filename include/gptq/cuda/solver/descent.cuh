// Coordinate descent on the codes and grids of a block of columns: the mathematics is that of
// solver/descent.hpp.
//
// With M the Hessian with what damping adds to its diagonal, D = W - Q and g = D M, a column's best level is
// the one nearest to q_j + g_j / M_jj. What a column moves by is passed on to all columns of the block at
// once, so that g is up to date when the group's grid is fitted.
#pragma once

#include <cfloat>
#include <cstdint>

#include <gptq/cuda/solver/grids.cuh>
#include <gptq/cuda/solver/sweep.cuh>
#include <gptq/solver/grid_steps.hpp>

namespace gptq::cuda::detail {

/// M[column, row] of the Hessian's sums S, with what damping and dead inputs add to the diagonal; zero for
/// what pads it. A block a row.
template <int Threads = 256>
__global__ void damped_metric(float const* sum, float const* diagonal, float* metric, index_t columns,
                              index_t ld, double scale, double added, double dead) {
  index_t const row = blockIdx.x;
  for (index_t column = threadIdx.x; column < ld; column += Threads) {
    float value = row < columns && column < columns ? sum[row * columns + column] : 0.0F;
    if (row == column && row < columns) {
      value += static_cast<float>((added + (diagonal[row] == 0.0F ? dead : 0.0)) / scale);
    }
    metric[row * ld + column] = value;
  }
}

/// losses[row] -= scale * gained[row], and nothing is gained any more.
template <int Threads = 256>
__global__ void take_off(double* losses, double* gained, double scale, index_t rows) {
  index_t const row = index_t{blockIdx.x} * Threads + threadIdx.x;
  if (row >= rows) return;
  losses[row] -= scale * gained[row];
  gained[row] = 0.0;
}

inline constexpr std::size_t descent_shared_memory =
    static_cast<std::size_t>(block_columns) * (factor_stride + 1) * sizeof(float);

struct descent_arguments {
  float* difference;      ///< [rows, ld] W - Q, original column order
  float const* gradient;  ///< [rows, ld] D M in the columns of the block
  float const* metric;    ///< [ld, ld] M
  index_t ld;
  grid_store grids;
  std::uint8_t* codes;  ///< [rows, columns]
  double* gained;       ///< [rows] what the loss d M d' of each row fell by is added
  index_t rows;
  index_t columns;
  index_t group_columns;
  gptq::solver::grid_rules rules;
};

/// Goes through the columns first..first+width of every row. A row has sixteen lanes with eight columns each,
/// and groups end where lanes do.
/// @param choose  codes
/// @param fit     grids, of groups that lie within the block
template <bool HalfStep>
__global__ void __launch_bounds__(block_rows* row_lanes, 2)
    descend_block(descent_arguments d, index_t first, int width, bool choose, bool fit) {
  extern __shared__ float4 descent_memory[];
  // Row i of M, as far as it is in the block, otherwise 0: the first four columns of each lane lie before the
  // other four, which keeps lanes out of each other's banks.
  float* const passed = reinterpret_cast<float*>(descent_memory);
  float* const curvatures = passed + block_columns * factor_stride;  // M_jj
  int const lane = static_cast<int>(threadIdx.x) % row_lanes;
  index_t const row = index_t{blockIdx.x} * block_rows + threadIdx.x / row_lanes;
  int const own = lane * lane_columns;
  bool const live = row < d.rows && own < width;
  for (int k = static_cast<int>(threadIdx.x); k < block_columns * block_columns / 4;
       k += block_rows * row_lanes) {
    int const i = k / (block_columns / 4), j = k % (block_columns / 4) * 4;
    // What pads a row of M is zero, and what lies beyond the block is no business of a row in it.
    float4 values{0.0F, 0.0F, 0.0F, 0.0F};
    if (i < width && j < width) {
      values = *reinterpret_cast<float4 const*>(d.metric + (first + i) * d.ld + first + j);
      if (j + 1 >= width) values.y = 0.0F;
      if (j + 2 >= width) values.z = 0.0F;
      if (j + 3 >= width) values.w = 0.0F;
    }
    *reinterpret_cast<float4*>(passed + i * factor_stride + (j & 4) * (block_columns / 8) + (j >> 3) * 4) =
        values;
    if (i >= j && i < j + 4)
      curvatures[i] = i == j ? values.x : i == j + 1 ? values.y : i == j + 2 ? values.z : values.w;
  }
  __syncthreads();

  index_t const place = row * d.ld + first + own;
  index_t const stored = row * d.columns + first + own;
  float gradient[lane_columns], level[lane_columns], rise[lane_columns];
  {
    auto const* const from = reinterpret_cast<float4 const*>(d.gradient + place);
    float4 const none{0.0F, 0.0F, 0.0F, 0.0F};
    float4 const a = live ? from[0] : none;
    float4 const b = live ? from[1] : none;
    gradient[0] = a.x, gradient[1] = a.y, gradient[2] = a.z, gradient[3] = a.w;
    gradient[4] = b.x, gradient[5] = b.y, gradient[6] = b.z, gradient[7] = b.w;
  }
  code_levels const& levels = d.rules.levels;
  index_t const group = (first + own) / d.group_columns;  // all of a lane's columns are of one
  index_t const grid_at = row * d.grids.groups + group;
  float scale = live ? d.grids.scales[grid_at] : 0.0F;
  int const zero_code = live && d.grids.zeros != nullptr ? int{d.grids.zeros[grid_at]} : 0;
  float zero = levels.zero_point({0.0F, zero_code});
  // Infinite for a subnormal scale, and 0 times that is no number.
  float const inverse = scale == 0.0F ? 0.0F : fmaxf(-FLT_MAX, fminf(1.0F / scale, FLT_MAX));
#pragma unroll
  for (int r = 0; r < lane_columns; ++r) {
    bool const there = live && own + r < width;
    level[r] = there ? static_cast<float>(d.codes[stored + r]) - zero : 0.0F;
    if (!there) gradient[r] = 0.0F;
    rise[r] = 0.0F;
  }
  auto const lowest = static_cast<float>(levels.min_code);
  auto const highest = static_cast<float>(levels.max_code);
  double gained = 0.0;
  auto const pass_on = [&](float value, int i, float* to) {
    auto const* const from = reinterpret_cast<float4 const*>(passed + i * factor_stride) + lane;
    float4 const a = from[0];
    float4 const b = from[block_columns / 8];
    to[0] = fmaf(value, a.x, to[0]), to[1] = fmaf(value, a.y, to[1]);
    to[2] = fmaf(value, a.z, to[2]), to[3] = fmaf(value, a.w, to[3]);
    to[4] = fmaf(value, b.x, to[4]), to[5] = fmaf(value, b.y, to[5]);
    to[6] = fmaf(value, b.z, to[6]), to[7] = fmaf(value, b.w, to[7]);
  };

  int const step = fit ? static_cast<int>(d.group_columns) : width;
  for (int c0 = 0; c0 < width; c0 += step) {
    int const c1 = min(c0 + step, width);
    if (choose) {
      for (int owner = c0 / lane_columns; owner * lane_columns < c1; ++owner) {
        float curvature[lane_columns], inverse_curvature[lane_columns];
#pragma unroll
        for (int r = 0; r < lane_columns; ++r) {
          curvature[r] = curvatures[own + r];
          inverse_curvature[r] = curvature[r] > 0.0F ? fminf(1.0F / curvature[r], FLT_MAX) : 0.0F;
        }
        // All lanes do what only the owner's result is taken of.
#pragma unroll
        for (int r = 0; r < lane_columns; ++r) {
          // Quotients, rounded correctly, without divisions.
          float const near = gradient[r] * inverse_curvature[r];
          float const shift = fmaf(fmaf(-near, curvature[r], gradient[r]), inverse_curvature[r], near);
          float const target = __fadd_rn(__fmul_rn(scale, level[r]), shift);
          float const about = target * inverse;
          float const steps = fmaf(fmaf(-about, scale, target), inverse, about);
          float const code = nearest_code<HalfStep>(steps, 1.0F, zero, lowest, highest);
          float const by = scale * (code - zero - level[r]);
          float const change = by * (by * curvature[r] - 2.0F * gradient[r]);
          bool const better = lane == owner && curvature[r] > 0.0F && change < 0.0F;
          if (better) {
            level[r] = code - zero;
            rise[r] += by;
            gained -= static_cast<double>(change);
          }
          pass_on(-__shfl_sync(all_lanes, better ? by : 0.0F, owner, row_lanes), owner * lane_columns + r,
                  gradient);
        }
      }
    }
    if (!fit) continue;

    bool const member = own >= c0 && own < c1;
    auto const all_members = [&](auto&& use) {
#pragma unroll
      for (int r = 0; r < lane_columns; ++r) {
        if (member && own + r < width) use(r);
      }
    };
    float center = 0.0F;  // a whole number in the middle of a row's levels
    if (levels.has_zero_point) {
      float sum = 0.0F;
      all_members([&](int r) { sum += level[r]; });
      center = roundf(sum_over_lanes<row_lanes>(sum) / static_cast<float>(c1 - c0));
    }
    float product[lane_columns] = {};  // of the centered levels and M
    float ones[lane_columns] = {};     // of ones and M
    for (int owner = c0 / lane_columns; owner * lane_columns < c1; ++owner) {
#pragma unroll
      for (int r = 0; r < lane_columns; ++r) {
        bool const there = owner * lane_columns + r < width;
        float const value = __shfl_sync(all_lanes, level[r] - center, owner, row_lanes);
        pass_on(there ? value : 0.0F, owner * lane_columns + r, product);
        if (levels.has_zero_point) pass_on(1.0F, owner * lane_columns + r, ones);
      }
    }
    gptq::solver::group_sums sums;
    all_members([&](int r) {
      auto const l = static_cast<double>(level[r] - center);
      sums.level_level += l * static_cast<double>(product[r]);
      sums.level_one += l * static_cast<double>(ones[r]);
      sums.one_one += static_cast<double>(ones[r]);
      sums.level_slope += l * static_cast<double>(gradient[r]);
      sums.one_slope += static_cast<double>(gradient[r]);
    });
    sums.level_level = sum_over_lanes<row_lanes>(sums.level_level);
    sums.level_slope = sum_over_lanes<row_lanes>(sums.level_slope);
    if (levels.has_zero_point) {
      sums.center = static_cast<double>(center);
      sums.level_one = sum_over_lanes<row_lanes>(sums.level_one);
      sums.one_one = sum_over_lanes<row_lanes>(sums.one_one);
      sums.one_slope = sum_over_lanes<row_lanes>(sums.one_slope);
    }
    int const one_of_them = c0 / lane_columns;
    float const old_scale = __shfl_sync(all_lanes, scale, one_of_them, row_lanes);
    float const old_zero = __shfl_sync(all_lanes, zero, one_of_them, row_lanes);
    gptq::solver::grid_change const best =
        gptq::solver::best_grid(sums, {old_scale, static_cast<int>(old_zero)}, d.rules);
    float moved[lane_columns] = {};
    if (best.change < 0.0 && member) {
      float const by = levels.has_zero_point ? static_cast<float>(best.to.zero) - old_zero : 0.0F;
      all_members([&](int r) {
        float const to = level[r] - by;
        moved[r] = best.to.scale * to - old_scale * level[r];
        rise[r] += moved[r];
        level[r] = to;
      });
      scale = best.to.scale;
      zero += by;
      if (lane == one_of_them) {
        gained -= best.change;
        if (live) d.grids.set(row, group, best.to);
      }
    }
    if (c1 == width) continue;  // nobody is there to be told
    for (int owner = c0 / lane_columns; owner * lane_columns < c1; ++owner) {
#pragma unroll
      for (int r = 0; r < lane_columns; ++r) {
        pass_on(-__shfl_sync(all_lanes, moved[r], owner, row_lanes), owner * lane_columns + r, gradient);
      }
    }
  }

  gained = sum_over_lanes<row_lanes>(gained);
  if (!live) return;
  if (lane == 0) d.gained[row] += gained;
#pragma unroll
  for (int r = 0; r < lane_columns; ++r) {
    if (own + r >= width) continue;
    d.difference[place + r] -= rise[r];
    d.codes[stored + r] = static_cast<std::uint8_t>(level[r] + zero);
  }
}

/// ones[column - first] = sum of M over the rows of a group. A block a column.
template <int Threads = 256>
__global__ void sum_of_group(float const* metric, index_t ld, index_t first, index_t count, double* ones) {
  __shared__ double parts[Threads / 32];
  index_t const column = first + blockIdx.x;
  double sum = 0.0;
  for (index_t i = threadIdx.x; i < count; i += Threads) sum += metric[column * ld + first + i];
  sum = sum_over_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < Threads / 32; ++i) sum += parts[i];
  ones[blockIdx.x] = sum;
}

/// A group that no block holds, of the rows that are worked on.
struct large_group {
  float* difference;      ///< [rows, ld] W - Q, original column order
  float* levels;          ///< [rows, stride] of the group, less their center
  float* product;         ///< likewise: levels times M
  float const* gradient;  ///< [rows, stride] D M of the group; null where it is the whole row
  double const* ones;     ///< [count] of ones and M
  index_t ld;
  index_t stride;
  grid_store grids;  ///< whose row 0 is the first one
  std::uint8_t const* codes;
  double* gained;
  float* centers;  ///< [rows]
  index_t columns;
  index_t first, count;
  index_t group;
  gptq::solver::grid_rules rules;
};

/// Sum over a block's threads, for all of them.
template <int Threads>
__device__ double sum_over_block(double value) {
  __shared__ double parts[Threads / 32];
  value = sum_over_lanes<32>(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (int i = 0; i < Threads / 32; ++i) sum += parts[i];
  return sum;
}

/// A large group's levels. A block a row.
template <int Threads = 256>
__global__ void load_large_group(large_group g) {
  index_t const row = blockIdx.x;
  code_levels const& levels = g.rules.levels;
  index_t const at = row * g.grids.groups + g.group;
  float const zero = levels.zero_point({0.0F, g.grids.zeros == nullptr ? 0 : int{g.grids.zeros[at]}});
  std::uint8_t const* const codes = g.codes + row * g.columns + g.first;
  float center = 0.0F;
  if (levels.has_zero_point) {
    double sum = 0.0;  // of whole numbers: exact in any order
    for (index_t c = threadIdx.x; c < g.count; c += Threads)
      sum += static_cast<double>(codes[c]) - double{zero};
    center = roundf(static_cast<float>(sum_over_block<Threads>(sum)) / static_cast<float>(g.count));
  }
  for (index_t c = threadIdx.x; c < g.stride; c += Threads) {
    g.levels[row * g.stride + c] = c < g.count ? static_cast<float>(codes[c]) - zero - center : 0.0F;
  }
  if (threadIdx.x == 0) g.centers[row] = center;
}

/// A large group's best grid for the levels it has. A block a row.
template <int Threads = 256>
__global__ void fit_large_group(large_group g) {
  index_t const row = blockIdx.x;
  float const* const level = g.levels + row * g.stride;
  float const* const product = g.product + row * g.stride;
  float* const difference = g.difference + row * g.ld + g.first;
  gptq::solver::group_sums sums;
  for (index_t c = threadIdx.x; c < g.count; c += Threads) {
    auto const l = static_cast<double>(level[c]);
    double const one = g.ones[c];
    sums.level_level += l * static_cast<double>(product[c]);
    sums.level_one += l * one;
    sums.one_one += one;
    if (g.gradient == nullptr) {  // l g' = (l M) d'
      sums.level_slope += static_cast<double>(product[c]) * static_cast<double>(difference[c]);
      sums.one_slope += one * static_cast<double>(difference[c]);
    } else {
      auto const slope = static_cast<double>(g.gradient[row * g.stride + c]);
      sums.level_slope += l * slope;
      sums.one_slope += slope;
    }
  }
  float const center = g.centers[row];
  sums.center = static_cast<double>(center);
  sums.level_level = sum_over_block<Threads>(sums.level_level);
  sums.level_one = sum_over_block<Threads>(sums.level_one);
  sums.one_one = sum_over_block<Threads>(sums.one_one);
  sums.level_slope = sum_over_block<Threads>(sums.level_slope);
  sums.one_slope = sum_over_block<Threads>(sums.one_slope);
  index_t const at = row * g.grids.groups + g.group;
  grid const from{g.grids.scales[at], g.grids.zeros == nullptr ? 0 : int{g.grids.zeros[at]}};
  gptq::solver::grid_change const best = gptq::solver::best_grid(sums, from, g.rules);
  if (!(best.change < 0.0)) return;
  auto const by = static_cast<float>(best.to.zero - from.zero);
  for (index_t c = threadIdx.x; c < g.count; c += Threads) {
    difference[c] -= best.to.scale * (level[c] + (center - by)) - from.scale * (level[c] + center);
  }
  __syncthreads();  // all have read the grid
  if (threadIdx.x != 0) return;
  g.gained[row] -= best.change;
  g.grids.set(row, g.group, best.to);
}

}  // namespace gptq::cuda::detail
