// gemv on compute capability 9.0 and newer. Two warps keep a ring of stages filled by bulk copies: one has
// some chunks of a few row tiles, their scales and zeros, the other the columns of activations that belong to
// them. The others multiply, each a chunk of a stage, and add up when they are done with the row tiles.
#pragma once

#include <gptq/cuda/detail/bulk_copy.cuh>
#include <gptq/cuda/fragments.cuh>

namespace gptq::cuda::detail {

/// Chunks of a stage: each of the warps that multiply has one.
inline constexpr int stage_chunks = 8;
inline constexpr int gemv_sm90_threads = 32 * (stage_chunks + 2);

/// Shared memory: barriers, zeros in place of columns that are not there, the ring, and sums of the warps.
template <device_format Format, int RowTiles>
struct gemv_memory {
  using s = staged<Format>;
  static constexpr int most_slots = 16;
  static constexpr int barrier_bytes = 2 * most_slots * 8, no_column_bytes = 256;
  static constexpr int ring_offset = barrier_bytes + no_column_bytes;

  /// Of a row tile in a stage.
  static constexpr int code_bytes = stage_chunks * s::code_bytes;
  static constexpr int scale_bytes = stage_chunks * s::scale_bytes;
  static constexpr int zero_bytes = stage_chunks * s::zero_bytes;
  static constexpr int weight_bytes = RowTiles * (code_bytes + scale_bytes + zero_bytes);
  /// Of a column in a stage: such that eight lanes that read at once find eight different groups of banks.
  static constexpr int column_bytes = stage_chunks * 256 + 64;

