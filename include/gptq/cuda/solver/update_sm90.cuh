// What quantized columns pass on to later ones on compute capability 9.0: f += d R by tensor cores, as
// exactly as in float32.
//
// Two numbers of TF32 make up a float32 but for 2^-23 of it; of the four products of two such sums the least,
// up to 2^-22 of the whole, is left out. Of either sign, these errors are no more than those of a sum in
// float32. Tensor cores cut off what they add up, always towards zero, so they add up the products of no more
// than 32 columns, and the rest is added as float32. Ootomo and Yokota, "Recovering single precision accuracy
// from Tensor Cores while surpassing the FP32 theoretical peak performance", 2022.
//
// A block has two warpgroups that multiply, 64 rows each, of d, which they read and split themselves, and one
// that splits 128 columns of R for both, into a ring of stages of 32 of the columns that pass on.
#pragma once

#include <algorithm>
#include <cstdint>

#include <gptq/config.hpp>
#include <gptq/cuda/device.cuh>
#include <gptq/cuda/kernels/warpgroup.cuh>

namespace gptq::cuda::detail {

inline constexpr int update_multiplying = 2;  ///< warpgroups
inline constexpr int update_rows = 64 * update_multiplying;
inline constexpr int update_columns = 128;
inline constexpr int update_depth = 6;
inline constexpr int update_step = 32;  ///< columns that pass on, of a stage
inline constexpr int update_threads = (update_multiplying + 1) * warpgroup_size;
/// Bytes of the high parts of R's numbers in a stage, and as many of the low parts.
inline constexpr int update_part = update_columns * update_step * int{sizeof(float)};
inline constexpr std::size_t update_shared_memory = update_depth * 2 * update_part + ring_overhead;
/// Registers of a thread that splits and of one that multiplies.
inline constexpr int splitting_registers = 104, updating_registers = 200;
static_assert(splitting_registers + update_multiplying * updating_registers <=
              (update_multiplying + 1) * registers_at_start(update_threads));

/// All are row-major with `ld` floats from row to row, a multiple of 4, and begin at 16 bytes.
struct update_arguments {
  float const* differences;  ///< d[rows, inner]
  float const* factor;       ///< R'[columns, inner]
  float* feedback;           ///< f[rows, columns]
  index_t ld;
  index_t rows;
  int columns;  ///< even
  int inner;    ///< a multiple of update_step, and not 0
  bool add;     ///< to what is in f

  GPTQ_HOST_DEVICE int row_tiles() const { return static_cast<int>((rows + update_rows - 1) / update_rows); }
  GPTQ_HOST_DEVICE int tiles() const {
    return row_tiles() * ((columns + update_columns - 1) / update_columns);
  }
  GPTQ_HOST_DEVICE index_t first_row(int tile) const { return index_t{tile % row_tiles()} * update_rows; }
  GPTQ_HOST_DEVICE int first_column(int tile) const { return tile / row_tiles() * update_columns; }
};

#if GPTQ_WARPGROUPS

/// x as the sum of two numbers of TF32.
struct tf32_pair {
  std::uint32_t high, low;
  __device__ explicit tf32_pair(float x) : high(rounded(x)), low(rounded(x - __uint_as_float(high))) {}

 private:
  __device__ static std::uint32_t rounded(float x) {
    std::uint32_t y = 0;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
  }
};

/// Has the cache get what a tile of f will be added to. Each of update_rows threads asks for a row.
__device__ __forceinline__ void prefetch_feedback(update_arguments const& u, int tile) {
  static_assert(warpgroup_size == update_rows);
  index_t const row = u.first_row(tile) + threadIdx.x;
  if (row >= u.rows) return;
  int const first = u.first_column(tile), end = min(first + update_columns, u.columns);
  for (int column = first; column < end; column += 32) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(u.feedback + row * u.ld + column));
  }
}

#endif

