// The kernels of GPTQ.
//
// The algorithm is that of solver/solver.hpp: with the damped Hessian H = R R', R upper triangular, position
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

#include <gptq/cuda/context.cuh>
#include <gptq/cuda/solver/grids.cuh>
#include <gptq/grid.hpp>
#include <gptq/scheme.hpp>

namespace gptq::cuda::detail {

/// Columns that one launch sweeps at most; a row has sixteen lanes with eight positions each.
inline constexpr int block_columns = 128;
inline constexpr int lane_columns = 8;
inline constexpr int row_lanes = block_columns / lane_columns;
inline constexpr int block_rows = 16;
/// Floats from one row of the factor to the next in shared memory.
inline constexpr int tile_stride = block_columns + 4;
inline constexpr std::size_t sweep_shared_memory =
    static_cast<std::size_t>(block_columns) * (tile_stride + 2) * sizeof(float);

struct sweep_arguments {
  float* work;            ///< [rows, ld] W, then W - Q
  float const* feedback;  ///< [rows, ld] f of everything before this block; null: none
  float const* factor;    ///< L: entry (a, b), a >= b, at b * ld + a
  index_t ld;
  int const* group_of;  ///< [K] of each position
  grid_store grids;
  std::uint8_t* codes;  ///< [rows, ld] by position
  double* losses;       ///< [rows] sums of ((w_now - q) R_jj)^2
  index_t rows;
  int group_columns;  ///< where groups are found here
  code_levels levels;
  grid_options options;
};

/// Quantizes the positions first..first+width of every row.
/// @param find  groups begin where position % group_columns is 0, all of them end within the block, and their
///              grids are found here; otherwise they are there already
template <bool HalfStep>
__global__ void __launch_bounds__(block_rows* row_lanes, 2)
    sweep_block(sweep_arguments s, index_t first, int width, bool find) {
  extern __shared__ float4 sweep_memory[];
  // tile[i][j] = R_ij for i < j, otherwise 0: what position i passes on to j. The first four positions of
  // each lane lie before the other four, which keeps lanes out of each other's banks.
  float* const tile = reinterpret_cast<float*>(sweep_memory);
  float* const pivots = tile + block_columns * tile_stride;  // R_jj, 0 beyond the block
  float* const shares = pivots + block_columns;              // 1 / R_jj, what w_now has of f; 0 beyond
  index_t const top = s.ld - 1 - first;
  int const lane = static_cast<int>(threadIdx.x) % row_lanes;
  index_t const row = index_t{blockIdx.x} * block_rows + threadIdx.x / row_lanes;
  int const own = lane * lane_columns;
  bool const live = row < s.rows && own < width;
  index_t const place = row * s.ld + top + 1 - own - lane_columns;  // of the lane's positions, reversed
  float weight[lane_columns];                                       // becomes w - q
  float feedback[lane_columns];                                     // f; 0 beyond the block
  auto const load = [&](float const* from, float* to) {
    float4 const none{0.0F, 0.0F, 0.0F, 0.0F};
    auto const* const vectors = reinterpret_cast<float4 const*>(from + place);
    float4 const a = live && from != nullptr ? vectors[0] : none;
    float4 const b = live && from != nullptr ? vectors[1] : none;
    to[0] = b.w, to[1] = b.z, to[2] = b.y, to[3] = b.x;
    to[4] = a.w, to[5] = a.z, to[6] = a.y, to[7] = a.x;
  };
  load(s.work, weight);
  load(s.feedback, feedback);

  float const* const corner = s.factor + top * (s.ld + 1);  // R_ij is i before it and j rows up
  if (int const i = static_cast<int>(threadIdx.x); i < block_columns) {
    pivots[i] = i < width ? corner[-i * (s.ld + 1)] : 0.0F;
    shares[i] = i < width ? 1.0F / pivots[i] : 0.0F;
  }
  {
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
        int const j = from + k / 2 * j_step, its = i + k % 2 * (block_columns / 2);
        values[k] = its < j && j < width ? corner[-its - j * s.ld] : 0.0F;
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        int const j = from + k / 2 * j_step, its = i + k % 2 * (block_columns / 2);
        tile[its * tile_stride + (j & 4) * (block_columns / 8) + (j >> 3) * 4 + (j & 3)] = values[k];
      }
    }
  }
  __syncthreads();

  float share[lane_columns];
  float scale[lane_columns];    // 0 for what is not there: it stays as it is
  float inverse[lane_columns];  // of the scale
  float zero[lane_columns];
  std::uint32_t codes[2] = {0, 0};
  float loss = 0.0F;
  auto const use_grid = [&](int r, float its_scale, float its_zero) {
    scale[r] = its_scale;
    // Infinite for a subnormal scale, and 0 times that is no number.
    inverse[r] = its_scale == 0.0F ? 0.0F : fmaxf(-FLT_MAX, fminf(1.0F / its_scale, FLT_MAX));
    zero[r] = its_zero;
  };