  GPTQ_HOST_DEVICE static constexpr int stage_bytes(int columns) {
    return (weight_bytes + columns * column_bytes + 127) / 128 * 128;
  }
  /// Of a row's sums: an odd number of floats, for the banks' sake.
  GPTQ_HOST_DEVICE static constexpr int pitch(int columns) { return columns | 1; }
  static constexpr int sum_bytes(int columns) {
    return stage_chunks * RowTiles * tile_rows * pitch(columns) * int{sizeof(float)};
  }
  /// Slots of the ring in so many bytes of shared memory.
  static constexpr int slots(int bytes, int columns) {
    return std::clamp((bytes - ring_offset - sum_bytes(columns)) / stage_bytes(columns), 0, most_slots);
  }
};

/// Adds a chunk of each of RowTiles row tiles, times up to 8 columns, to `sums`. operand(h) is 16 bytes of a
/// column: fragments 2h and 2h+1.
///
/// Bare codes are multiplied as they are, and so are ones: a group's sum of code * x, less zero point * sum
/// of x, is what the scale applies to. Fragments are the outer loop: products that wait for one another are
/// as far apart as they can be.
template <bool Bare, device_format Format, class T, int RowTiles, class Operand>
__device__ __forceinline__ void multiply_chunks(lane_chunk<Format> const (&w)[RowTiles], Operand&& operand,
                                                float (&sums)[RowTiles][4]) {
  constexpr int groups = staged<Format>::groups, bits = Format::bits;
  unrolled<0, groups>([&]<int J>() {
    constexpr int first = 8 / groups * J, last = first + 8 / groups;
    float c[RowTiles][4] = {};
    [[maybe_unused]] float of_x[4] = {};
    uint4 b;
    unrolled<first, last>([&]<int F>() {
      if (F % 2 == 0) b = operand(F / 2);
      std::uint32_t const b0 = F % 2 == 0 ? b.x : b.z, b1 = F % 2 == 0 ? b.y : b.w;
      if constexpr (Bare) {
        std::uint32_t const ones[4] = {twice(1), twice(1), twice(1), twice(1)};
        multiply<T>(of_x, ones, b0, b1);
      }
      std::uint32_t a[RowTiles][4];
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        if constexpr (Bare) {
          w[r].template bare<F>(a[r]);
        } else {
          w[r].template decode<T, F>(a[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) multiply<T>(c[r], a[r], b0, b1);
    });
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
      if constexpr (Bare) {
        constexpr float unit = 0x1p24F, factor = bare_factor<bits>;
        float const scales[2] = {unit * w[r].scales[J][0], unit / factor * w[r].scales[J][1]};
        float zeros[2] = {Format::levels.zero, Format::levels.zero};
        if constexpr (Format::has_zero_point) {
          zeros[0] = static_cast<float>(w[r].zeros[J][0]), zeros[1] = static_cast<float>(w[r].zeros[J][1]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // columns; rows g and g+8 of each
          float const lower = c[r][i], upper = c[r][2 + i] - (bare_rows_overlap<bits> ? lower : 0.0F);
          sums[r][i] = fmaf(scales[0], fmaf(-zeros[0], of_x[i], lower), sums[r][i]);
          sums[r][2 + i] = fmaf(scales[1], fmaf(-factor * zeros[1], of_x[2 + i], upper), sums[r][2 + i]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[r][i] = fmaf(w[r].scales[J][i / 2], c[r][i], sums[r][i]);
      }
    }
  });
}

/// Blocks have RowTiles row tiles each in turn, or (not in_turn) block b of n those from b / n of all to
/// (b + 1) / n. The next kernel may start when `late` stages are left to copy.
template <device_format Format, class T, int Parts, class Y, int RowTiles>
__global__ void __launch_bounds__(bulk_copy_bound(gemv_sm90_threads), 2)
    gemv_sm90(prepacked_view<Format> w, operands<T> x, Y* y, int slots, int late, bool in_turn) {
#if GPTQ_BULK_COPIES
  using m = gemv_memory<Format, RowTiles>;
  using s = staged<Format>;
  using layout = prepacked_layout<Format>;
  // What bare codes lose of a sum's digits float would show.
  constexpr bool bare = takes_bare_codes<T> && sizeof(Y) == 2;
  constexpr int scale_unit = tile_rows * int{sizeof(typename Format::scale)};  // of a row tile and group
  extern __shared__ __align__(128) char memory[];
  auto* const full = reinterpret_cast<std::uint64_t*>(memory);
  auto* const empty = full + m::most_slots;
  char* const no_column = memory + m::barrier_bytes;
  char* const ring = memory + m::ring_offset;
  int const stage_bytes = m::stage_bytes(x.columns);
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int const chunks = static_cast<int>(w.layout().chunks()), groups = static_cast<int>(w.layout().groups());
  int const steps = (chunks + stage_chunks - 1) / stage_chunks;
  index_t const all_tiles = w.layout().row_tiles();
  int const first_tile =
      static_cast<int>(in_turn ? index_t{blockIdx.x} * RowTiles : all_tiles * blockIdx.x / gridDim.x);
  int const end_tile = static_cast<int>(in_turn ? all_tiles : all_tiles * (blockIdx.x + 1) / gridDim.x);
  int const tile_step = in_turn ? RowTiles * static_cast<int>(gridDim.x) : RowTiles;
  int const total = (end_tile - first_tile + tile_step - 1) / tile_step * steps;
  auto const group_of = [&](int chunk) { return static_cast<int>(layout{}.group_of(chunk)); };

  if (warp == stage_chunks) {  // copies weights, which do not depend on the kernel before
    if (lane < slots) {
      initialize_barrier(full + lane, 1 + 32 + (Format::has_zero_point ? 32 : 0));
      initialize_barrier(empty + lane, 32 * stage_chunks);
    }
    publish_barriers();
    __syncthreads();
    int slot = 0, parity = 1, left = total;
    late = min(late, total);
    for (int tile = first_tile; tile < end_tile; tile += tile_step) {
      int const present = min(RowTiles, end_tile - tile);
      char const* codes = reinterpret_cast<char const*>(w.codes) + index_t{tile} * chunks * s::code_bytes;
      auto const scales = reinterpret_cast<char const*>(w.scales) + index_t{tile} * groups * scale_unit;
      auto const zeros = reinterpret_cast<char const*>(w.zeros) + index_t{tile} * groups * layout::zero_bytes;
      for (int step = 0; step < steps; ++step) {
        int const first = step * stage_chunks, count = min(stage_chunks, chunks - first);
        int const first_group = group_of(first);
        int const stage_groups = layout::chunk_groups > 1 ? count * layout::chunk_groups
                                                          : group_of(first + count - 1) - first_group + 1;
        char* const stage = ring + slot * stage_bytes;
        std::uint64_t* const barrier = full + slot;
        if (left == late) let_successor_start();
        --left;
        wait_for(empty + slot, parity);
        if (one_of_warp()) {
          arrive_expecting(barrier, present * (count * s::code_bytes + stage_groups * scale_unit));
#pragma unroll
          for (int r = 0; r < RowTiles; ++r) {
            if (r < present) {
              copy_bulk(stage + r * m::code_bytes, codes + index_t{r} * chunks * s::code_bytes,
                        count * s::code_bytes, barrier);
              copy_bulk(stage + RowTiles * m::code_bytes + r * m::scale_bytes,
                        scales + (index_t{r} * groups + first_group) * scale_unit, stage_groups * scale_unit,
                        barrier);
            }
          }
        }
        if constexpr (Format::has_zero_point) {  // 4 bytes at a time: they are aligned to no more
          char* const to = stage + RowTiles * (m::code_bytes + m::scale_bytes);
#pragma unroll
          for (int r = 0; r < RowTiles; ++r) {
            if (r >= present) break;
#pragma unroll 1
            for (int i = 4 * lane; i < stage_groups * layout::zero_bytes; i += 4 * 32) {
              copy_async<4>(to + r * m::zero_bytes + i,
                            zeros + (index_t{r} * groups + first_group) * layout::zero_bytes + i);
            }
          }
          arrive_when_copied(barrier);
        }
        codes += stage_chunks * s::code_bytes;
        if (++slot == slots) slot = 0, parity ^= 1;
      }
    }
    return;
  }
  if (warp == stage_chunks + 1) {  // copies columns; what is behind them counts as 0
    __syncthreads();
    wait_for_predecessor();
    constexpr int units = stage_chunks * 16 / 32;  // of 16 bytes, of a lane and column
    int slot = 0, parity = 1;
    for (int tile = first_tile; tile < end_tile; tile += tile_step) {
      T const* from = x.data + 8 * lane;
      int left = static_cast<int>(x.width) - 8 * lane;
      for (int step = 0; step < steps; ++step) {
        char* to = ring + slot * stage_bytes + m::weight_bytes + 16 * lane;
        T const* column = from;
        wait_for(empty + slot, parity);
#pragma unroll 1
        for (int c = 0; c < x.columns; ++c) {
#pragma unroll
          for (int u = 0; u < units; ++u) {
            copy_async_or_zero(to + 512 * u, column + (256 * u < left ? 256 * u : 0), 256 * u < left);
          }
          to += m::column_bytes;
          column += x.stride;
        }
        arrive_when_copied(full + slot);
        from += stage_chunks * chunk_columns;
        left -= stage_chunks * chunk_columns;
        if (++slot == slots) slot = 0, parity ^= 1;
      }
    }
    return;
  }

  if (threadIdx.x < m::no_column_bytes / 16) {
    reinterpret_cast<uint4*>(no_column)[threadIdx.x] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  wait_for_predecessor();
  int slot = 0, parity = 0;
  int const column_offset = m::weight_bytes + lane / 4 * m::column_bytes + warp * 256 + 16 * (lane % 4);
  float* const shared = reinterpret_cast<float*>(ring + slots * stage_bytes);
  int const pitch = m::pitch(x.columns);
  for (int tile = first_tile; tile < end_tile; tile += tile_step) {
    float sums[RowTiles][4] = {};
    for (int step = 0; step < steps; ++step) {
      int const chunk = step * stage_chunks + warp;
      char* const stage = ring + slot * stage_bytes;
      wait_for(full + slot, parity);
      if (chunk < chunks) {
        int const group = group_of(chunk) - group_of(step * stage_chunks);
        char const* const codes = stage + warp * s::code_bytes;
        char const* const scales = stage + RowTiles * m::code_bytes + group * scale_unit;
        char const* const zeros =
            stage + RowTiles * (m::code_bytes + m::scale_bytes) + group * layout::zero_bytes;
        lane_chunk<Format> words[RowTiles];
#pragma unroll
        for (int r = 0; r < RowTiles; ++r) {
          words[r].load(codes + r * m::code_bytes, scales + r * m::scale_bytes, zeros + r * m::zero_bytes,
                        lane);
        }
        char const* const column = lane / 4 < x.columns ? stage + column_offset : no_column;
        multiply_chunks<bare, Format, T>(
            words, [&](int h) { return *reinterpret_cast<uint4 const*>(column + 64 * h); }, sums);
      }
      __syncwarp();          // or arrivals of a lane that is late cost an instruction of their own
      arrive(empty + slot);  // each lane for its own reads, which is what racecheck understands
      if (++slot == slots) slot = 0, parity ^= 1;
    }

    // The warps' sums: [warp][row][column].
    constexpr int rows = RowTiles * tile_rows;
    if (tile != first_tile) wait_for_threads<32 * stage_chunks>();  // until the last have been added up
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        int const row = warp * rows + r * tile_rows + lane / 4 + 8 * (k / 2);
        int const column = 2 * (lane % 4) + k % 2;
        if (column < x.columns) shared[row * pitch + column] = sums[r][k];
      }
    }
    wait_for_threads<32 * stage_chunks>();
#pragma unroll 1
    for (int j = threadIdx.x; j < rows * (x.columns / Parts); j += 32 * stage_chunks) {
      int const row = j % rows, token = j / rows;
      float const sum = sum_of_warps<stage_chunks, Parts>(shared, rows, pitch, row, token);
      index_t const at = index_t{tile} * tile_rows + row;
      if (at < min(w.out, index_t{end_tile} * tile_rows)) y[token * w.out + at] = to<Y>(sum);
    }
  }
#endif
}

/// How gemv_sm90() is launched.
struct gemv_plan {
  int row_tiles;
  int shares;  ///< blocks that share a multiprocessor's memory, those of the next kernel included
  int blocks;  ///< blocks of a multiprocessor
  int late;    ///< stages left to copy when the next kernel may start
  bool in_turn;
  int slots = 2;  ///< at least
};

template <device_format Format, class T, int Parts, class Y>
class gemv_launcher {
 public:
  gemv_launcher(prepacked_view<Format> const& w, operands<T> const& x, Y* y, cudaStream_t stream,
                bool overlap, device const& gpu)
      : w_(w), x_(x), y_(y), stream_(stream), overlap_(overlap), gpu_(gpu) {}

  /// Launches, unless the ring would have too few slots.
  bool operator()(gemv_plan const& plan) const {
    switch (plan.row_tiles) {
      case 2:
        return run<2>(plan);
      case 3:
        return run<3>(plan);
      default:
        return run<4>(plan);
    }
  }

 private:
  template <int RowTiles>
  bool run(gemv_plan const& plan) const {
    // The system takes 1 KiB for each block; one block can have all of a multiprocessor's less that.
    int const memory = (gpu_.shared_memory + 1024) / plan.shares - 1024;
    int const slots = gemv_memory<Format, RowTiles>::slots(memory, x_.columns);
    if (slots < plan.slots) return false;
    index_t const tiles = w_.layout().row_tiles();
    index_t const parts = plan.in_turn ? (tiles + RowTiles - 1) / RowTiles : tiles;
    launch(gemv_sm90<Format, T, Parts, Y, RowTiles>,
           {.grid = static_cast<unsigned>(std::min(parts, index_t{plan.blocks} * gpu_.multiprocessors)),
            .block = gemv_sm90_threads,
            .shared_memory = static_cast<std::size_t>(memory),
            .stream = stream_,
            .overlap = overlap_},
           w_, x_, y_, slots, plan.late, plan.in_turn);
    return true;
  }

  prepacked_view<Format> const& w_;
  operands<T> const& x_;
  Y* y_;
  cudaStream_t stream_;
  bool overlap_;
  device const& gpu_;
};

/// y = W x for up to 8 columns, where this program has gemv_sm90() for this device, and memory for it.
///
/// What has been fastest on an H200: a matrix that takes long is for one block of each multiprocessor, with
/// all of its memory. For a short one the block has half of it: the other half is the next kernel's, whose
/// ring is full by the time it may start. With several columns, which are read again for each few row tiles,
/// that pays no more where a block has many row tiles; two blocks then have as few each as there are.
template <device_format Format, class T, int Parts, class Y>
bool launch_gemv_sm90(prepacked_view<Format> const& w, operands<T> const& x, Y* y, cudaStream_t stream,
                      bool overlap, device const& gpu) {
  if (gpu.capability < 90 || x.columns > 8) return false;
  if (!compiled_for(gemv_sm90<Format, T, Parts, Y, 2>, gemv_sm90_threads)) return false;
  gemv_launcher<Format, T, Parts, Y> const launcher(w, x, y, stream, overlap, gpu);
  auto const over = [](index_t a, index_t b) { return (a + b - 1) / b; };
  index_t const tiles = w.layout().row_tiles(), sms = gpu.multiprocessors;
  constexpr int at_once = 1 << 30;
  // Row tiles that make rounds of the blocks cheapest: what a chunk's columns take is that of 0.6 row tiles.
  auto const in_turn = [&](int blocks) {
    auto const cost = [&](int row_tiles) {
      return over(over(tiles, row_tiles), blocks * sms) * (5 * row_tiles + 3);
    };
    int best = 4;
    for (int const row_tiles : {3, 2}) {
      if (cost(row_tiles) < cost(best)) best = row_tiles;
    }
    return best;
  };
  bool const brief = tiles * w.layout().chunks() * staged<Format>::code_bytes < sms * (512 * 1024);
  index_t const share = over(tiles, sms);
  if (brief && share > 2 && x.columns > 1) {
    if (launcher({in_turn(2), 2, 2, at_once, true})) return true;
  } else if (brief) {
    if (over(share, 3) < over(share, 2) && launcher({3, 2, 1, 2, false, 4})) return true;
    if (launcher({2, 2, 1, 2, false})) return true;
  }
  return launcher({in_turn(1), 1, 1, at_once, true}) || launcher({2, 1, 1, at_once, true});
}

}  // namespace gptq::cuda::detail