/// A block computes update_rows x update_columns of f at a time, and has every gridDim.x-th of these tiles;
/// those of the same columns follow each other.
///
/// A lane t of four has, of every 32 columns that pass on, those from 8t on, to read them 16 bytes at a time.
/// Tensor cores take columns t and t + 4 of every 8 to be its own: so of R, column 8t + 2s + h of a stage
/// goes to where 8s + 4h + t would.
template <int Threads = update_threads>
__global__ void __launch_bounds__(warpgroup_bound(Threads), 1) update_sm90(update_arguments u) {
#if GPTQ_WARPGROUPS
  extern __shared__ char unaligned[];
  char* const memory =
      unaligned + (ring_alignment - shared_address(unaligned) % ring_alignment) % ring_alignment;
  auto* const full = reinterpret_cast<std::uint64_t*>(memory + update_depth * 2 * update_part);
  auto* const empty = full + update_depth;
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / warpgroup_size;
  int const tiles = u.tiles(), steps = u.inner / update_step;
  if (threadIdx.x == 0) {
    for (int i = 0; i < update_depth; ++i) {
      initialize_barrier(full + i, warpgroup_size);
      initialize_barrier(empty + i, warpgroup_size * update_multiplying);
    }
    publish_barriers();
  }
  __syncthreads();

  if (group == 0) {
    shrink_to<splitting_registers>();
    constexpr int at_once = warpgroup_size / 8;  // rows of R', by 8 threads each
    constexpr int count = update_columns / at_once;
    int const own = threadIdx.x / 8, part = threadIdx.x % 8;
    float4 const* from[count];
    float4 next[count];
    auto const read = [&](int i) {
#pragma unroll
      for (int k = 0; k < count; ++k) next[k] = from[k][i * (update_step / 4)];
    };
    auto const begin = [&](int tile) {
      if (tile >= tiles) return;
#pragma unroll
      for (int k = 0; k < count; ++k) {  // columns beyond the last repeat it
        index_t const column = min(u.first_column(tile) + own + k * at_once, u.columns - 1);
        from[k] = reinterpret_cast<float4 const*>(u.factor + column * u.ld) + part;
      }
      read(0);
    };
    begin(blockIdx.x);
    int slot = 0, parity = 1;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      if (u.add) prefetch_feedback(u, tile);
      for (int i = 0; i < steps; ++i) {
        float now[count][4];
#pragma unroll
        for (int k = 0; k < count; ++k) {
          now[k][0] = next[k].x, now[k][1] = next[k].y, now[k][2] = next[k].z, now[k][3] = next[k].w;
        }
        if (i + 1 < steps) {
          read(i + 1);
        } else {
          begin(tile + gridDim.x);
        }
        wait_for(empty + slot, parity);
        char* const stage = memory + slot * (2 * update_part) + own * 128 + part / 2 * 4;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          char* const unit = stage + ((part % 2 * 4 + e) ^ own % 8) * 16;
#pragma unroll
          for (int k = 0; k < count; ++k) {
            tf32_pair const pair(now[k][e]);
            *reinterpret_cast<std::uint32_t*>(unit + k * at_once * 128) = pair.high;
            *reinterpret_cast<std::uint32_t*>(unit + k * at_once * 128 + update_part) = pair.low;
          }
        }
        publish_writes();
        arrive(full + slot);
        if (++slot == update_depth) slot = 0, parity ^= 1;
      }
    }
    return;
  }

  grow_to<updating_registers>();
  constexpr int column_tiles = update_columns / 8;
  int const own = (group - 1) * 64 + warp * 16 + lane / 4;  // row of a tile; the other is 8 on
  float4 const* from[2];
  float4 next[2][2];
  auto const read = [&](int i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int k = 0; k < 2; ++k) next[r][k] = from[r][i * (update_step / 4) + k];
    }
  };
  auto const begin = [&](int tile) {
    if (tile >= tiles) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // rows beyond the last repeat it
      index_t const row = min(u.first_row(tile) + own + 8 * r, u.rows - 1);
      from[r] = reinterpret_cast<float4 const*>(u.differences + row * u.ld) + lane % 4 * 2;
    }
    read(0);
  };
  begin(blockIdx.x);
  float c[column_tiles][4];
  leave_undefined(c);
  int slot = 0, parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[column_tiles][4];
#pragma unroll
    for (int n = 0; n < column_tiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[n][k] = 0.0F;
    }
    for (int i = 0; i < steps; ++i) {
      std::uint32_t high[4][4], low[4][4];
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {  // column 2s + k / 2 of row k % 2
          float4 const v = next[k % 2][s / 2];
          tf32_pair const pair(s % 2 == 0 ? (k < 2 ? v.x : v.y) : (k < 2 ? v.z : v.w));
          high[s][k] = pair.high, low[s][k] = pair.low;
        }
      }
      wait_for(full + slot, parity);
      std::uint32_t const address = shared_address(memory + slot * (2 * update_part));
      begin_products();
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        start_product_tf32(c, low[s], operand_in_shared_memory(address + 32 * s), s > 0);
        start_product_tf32(c, high[s], operand_in_shared_memory(address + update_part + 32 * s), true);
      }
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        start_product_tf32(c, high[s], operand_in_shared_memory(address + 32 * s), true);
      }
      commit_products();
      if (i + 1 < steps) {
        read(i + 1);
      } else {
        begin(tile + gridDim.x);
      }
      wait_products<0>();
      arrive(empty + slot);
      pin(c);
#pragma unroll
      for (int n = 0; n < column_tiles; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[n][k] += c[n][k];
      }
      if (++slot == update_depth) slot = 0, parity ^= 1;
    }
    index_t const row = u.first_row(tile) + own;
    int const column = u.first_column(tile) + lane % 4 * 2;
    if (u.add) {  // all are read before the first is written
      float2 before[2][column_tiles];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        auto const* const at = reinterpret_cast<float2 const*>(u.feedback + (row + 8 * r) * u.ld + column);
#pragma unroll
        for (int n = 0; n < column_tiles; ++n) {
          bool const there = row + 8 * r < u.rows && column + 8 * n < u.columns;
          before[r][n] = there ? at[4 * n] : float2{0.0F, 0.0F};
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 0; n < column_tiles; ++n) {
          sums[n][2 * r] += before[r][n].x, sums[n][2 * r + 1] += before[r][n].y;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      auto* const to = reinterpret_cast<float2*>(u.feedback + (row + 8 * r) * u.ld + column);
#pragma unroll
      for (int n = 0; n < column_tiles; ++n) {
        if (row + 8 * r < u.rows && column + 8 * n < u.columns)
          to[4 * n] = {sums[n][2 * r], sums[n][2 * r + 1]};
      }
    }
  }
#endif
}

/// Whether this device runs update_sm90(), and the program has it for sm_90a.
inline bool update_sm90_runs(device const& gpu) {
  return gpu.capability == 90 && compiled_for(update_sm90<>, update_threads);
}

/// @param multiprocessors  to run on at most; the rest are free for what runs beside
inline void launch_update_sm90(update_arguments const& u, int multiprocessors, cudaStream_t stream) {
  launch(update_sm90<>,
         {.grid = static_cast<unsigned>(std::min(u.tiles(), multiprocessors)),
          .block = update_threads,
          .shared_memory = update_shared_memory,
          .stream = stream},
         u);
}

}  // namespace gptq::cuda::detail