#pragma unroll
  for (int r = 0; r < lane_columns; ++r) {
    bool const there = live && own + r < width;
    if (!there) feedback[r] = 0.0F;
    share[r] = shares[own + r];
    if (there && !find) {
      index_t const at = row * s.grids.groups + s.group_of[first + own + r];
      use_grid(r, s.grids.scales[at],
               s.levels.zero_of({0.0F, s.grids.zeros == nullptr ? 0 : int{s.grids.zeros[at]}}));
    } else {
      use_grid(r, 0.0F, 0.0F);
    }
  }
  auto const pass_on = [&](float value, int i, float* to) {
    auto const* const its = reinterpret_cast<float4 const*>(tile + i * tile_stride) + lane;
    float4 const a = its[0];
    float4 const b = its[block_columns / 8];
    to[0] = fmaf(value, a.x, to[0]), to[1] = fmaf(value, a.y, to[1]);
    to[2] = fmaf(value, a.z, to[2]), to[3] = fmaf(value, a.w, to[3]);
    to[4] = fmaf(value, b.x, to[4]), to[5] = fmaf(value, b.y, to[5]);
    to[6] = fmaf(value, b.z, to[6]), to[7] = fmaf(value, b.w, to[7]);
  };
  auto const lowest = static_cast<float>(s.levels.min_code);
  auto const highest = static_cast<float>(s.levels.max_code);

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
          float const move = __shfl_sync(all_lanes, left[r] * share[r], from, row_lanes);
          pass_on(-move, from * lane_columns + r, left);
        }
      }
      auto const each = [&](auto&& use) {
#pragma unroll
        for (int r = 0; r < lane_columns; ++r) {
          if (member && own + r < width) use(fmaf(left[r], share[r], weight[r]));
        }
      };
      grid const g = find_grid<row_lanes, HalfStep>(each, s.levels, s.options);
      if (member) {
#pragma unroll
        for (int r = 0; r < lane_columns; ++r) {
          if (own + r < width) use_grid(r, g.scale, s.levels.zero_of(g));
        }
      }
      if (lane == owner && live) s.grids.set(row, (first + owner * lane_columns) / s.group_columns, g);
    }
    // All lanes do what only the owner's result is taken of.
    float difference[lane_columns], code[lane_columns];
#pragma unroll
    for (int r = 0; r < lane_columns; ++r) {
      float const now = fmaf(feedback[r], share[r], weight[r]);
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
        float const root = fmaf(difference[r], pivots[own + r], feedback[r]);  // (w_now - q) R_jj
        loss = fmaf(root, root, loss);
        codes[r / 4] |= static_cast<std::uint32_t>(code[r]) << (8 * (r % 4));
        weight[r] = difference[r];
      }
    }
  }

  double const sum = sum_over_lanes<row_lanes>(static_cast<double>(loss));
  if (!live) return;
  if (lane == 0) s.losses[row] += sum;
  auto* const to = reinterpret_cast<float4*>(s.work + place);
  to[0] = {weight[7], weight[6], weight[5], weight[4]};
  to[1] = {weight[3], weight[2], weight[1], weight[0]};
  *reinterpret_cast<uint2*>(s.codes + row * s.ld + first + own) = {codes[0], codes[1]};
}

