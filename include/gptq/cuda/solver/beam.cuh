// The sweep over a block of columns with several candidates for the codes of a row: what solver/beam.hpp
// does.
#pragma once

#include <cfloat>
#include <cstdint>

#include <gptq/cuda/solver/sweep.cuh>

namespace gptq::cuda::detail {

/// Candidates of a row at most.
inline constexpr int most_candidates = 6;
/// Numbers of a candidate's f, in the order of the factor's rows in shared memory.
inline constexpr int candidate_floats = block_rows * most_candidates * block_columns;
inline constexpr std::size_t beam_shared_memory =
    sweep_shared_memory +
    static_cast<std::size_t>(candidate_floats) * (sizeof(float) + sizeof(std::uint16_t));

/// values[i] for an i that is only known when it runs, with all values in registers.
__device__ inline float pick(float const* values, int i) {
  float value = 0.0F;
#pragma unroll
  for (int r = 0; r < lane_columns; ++r) value = r == i ? values[r] : value;
  return value;
}

/// Quantizes the positions first..first+width of every row, whose grids are known: every column extends each
/// candidate by its two nearest levels, and those that lose least so far stay. The best one is what is left
/// behind.
template <bool HalfStep>
__global__ void __launch_bounds__(block_rows* row_lanes, 1)
    beam_block(sweep_arguments s, index_t first, int width, int candidates) {
  extern __shared__ float4 beam_memory[];
  block_factor const factor(beam_memory);
  factor.load(s, first, width);
  float* const all_feedback = factor.end();  // [rows of the block, candidates, block_columns]
  auto* const all_history = reinterpret_cast<std::uint16_t*>(all_feedback + candidate_floats);
  int const row_in_block = static_cast<int>(threadIdx.x) / row_lanes;
  int const lane = static_cast<int>(threadIdx.x) % row_lanes;
  index_t const row = index_t{blockIdx.x} * block_rows + row_in_block;
  int const own = lane * lane_columns;
  bool const live = row < s.rows && own < width;
  index_t const place = row * s.ld + s.ld - first - own - lane_columns;  // of the lane's positions, reversed
  float* const feedback = all_feedback + row_in_block * most_candidates * block_columns;
  // The candidates of each column: code and, above it, which one it goes on from.
  std::uint16_t* const history = all_history + row_in_block * most_candidates * block_columns;
  float weight[lane_columns], left[lane_columns], scale[lane_columns], zero[lane_columns];
  load_lane(s.work, place, live, weight);
  load_lane(s.feedback, place, live, left);
#pragma unroll
  for (int r = 0; r < lane_columns; ++r) {
    bool const there = live && own + r < width;
    index_t const at = there ? row * s.grids.groups + s.groups[first + own + r] : 0;
    scale[r] = there ? s.grids.scales[at] : 0.0F;  // 0 for what is not there: it stays as it is
    zero[r] = there ? s.rules.levels.zero_point({0.0F, s.grids.zeros == nullptr ? 0 : int{s.grids.zeros[at]}})
                    : 0.0F;
    if (!there) left[r] = 0.0F;
  }
  auto const parts = [&](int candidate) {
    return reinterpret_cast<float4*>(feedback + candidate * block_columns) + lane;
  };
  parts(0)[0] = {left[0], left[1], left[2], left[3]};
  parts(0)[block_columns / 8] = {left[4], left[5], left[6], left[7]};
  __syncthreads();

  auto const lowest = static_cast<float>(s.rules.levels.min_code);
  auto const highest = static_cast<float>(s.rules.levels.max_code);
  double loss[most_candidates] = {};  // of those that are alive
  int alive = 1;
  for (int owner = 0; owner * lane_columns < width; ++owner) {
#pragma unroll 1
    for (int r = 0; r < lane_columns; ++r) {
      int const c = owner * lane_columns + r;
      if (c == width) break;
      float const w = __shfl_sync(all_lanes, pick(weight, r), owner, row_lanes);
      float const g = __shfl_sync(all_lanes, pick(scale, r), owner, row_lanes);
      float const z = __shfl_sync(all_lanes, pick(zero, r), owner, row_lanes);
      float const divisor = safe_divisor(g);
      float const pivot = factor.pivots()[c], inverse_pivot = factor.inverse_pivots()[c];
      double best[most_candidates];
      int extension[most_candidates];  // code + 256 * parent
#pragma unroll
      for (int i = 0; i < most_candidates; ++i) best[i] = INFINITY, extension[i] = 0;
      // Sorted, ties in order of arrival; of those beyond `candidates` none is read.
      auto const extend = [&](int parent, double with, float code) {
        int const what = static_cast<int>(code) + 256 * parent;
#pragma unroll
        for (int i = most_candidates - 1; i >= 0; --i) {
          bool const moves = i > 0 && with < best[i > 0 ? i - 1 : 0];
          if (moves) {
            best[i] = best[i > 0 ? i - 1 : 0];
            extension[i] = extension[i > 0 ? i - 1 : 0];
          } else if (with < best[i]) {
            best[i] = with;
            extension[i] = what;
          }
        }
      };
      float now[most_candidates] = {}, other[most_candidates] = {};
      auto const cost = [&](int i, float code) {
        float const e = (now[i] - g * (code - z)) * pivot;
        return loss[i] + double{e} * double{e};
      };
#pragma unroll
      for (int i = 0; i < most_candidates; ++i) {
        if (i >= alive) continue;
        now[i] = fmaf(feedback[i * block_columns + lane_place(c)], inverse_pivot, w);
        float const code = nearest_code<HalfStep>(now[i], divisor, z, lowest, highest);
        extend(i, cost(i, code), code);
        // The level on the other side, or the next one inwards where there is none.
        bool const above = (now[i] > g * (code - z)) == (g > 0.0F);
        float const outwards = above ? 1.0F : -1.0F;
        bool const inside = code + outwards >= lowest && code + outwards <= highest;
        other[i] = code + (inside ? outwards : -outwards);
      }
#pragma unroll
      for (int i = 0; i < most_candidates; ++i) {
        if (i < alive) extend(i, cost(i, other[i]), other[i]);
      }
      alive = min(2 * alive, candidates);
      __syncwarp();  // all have read the feedback
      float4 const* const passed = factor.row(c) + lane;
      float4 const pass_a = passed[0], pass_b = passed[block_columns / 8];
      float4 next_a[most_candidates], next_b[most_candidates];
#pragma unroll
      for (int i = 0; i < most_candidates; ++i) {
        loss[i] = best[i];
        if (i >= alive) continue;
        float const error = w - g * (static_cast<float>(extension[i] % 256) - z);
        float4 a = parts(extension[i] / 256)[0], b = parts(extension[i] / 256)[block_columns / 8];
        a.x = fmaf(error, pass_a.x, a.x), a.y = fmaf(error, pass_a.y, a.y);
        a.z = fmaf(error, pass_a.z, a.z), a.w = fmaf(error, pass_a.w, a.w);
        b.x = fmaf(error, pass_b.x, b.x), b.y = fmaf(error, pass_b.y, b.y);
        b.z = fmaf(error, pass_b.z, b.z), b.w = fmaf(error, pass_b.w, b.w);
        next_a[i] = a, next_b[i] = b;
        if (lane == i) history[c * most_candidates + i] = static_cast<std::uint16_t>(extension[i]);
      }
#pragma unroll
      for (int i = 0; i < most_candidates; ++i) {
        if (i < alive) parts(i)[0] = next_a[i], parts(i)[block_columns / 8] = next_b[i];
      }
      __syncwarp();
    }
  }

  // The codes of the best candidate, from the last column back to the first.
  float code[lane_columns] = {};
  int parent = 0;
  for (int c = width - 1; c >= 0; --c) {
    int const step = history[c * most_candidates + parent];
    parent = step / 256;
#pragma unroll
    for (int r = 0; r < lane_columns; ++r) {
      if (c == own + r) code[r] = static_cast<float>(step % 256);
    }
  }
  if (!live) return;
  if (lane == 0) s.losses[row] += loss[0];
  std::uint32_t codes[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < lane_columns; ++r) {
    codes[r / 4] |= static_cast<std::uint32_t>(code[r]) << (8 * (r % 4));
    weight[r] -= __fmul_rn(scale[r], code[r] - zero[r]);
  }
  store_lane(weight, s.work, place);
  *reinterpret_cast<uint2*>(s.codes + row * s.ld + first + own) = {codes[0], codes[1]};
}

}  // namespace gptq::cuda::detail
