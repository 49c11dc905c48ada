// The sweep of GPTQ over the columns.
//
// The algorithm is that of solver/sweep.hpp: with the damped Hessian H = R R', R upper triangular, position
// j is quantized at
//
//   w_now[j] = w[j] + f[j] / R_jj,   f[j] = sum over i < j of (w[i] - q[i]) R_ij
//
// Positions p = 0..K-1 number the columns in the order they are quantized; memory holds them in reversed
// order, position p at ld - 1 - p, because R is the lower triangular Cholesky factor L of the reversed
// Hessian. ld is K rounded up to 8, so that position 0 ends a row and eight positions are two aligned
// vectors.
#pragma once

#include <cfloat>
#include <cstdint>

#include <gptq/cuda/solver/grids.cuh>
#include <gptq/grid.hpp>
#include <gptq/solver/grid_steps.hpp>

namespace gptq::cuda::detail {

/// Columns that one launch sweeps at most; a row has sixteen lanes with eight positions each.
inline constexpr int block_columns = 128;
inline constexpr int lane_columns = 8;
inline constexpr int row_lanes = block_columns / lane_columns;
inline constexpr int block_rows = 16;
/// Floats from one row of the factor to the next in shared memory.
inline constexpr int factor_stride = block_columns + 4;
inline constexpr std::size_t sweep_shared_memory =
    static_cast<std::size_t>(block_columns) * (factor_stride + 2) * sizeof(float);

struct sweep_arguments {
  float* work;            ///< [rows, ld] W, then W - Q
  float const* feedback;  ///< [rows, ld] f of everything before this block; null: none
  float const* factor;    ///< L: entry (a, b), a >= b, at b * ld + a
  index_t ld;
  int const* groups;  ///< [K] of each position
  grid_store grids;
  std::uint8_t* codes;  ///< [rows, ld] by position
  double* losses;       ///< [rows] sums of ((w_now - q) R_jj)^2
  index_t rows;
  int group_columns;    ///< where groups are found here
  float const* metric;  ///< [K] of each position, where grids are searched for
  gptq::solver::grid_rules rules;
};

/// Where position j of a row of `block_columns` numbers is: the first four positions of each lane lie before
/// the other four, which keeps lanes out of each other's banks.
__device__ inline int lane_place(int j) { return (j & 4) * (block_columns / 8) + (j >> 3) * 4 + (j & 3); }

/// What positions of a block pass on to each other, in shared memory.
class block_factor {
 public:
  __device__ explicit block_factor(float4* memory) : passed_(reinterpret_cast<float*>(memory)) {}

  /// R_ij of j = 0, 1, ..., in the order of lane_place(), for i < j, otherwise 0: what position i passes on
  /// to j.
  __device__ float4 const* row(int i) const {
    return reinterpret_cast<float4 const*>(passed_ + i * factor_stride);
  }
  /// R_jj, 0 beyond the block.
  __device__ float* pivots() const { return passed_ + block_columns * factor_stride; }
  /// 1 / R_jj, by which f enters w_now; 0 beyond.
  __device__ float* inverse_pivots() const { return pivots() + block_columns; }
  /// The memory behind it.
  __device__ float* end() const { return inverse_pivots() + block_columns; }

  /// All threads of a block load it, and wait for it.
  __device__ void load(sweep_arguments const& s, index_t first, int width) const {
    float const* const corner =
        s.factor + (s.ld - 1 - first) * (s.ld + 1);  // R_ij is i before it and j rows up
    if (int const i = static_cast<int>(threadIdx.x); i < block_columns) {
      float const pivot = i < width ? corner[-i * (s.ld + 1)] : 0.0F;
      pivots()[i] = pivot;
      inverse_pivots()[i] = i < width ? 1.0F / pivot : 0.0F;
    }
    // Many are under way before the first is stored. A warp's are of eight i and four j, which go to
    // different banks.
    constexpr int at_once = 16, j_step = 4;
    int const i = static_cast<int>(threadIdx.x) / 32 * 8 + static_cast<int>(threadIdx.x) % 8;
    int const j_low = static_cast<int>(threadIdx.x) / 8 % j_step;
    static_assert(block_rows * row_lanes / 4 * 2 == block_columns);
#pragma unroll 1
    for (int from = j_low; from < block_columns; from += at_once / 2 * j_step) {
      float values[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        int const j = from + k / 2 * j_step, i_k = i + k % 2 * (block_columns / 2);
        values[k] = i_k < j && j < width ? corner[-i_k - j * s.ld] : 0.0F;
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        int const j = from + k / 2 * j_step, i_k = i + k % 2 * (block_columns / 2);
        passed_[i_k * factor_stride + lane_place(j)] = values[k];
      }
    }
    __syncthreads();
  }