/// work[row, ld - 1 - p] = weight[row, order[p]], zero for dead inputs and what pads a row. A block a row.
template <int Threads = 256>
__global__ void gather_weight(float const* weight, float const* diagonal, int const* order, float* work,
                              index_t columns, index_t ld, faults* found) {
  index_t const row = blockIdx.x;
  for (index_t a = threadIdx.x; a < ld; a += Threads) {
    index_t const position = ld - 1 - a;
    float value = 0.0F;
    if (position < columns) {
      index_t const column = order[position];
      value = weight[row * columns + column];
      if (!isfinite(value)) {
        atomicMin(&found->weight, static_cast<unsigned long long>(row * columns + column));
      }
      if (diagonal[column] == 0.0F) value = 0.0F;
    }
    work[row * ld + a] = value;
  }
}

/// The lower triangle of the reversed, damped Hessian, which is of float32 in any case. A block a column.
/// @param dead_diagonal   what a dead input counts as
/// @param added_diagonal  damping
template <class T>
__global__ void gather_hessian(float const* sum, int const* order, T* matrix, index_t columns, index_t stride,
                               float scale, double dead_diagonal, double added_diagonal, faults* found) {
  index_t const b = blockIdx.x;
  index_t const j = order[columns - 1 - b];
  for (index_t a = b + threadIdx.x; a < columns; a += blockDim.x) {
    index_t const i = order[columns - 1 - a];
    float const given = sum[j * columns + i];
    if (!isfinite(given)) atomicMin(&found->hessian, static_cast<unsigned long long>(j * columns + i));
    float value = scale * given;
    if (a == b) {
      double const live = given == 0.0F ? dead_diagonal : double{value};
      value = static_cast<float>(live + added_diagonal);
    }
    matrix[b * stride + a] = value;
  }
}

/// The lower triangle of `wide` as float32, padded at the upper left. A block a column.
template <int Threads = 256>
__global__ void narrow_factor(double const* wide, float* factor, index_t columns, index_t ld) {
  index_t const pad = ld - columns;
  index_t const b = blockIdx.x;
  for (index_t a = b + threadIdx.x; a < columns; a += Threads) {
    factor[(b + pad) * ld + a + pad] = static_cast<float>(wide[b * columns + a]);
  }
}

/// Codes by position to where they are stored: column order[p], or p itself where order is null. A block a
/// row, with `columns` bytes of shared memory.
template <int Threads = 256>
__global__ void store_codes(std::uint8_t const* by_position, int const* order, std::uint8_t* codes,
                            index_t columns, index_t ld) {
  extern __shared__ std::uint8_t stored_row[];
  index_t const row = blockIdx.x;
  for (index_t p = threadIdx.x; p < columns; p += Threads) {
    stored_row[order == nullptr ? p : order[p]] = by_position[row * ld + p];
  }
  __syncthreads();
  for (index_t c = threadIdx.x; c < columns; c += Threads) codes[row * columns + c] = stored_row[c];
}

/// sums[row] = sum over the columns of term(row, column), in double and in a fixed order. A block a row.
template <int Threads, class Term>
__global__ void row_sums(Term term, double* sums, index_t columns) {
  __shared__ double parts[Threads / 32];
  index_t const row = blockIdx.x;
  double sum = 0.0;
  for (index_t column = threadIdx.x; column < columns; column += Threads) sum += term(row, column);
  sum = sum_over_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < Threads / 32; ++i) sum += parts[i];
  sums[row] = sum;
}

/// w[row] . (w S)[row]
struct signal_term {
  float const* weight;   ///< [rows, columns]
  float const* product;  ///< [rows, ld]
  index_t columns;
  index_t ld;

  __device__ double operator()(index_t row, index_t column) const {
    return double{weight[row * columns + column]} * double{product[row * ld + column]};
  }
};

/// What damping and dead inputs add to the loss of a row: to be taken out of it again.
struct damping_term {
  float const* difference;  ///< [rows, ld], reversed
  float const* diagonal;    ///< [columns]
  int const* order;
  index_t ld;
  double added_diagonal;
  double dead_diagonal;

  __device__ double operator()(index_t row, index_t position) const {
    double const d = difference[row * ld + ld - 1 - position];
    double const added = added_diagonal + (diagonal[order[position]] == 0.0F ? dead_diagonal : 0.0);
    return added * d * d;
  }
};

}  // namespace gptq::cuda::detail