 private:
  float* passed_;
};

/// A lane's positions of a row in reversed order, which end at `place`; zeros where there is nothing.
__device__ inline void load_lane(float const* from, index_t place, bool there, float* to) {
  float4 const none{0.0F, 0.0F, 0.0F, 0.0F};
  auto const* const vectors = reinterpret_cast<float4 const*>(from + place);
  float4 const a = there && from != nullptr ? vectors[0] : none;
  float4 const b = there && from != nullptr ? vectors[1] : none;
  to[0] = b.w, to[1] = b.z, to[2] = b.y, to[3] = b.x;
  to[4] = a.w, to[5] = a.z, to[6] = a.y, to[7] = a.x;
}
__device__ inline void store_lane(float const* from, float* to, index_t place) {
  auto* const vectors = reinterpret_cast<float4*>(to + place);
  vectors[0] = {from[7], from[6], from[5], from[4]};
  vectors[1] = {from[3], from[2], from[1], from[0]};
}

/// Quantizes the positions first..first+width of every row.
/// @param find  groups begin where position % group_columns is 0, all of them end within the block, and their
///              grids are found here; otherwise they are there already
/// @tparam Search  for their grids, in the sweep's metric
template <bool HalfStep, bool Search>
__global__ void __launch_bounds__(block_rows* row_lanes, 2)
    sweep_block(sweep_arguments s, index_t first, int width, bool find) {
  extern __shared__ float4 sweep_memory[];
  block_factor const factor(sweep_memory);
  factor.load(s, first, width);
  int const lane = static_cast<int>(threadIdx.x) % row_lanes;
  index_t const row = index_t{blockIdx.x} * block_rows + threadIdx.x / row_lanes;
  int const own = lane * lane_columns;
  bool const live = row < s.rows && own < width;
  index_t const place = row * s.ld + s.ld - first - own - lane_columns;  // of the lane's positions, reversed
  float weight[lane_columns];                                            // becomes w - q
  float feedback[lane_columns];                                          // f; 0 beyond the block
  load_lane(s.work, place, live, weight);
  load_lane(s.feedback, place, live, feedback);

  float inverse_pivot[lane_columns];
  float scale[lane_columns];    // 0 for what is not there: it stays as it is
  float inverse[lane_columns];  // of the scale
  float zero[lane_columns];
  std::uint32_t codes[2] = {0, 0};
  float loss = 0.0F;
  auto const use_grid = [&](int r, float grid_scale, float grid_zero) {
    scale[r] = grid_scale;
    // Infinite for a subnormal scale, and 0 times that is no number.
    inverse[r] = grid_scale == 0.0F ? 0.0F : fmaxf(-FLT_MAX, fminf(1.0F / grid_scale, FLT_MAX));
    zero[r] = grid_zero;
  };
#pragma unroll
  for (int r = 0; r < lane_columns; ++r) {
    bool const there = live && own + r < width;
    if (!there) feedback[r] = 0.0F;
    inverse_pivot[r] = factor.inverse_pivots()[own + r];
    if (there && !find) {
      index_t const at = row * s.grids.groups + s.groups[first + own + r];
      use_grid(r, s.grids.scales[at],
               s.rules.levels.zero_point({0.0F, s.grids.zeros == nullptr ? 0 : int{s.grids.zeros[at]}}));
    } else {
      use_grid(r, 0.0F, 0.0F);
    }
  }
  auto const pass_on = [&](float value, int i, float* to) {
    float4 const* const from = factor.row(i) + lane;
    float4 const a = from[0];
    float4 const b = from[block_columns / 8];
    to[0] = fmaf(value, a.x, to[0]), to[1] = fmaf(value, a.y, to[1]);
    to[2] = fmaf(value, a.z, to[2]), to[3] = fmaf(value, a.w, to[3]);
    to[4] = fmaf(value, b.x, to[4]), to[5] = fmaf(value, b.y, to[5]);
    to[6] = fmaf(value, b.z, to[6]), to[7] = fmaf(value, b.w, to[7]);
  };
  auto const lowest = static_cast<float>(s.rules.levels.min_code);
  auto const highest = static_cast<float>(s.rules.levels.max_code);

  int next_group = find ? 0 : width;
  for (int owner = 0; owner * lane_columns < width; ++owner) {
    if (owner * lane_columns == next_group) {
      next_group += s.group_columns;
      // The group's grid is that of the weights it will have when the columns not yet quantized have moved to
      // where the loss is least: w + d with d R = f over the group.
      int const group_end = min(next_group, width);
      bool const member = own >= owner * lane_columns && own < group_end;
      float left[lane_columns];  // of f, when the positions before have moved
#pragma unroll
      for (int r = 0; r < lane_columns; ++r) left[r] = member ? feedback[r] : 0.0F;
      for (int from = owner; from * lane_columns < group_end; ++from) {
#pragma unroll
        for (int r = 0; r < lane_columns; ++r) {
          float const move = __shfl_sync(all_lanes, left[r] * inverse_pivot[r], from, row_lanes);
          pass_on(-move, from * lane_columns + r, left);
        }
      }
      grid g;
      if constexpr (Search) {
        float metric[lane_columns];
#pragma unroll
        for (int r = 0; r < lane_columns; ++r) {
          bool const there = member && own + r < width;
          left[r] = fmaf(left[r], inverse_pivot[r], weight[r]);
          metric[r] = there ? s.metric[first + own + r] : 0.0F;
        }
        auto const each = [&](auto&& use) {
#pragma unroll
          for (int r = 0; r < lane_columns; ++r) {
            if (member && own + r < width) use(left[r], metric[r]);
          }
        };
        g = search_grid<row_lanes, HalfStep>(each, s.rules);
      } else {
        auto const each = [&](auto&& use) {
#pragma unroll
          for (int r = 0; r < lane_columns; ++r) {
            if (member && own + r < width) use(fmaf(left[r], inverse_pivot[r], weight[r]));
          }
        };
        g = find_grid<row_lanes, HalfStep>(each, s.rules.levels, s.rules.grids);
      }
      if (member) {
#pragma unroll
        for (int r = 0; r < lane_columns; ++r) {
          if (own + r < width) use_grid(r, g.scale, s.rules.levels.zero_point(g));
        }
      }
      if (lane == owner && live) s.grids.set(row, s.groups[first + owner * lane_columns], g);
    }
    // All lanes do what only the owner's result is taken of.
    float difference[lane_columns], code[lane_columns];
#pragma unroll
    for (int r = 0; r < lane_columns; ++r) {
      float const now = fmaf(feedback[r], inverse_pivot[r], weight[r]);
      // Its quotient by the scale, rounded correctly, without a division.
      float const about = now * inverse[r];
      float const steps = fmaf(fmaf(-about, scale[r], now), inverse[r], about);
      code[r] = nearest_code<HalfStep>(steps, 1.0F, zero[r], lowest, highest);
      difference[r] = weight[r] - __fmul_rn(scale[r], code[r] - zero[r]);
      pass_on(__shfl_sync(all_lanes, difference[r], owner, row_lanes), owner * lane_columns + r, feedback);
    }
    if (lane == owner) {
#pragma unroll
      for (int r = 0; r < lane_columns; ++r) {
        float const root = fmaf(difference[r], factor.pivots()[own + r], feedback[r]);  // (w_now - q) R_jj
        loss = fmaf(root, root, loss);
        codes[r / 4] |= static_cast<std::uint32_t>(code[r]) << (8 * (r % 4));
        weight[r] = difference[r];
      }
    }
  }

  double const sum = sum_over_lanes<row_lanes>(static_cast<double>(loss));
  if (!live) return;
  if (lane == 0) s.losses[row] += sum;
  store_lane(weight, s.work, place);
  *reinterpret_cast<uint2*>(s.codes + row * s.ld + first + own) = {codes[0], codes[1]};
}

}  // namespace gptq::cuda::detail
