// gemv on compute capability 9.0 and newer. Two warps keep a ring of stages filled by bulk copies: one has
// some chunks of a few row tiles, their scales and zeros, the other the columns of activations that belong to
// them. The others multiply, each a chunk of some of a stage's row tiles, and add up when they are done with
// the row tiles; before, they copy the first of a few columns.
#pragma once

#include <optional>

#include <gptq/cuda/kernels/bulk_copy.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/operands.cuh>

namespace gptq::cuda::detail {

/// Warps that multiply.
inline constexpr int gemv_sm90_warps = 8;
inline constexpr int gemv_sm90_threads = 32 * (gemv_sm90_warps + 2);

/// Shared memory: barriers, zeros in place of columns that are not there, the ring, and sums of the warps.
template <device_format Format, int RowTiles, int RowWarps, int ColumnTiles>
struct gemv_memory {
  using s = staged<Format>;
  static constexpr int stage_chunks = gemv_sm90_warps / RowWarps;
  static constexpr int block_tiles = RowTiles * RowWarps;
  static constexpr int most_slots = 16;
  static constexpr int barrier_bytes = 2 * most_slots * 8, no_column_bytes = 256;
  static constexpr int ring_offset = barrier_bytes + no_column_bytes;

  /// Of a row tile in a stage.
  static constexpr int code_bytes = stage_chunks * s::code_bytes;
  static constexpr int scale_bytes = stage_chunks * s::scale_bytes;
  static constexpr int zero_bytes = stage_chunks * s::zero_bytes;
  static constexpr int weight_bytes = block_tiles * (code_bytes + scale_bytes + zero_bytes);
  /// Of a column in a stage: such that eight lanes that read at once find eight different groups of banks.
  static constexpr int column_bytes = stage_chunks * 256 + 64;

  GPTQ_HOST_DEVICE static constexpr int stage_bytes(int columns) {
    return (weight_bytes + columns * column_bytes + 127) / 128 * 128;
  }
  /// Whether warps get as many row tiles each where a block has fewer than all.
  static constexpr bool uneven = RowTiles == 4 && RowWarps == 2;
  /// Row tiles of each warp that are added up at once. Sums of 16 columns of all of four in a row would take
  /// a slot of the ring.
  static constexpr int pass_tiles = ColumnTiles == 2 && RowTiles == 4 && RowWarps == 1 ? 2 : RowTiles;
  static constexpr int sum_rows = RowWarps * pass_tiles * tile_rows;
  /// Sums of a column, [chunk of a stage][row], such that four that are written at once find different banks.
  static constexpr int column_sums = stage_chunks * sum_rows + 4;
  static constexpr int sum_bytes(int columns) { return columns * column_sums * int{sizeof(float)}; }
  /// Slots of the ring in so many bytes of shared memory.
  static constexpr int slots(int bytes, int columns) {
    return std::clamp((bytes - ring_offset - sum_bytes(columns)) / stage_bytes(columns), 0, most_slots);
  }
};

/// n * 2^-24 in one operation: n below 2^10 as bits of a float16 that is subnormal.
__device__ __forceinline__ float subnormal(std::uint32_t n) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(n)));
}

/// Adds a chunk of each of RowTiles row tiles, times ColumnTiles * 8 columns, to `sums`. operand(n, h) is 16
/// bytes of a column of n: fragments 2h and 2h+1.
///
/// Bare codes are multiplied as they are, and so are ones: a group's sum of code * x, less zero point * sum
/// of x, is what the scale applies to; sums stay in the units of bare codes. Fragments are the outer loop:
/// products that wait for one another are as far apart as they can be.
template <bool Bare, device_format Format, class T, int RowTiles, int ColumnTiles, class Operand>
__device__ __forceinline__ void multiply_chunks(lane_chunk<Format> const (&w)[RowTiles], Operand&& operand,
                                                float (&sums)[RowTiles][ColumnTiles][4]) {
  constexpr int groups = staged<Format>::groups, bits = Format::bits;
  unrolled<0, groups>([&]<int J>() {
    constexpr int first = 8 / groups * J, last = first + 8 / groups;
    float c[RowTiles][ColumnTiles][4] = {};
    [[maybe_unused]] float of_x[ColumnTiles][4] = {};  // x as the A operand: rows are columns, in two halves
    uint4 b[ColumnTiles];
    unrolled<first, last>([&]<int F>() {
      std::uint32_t b0[ColumnTiles], b1[ColumnTiles];
#pragma unroll
      for (int n = 0; n < ColumnTiles; ++n) {
        if (F % 2 == 0) b[n] = operand(n, F / 2);
        b0[n] = F % 2 == 0 ? b[n].x : b[n].z, b1[n] = F % 2 == 0 ? b[n].y : b[n].w;
        if constexpr (Bare && F % 2 == 0) {
          std::uint32_t const a[4] = {b[n].x, b[n].z, b[n].y, b[n].w};
          multiply<T>(of_x[n], a, twice(number<T>::one), twice(number<T>::one));
        }
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
      for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
        for (int r = 0; r < RowTiles; ++r) multiply<T>(c[r][n], a[r], b0[n], b1[n]);
      }
    });
    [[maybe_unused]] float column_sums[ColumnTiles][2];
    if constexpr (Bare) {
#pragma unroll
      for (int n = 0; n < ColumnTiles; ++n) {
        float const sum = of_x[n][0] + of_x[n][2];  // of column 8n + g
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          column_sums[n][i] = __shfl_sync(0xffffffff, sum, 8 * (threadIdx.x % 4) + 4 * i);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
      if constexpr (Bare) {
        constexpr bool overlap = bare_rows_overlap<bits>;
        constexpr int factor = bare_factor<bits>;
        float zeros[2] = {0x1p-24F * Format::levels.zero,
                          0x1p-24F * (factor + (overlap ? 1 : 0)) * Format::levels.zero};
        if constexpr (Format::has_zero_point) {
          std::uint32_t const(&stored)[2] = w[r].zeros[J];
          zeros[0] = subnormal(stored[0]);
          zeros[1] = subnormal(factor * stored[1] + (overlap ? stored[0] : 0));
        }
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {  // columns; rows g and g+8 of each
            float const lower = fmaf(-zeros[0], column_sums[n][i], c[r][n][i]);
            float const upper = fmaf(-zeros[1], column_sums[n][i], c[r][n][2 + i]) - (overlap ? lower : 0.0F);
            float(&sum)[4] = sums[r][n];
            sum[i] = fmaf(w[r].scales[J][0], lower, sum[i]);
            sum[2 + i] = fmaf(w[r].scales[J][1], upper, sum[2 + i]);
          }
        }
      } else {
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[r][n][i] = fmaf(w[r].scales[J][i / 2], c[r][n][i], sums[r][n][i]);
        }
      }
    }
  });
}

/// RowWarps warps share a chunk, and have RowTiles of its row tiles each; ColumnTiles * 8 columns. Blocks
/// have so many row tiles each in turn, or (not in_turn) all of a share one after the other. In either case a
/// block has `least` of them, and the first `longer` blocks have one more. The next kernel may start when
/// `late` stages are left to copy; weights are copied after a pause of so many cycles.
template <device_format Format, class T, int Parts, class Results, int RowTiles, int RowWarps,
          int ColumnTiles>
__global__ void __launch_bounds__(bulk_copy_bound(gemv_sm90_threads),
                                  ColumnTiles == 1 && RowTiles * RowWarps < 8 ? 2 : 1)
    gemv_sm90(prepacked_view<Format> w, operands<T> x, Results y, int slots, int late, bool in_turn,
              int pause, int least, int longer) {
#if GPTQ_BULK_COPIES
  using m = gemv_memory<Format, RowTiles, RowWarps, ColumnTiles>;
  using s = staged<Format>;
  using layout = prepacked_layout<Format>;
  constexpr int stage_chunks = m::stage_chunks, block_tiles = m::block_tiles,
                multiplying = 32 * gemv_sm90_warps;
  // What bare codes lose of a sum's digits float would show.
  constexpr bool bare = takes_bare_codes<T> && sizeof(typename Results::rounded_to) == 2;
  extern __shared__ __align__(128) char memory[];
  auto* const full = reinterpret_cast<std::uint64_t*>(memory);
  auto* const empty = full + m::most_slots;
  char* const no_column = memory + m::barrier_bytes;
  char* const ring = memory + m::ring_offset;
  int const stage_bytes = m::stage_bytes(x.columns);
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int const chunks = static_cast<int>(w.layout().chunks()), groups = static_cast<int>(w.layout().groups());
  int const steps = (chunks + stage_chunks - 1) / stage_chunks;
  // No division: a block's first copies wait for this.
  int const block = static_cast<int>(blockIdx.x), share = least + (block < longer ? 1 : 0);
  int const first_tile = in_turn ? block * block_tiles : block * least + min(block, longer);
  int const end_tile = in_turn ? static_cast<int>(w.layout().row_tiles()) : first_tile + share;
  int const tile_step = in_turn ? block_tiles * static_cast<int>(gridDim.x) : block_tiles;
  int const total = (in_turn ? share : (share + block_tiles - 1) / block_tiles) * steps;
  auto const group_at = [&](int chunk) { return static_cast<int>(layout{}.first_group(chunk)); };

  // Each role has a __syncthreads() of its own, all of which are the same barrier: a single one ahead of the
  // roles took up to 4 % longer, and compute-sanitizer's synccheck, which reports these, is content with it.
  if (warp == gemv_sm90_warps) {  // copies weights, which do not depend on the kernel before
    if (lane < slots) {
      initialize_barrier(full + lane, 1 + 32 + (Format::has_zero_point ? 32 : 0));
      initialize_barrier(empty + lane, multiplying);
    }
    publish_barriers();
    __syncthreads();
    for (long long const start = clock64(); pause > 0 && clock64() - start < pause;) {
    }
    std::uint64_t const once = read_once();  // scales are not: stages share their cache lines
    int slot = 0, parity = 1, left = total;
    late = min(late, total);
    for (int tile = first_tile; tile < end_tile; tile += tile_step) {
      int const present = min(block_tiles, end_tile - tile);
      char const* codes = reinterpret_cast<char const*>(w.codes) + index_t{tile} * chunks * s::code_bytes;
      auto const scales =
          reinterpret_cast<char const*>(w.scales) + index_t{tile} * groups * layout::scale_bytes;
      auto const zeros = reinterpret_cast<char const*>(w.zeros) + index_t{tile} * groups * layout::zero_bytes;
      for (int step = 0; step < steps; ++step) {
        int const first = step * stage_chunks, count = min(stage_chunks, chunks - first);
        int const first_group = group_at(first);
        int const stage_groups = layout::chunk_groups > 1 ? count * layout::chunk_groups
                                                          : group_at(first + count - 1) - first_group + 1;
        char* const stage = ring + slot * stage_bytes;
        std::uint64_t* const barrier = full + slot;
        if (left == late) let_successor_start();
        --left;
        wait_for(empty + slot, parity);
        if (one_of_warp()) {
          arrive_expecting(barrier, present * (count * s::code_bytes + stage_groups * layout::scale_bytes));
#pragma unroll
          for (int r = 0; r < block_tiles; ++r) {
            if (r < present) {
              copy_bulk(stage + r * m::code_bytes, codes + index_t{r} * chunks * s::code_bytes,
                        count * s::code_bytes, barrier, once);
              copy_bulk(stage + block_tiles * m::code_bytes + r * m::scale_bytes,
                        scales + (index_t{r} * groups + first_group) * layout::scale_bytes,
                        stage_groups * layout::scale_bytes, barrier);
            }
          }
        }
        if constexpr (Format::has_zero_point) {     // 4 bytes at a time: they are aligned to no more
          constexpr int words = m::zero_bytes / 4;  // of a row tile
          char* const to = stage + block_tiles * (m::code_bytes + m::scale_bytes);
#pragma unroll
          for (int first_word = 0; first_word < block_tiles * words; first_word += 32) {
            int const r = (first_word + lane) / words, at = 4 * ((first_word + lane) % words);
            if (r < present && at < stage_groups * layout::zero_bytes) {
              copy_async<4>(to + r * m::zero_bytes + at,
                            zeros + (index_t{r} * groups + first_group) * layout::zero_bytes + at);
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
  // Everything waits for the first columns: of 2 to 8, those of so many stages are copied by the warps that
  // multiply, one each.
  constexpr int stage_columns = stage_chunks * chunk_columns;
  int const by_all = ColumnTiles == 1 && x.columns > 1 ? min(slots, total) : 0;
  auto const fill_up = [](char* column, int bytes) {  // what is behind a column in its last chunk counts as 0
    for (int i = bytes; i % (2 * chunk_columns) != 0; i += 16) {
      *reinterpret_cast<uint4*>(column + i) = make_uint4(0, 0, 0, 0);
    }
    publish_writes();
  };
  if (warp == gemv_sm90_warps + 1) {  // copies all other columns
    __syncthreads();
    wait_for_predecessor();
    int slot = by_all % slots, parity = by_all < slots ? 1 : 0, step = by_all % steps;
    T const* from = x.data + step * stage_columns;
    int left = static_cast<int>(x.width) - step * stage_columns;
    for (int i = by_all; i < total; ++i) {
      char* const to = ring + slot * stage_bytes + m::weight_bytes;
      int const bytes = 2 * min(left, stage_columns);
      wait_for(empty + slot, parity);
      if (bytes < 2 * stage_columns && lane < x.columns) fill_up(to + lane * m::column_bytes, bytes);
      // Lanes take turns at copies, so one had better make many of them. In these blocks lanes are as fast
      // with 8 columns and a little faster with one.
      if constexpr (RowWarps == 1 && ColumnTiles == 1) {
        if (lane < x.columns) {
          arrive_expecting(full + slot, bytes);
          copy_bulk(to + lane * m::column_bytes, from + lane * x.stride, bytes, full + slot);
        } else {
          arrive(full + slot);
        }
      } else if (one_of_warp()) {
        arrive_expecting(full + slot, x.columns * bytes);
#pragma unroll
        for (int c = 0; c < 8 * ColumnTiles; ++c) {
          if (c < x.columns) copy_bulk(to + c * m::column_bytes, from + c * x.stride, bytes, full + slot);
        }
      } else {
        arrive(full + slot);
      }
      from += stage_columns;
      left -= stage_columns;
      if (++step == steps) step = 0, from = x.data, left = static_cast<int>(x.width);
      if (++slot == slots) slot = 0, parity ^= 1;
    }
    return;
  }

  if (threadIdx.x < m::no_column_bytes / 16) {
    reinterpret_cast<uint4*>(no_column)[threadIdx.x] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  wait_for_predecessor();
  if (by_all > 0 && one_of_warp()) {
    char* to = ring + m::weight_bytes + warp * m::column_bytes;
    for (int i = 0, step = 0; i < by_all; ++i) {
      constexpr int arrivals = 32 / gemv_sm90_warps;  // of the warp that copies all others
      int const first = step * stage_columns,
                bytes = 2 * min(static_cast<int>(x.width) - first, stage_columns);
      if (warp < x.columns) {
        if (bytes < 2 * stage_columns) fill_up(to, bytes);
        arrive_for<arrivals - 1>(full + i);
        arrive_expecting(full + i, bytes);
        copy_bulk(to, x.data + warp * x.stride + first, bytes, full + i);
      } else {
        arrive_for<arrivals>(full + i);
      }
      to += stage_bytes;
      if (++step == steps) step = 0;
    }
  }
  __syncwarp();
  int slot = 0, parity = 0;
  int const chunk_of_stage = warp / RowWarps, row_warp = warp % RowWarps;
  int const column_offset =
      m::weight_bytes + lane / 4 * m::column_bytes + chunk_of_stage * 256 + 16 * (lane % 4);
  float* const shared = reinterpret_cast<float*>(ring + slots * stage_bytes);
  constexpr float unit[2] = {bare ? 0x1p24F : 1.0F, bare ? 0x1p24F / bare_factor<Format::bits> : 1.0F};
  for (int tile = first_tile; tile < end_tile; tile += tile_step) {
    float sums[RowTiles][ColumnTiles][4] = {};
    int const present = min(block_tiles, end_tile - tile);
    int const own_tiles = m::uneven ? (present + RowWarps - 1) / RowWarps : RowTiles;
    int const row_tile = row_warp * own_tiles;
    for (int step = 0; step < steps; ++step) {
      int const chunk = step * stage_chunks + chunk_of_stage;
      char* const stage = ring + slot * stage_bytes;
      wait_for(full + slot, parity);
      if (chunk < chunks) {
        int const group = group_at(chunk) - group_at(step * stage_chunks);
        char const* const codes = stage + row_tile * m::code_bytes + chunk_of_stage * s::code_bytes;
        char const* const scales =
            stage + block_tiles * m::code_bytes + row_tile * m::scale_bytes + group * layout::scale_bytes;
        char const* const zeros = stage + block_tiles * (m::code_bytes + m::scale_bytes) +
                                  row_tile * m::zero_bytes + group * layout::zero_bytes;
        auto const multiply_tiles = [&]<int Count>(float(&count_sums)[Count][ColumnTiles][4]) {
          lane_chunk<Format> words[Count];
#pragma unroll
          for (int r = 0; r < Count; ++r) {
            words[r].load(codes + r * m::code_bytes, scales + r * m::scale_bytes, zeros + r * m::zero_bytes,
                          lane);
          }
          char const* column[ColumnTiles];
#pragma unroll
          for (int n = 0; n < ColumnTiles; ++n) {
            bool const there = lane / 4 + 8 * n < x.columns;
            column[n] = there ? stage + column_offset + 8 * n * m::column_bytes : no_column;
          }
          multiply_chunks<bare, Format, T>(
              words, [&](int n, int h) { return *reinterpret_cast<uint4 const*>(column[n] + 64 * h); },
              count_sums);
        };
        if constexpr (m::uneven) {
          if (own_tiles < RowTiles) {
            multiply_tiles(reinterpret_cast<float(&)[RowTiles - 1][ColumnTiles][4]>(sums));
          } else {
            multiply_tiles(sums);
          }
        } else {
          multiply_tiles(sums);
        }
      }
      __syncwarp();          // or arrivals of a lane that is late cost an instruction of their own
      arrive(empty + slot);  // each lane for its own reads, which is what racecheck understands
      if (++slot == slots) slot = 0, parity ^= 1;
    }

    index_t const end_row = min(w.out, index_t{end_tile} * tile_rows);
    unrolled<0, RowTiles / m::pass_tiles>([&]<int Pass>() {
      constexpr int first = Pass * m::pass_tiles, rows = m::sum_rows;
      if (Pass > 0 || tile != first_tile)
        wait_for_threads<multiplying>();  // until the last have been added up
      float* const own =
          shared + 2 * (lane % 4) * m::column_sums + chunk_of_stage * rows + row_tile * tile_rows + lane / 4;
#pragma unroll
      for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (8 * n + 2 * (lane % 4) + i >= x.columns) continue;
#pragma unroll
          for (int r = 0; r < m::pass_tiles; ++r) {
            if (r >= own_tiles) continue;
            float* const at = own + (8 * n + i) * m::column_sums + r * tile_rows;
            at[0] = unit[0] * sums[first + r][n][i], at[8] = unit[1] * sums[first + r][n][2 + i];
          }
        }
      }
      wait_for_threads<multiplying>();
#pragma unroll 1
      for (int j = threadIdx.x; j < rows * (x.columns / Parts); j += multiplying) {
        int const row = j % rows, token = j / rows;
        float const sum = add_warps<stage_chunks, Parts>(shared + token * Parts * m::column_sums + row, rows,
                                                         m::column_sums);
        index_t const at = (index_t{tile} + first) * tile_rows + row;
        if (at < end_row) y.store(token, at, sum);
      }
    });
  }
#endif
}

/// How many row tiles a warp has, and how many warps share a chunk.
struct block_shape {
  int row_tiles;
  int row_warps;

  bool operator==(block_shape const&) const = default;
};

/// How gemv_sm90() is launched.
struct gemv_plan {
  block_shape shape;
  /// A block has half of a multiprocessor's memory: the other half is the next kernel's, whose ring is full
  /// by the time it may start.
  bool halves;
  bool in_turn;
  /// Weights are copied a little later than they could: copies queue, and the columns of the kernel before,
  /// which runs beside this one, should be ahead.
  bool pause = false;
};
inline constexpr int gemv_pause = 300;  ///< cycles

template <device_format Format, class T, int Parts, class Results>
class gemv_launcher {
 public:
  gemv_launcher(prepacked_view<Format> const& w, operands<T> const& x, Results const& y, cudaStream_t stream,
                bool overlap, device const& gpu)
      : w_(w), x_(x), y_(y), stream_(stream), overlap_(overlap), gpu_(gpu) {}

  /// Launches, unless the ring would have fewer than two slots or there is no such kernel.
  bool operator()(gemv_plan const& plan) const {
    return x_.columns > 8
               ? run_in<2, block_shape{2, 1}, block_shape{4, 1}, block_shape{3, 2}, block_shape{4, 2}>(plan)
               : run_in<1, block_shape{2, 1}, block_shape{3, 1}, block_shape{4, 1}, block_shape{3, 2},
                        block_shape{4, 2}>(plan);
  }

 private:
  /// The plan's shape is one of these, or there is no such kernel.
  template <int ColumnTiles, block_shape... Shapes>
  bool run_in(gemv_plan const& plan) const {
    return ((plan.shape == Shapes && run<Shapes.row_tiles, Shapes.row_warps, ColumnTiles>(plan)) || ...);
  }

  template <int RowTiles, int RowWarps, int ColumnTiles>
  bool run(gemv_plan const& plan) const {
    using m = gemv_memory<Format, RowTiles, RowWarps, ColumnTiles>;
    // The system takes 1 KiB for each block; one block can have all of a multiprocessor's less that.
    int const memory = plan.halves ? (gpu_.shared_memory + 1024) / 2 - 1024 : gpu_.shared_memory;
    int const slots = m::slots(memory, x_.columns);
    if (slots < 2) return false;
    // Where the next kernel's ring has memory, it should not take turns with copies that are waited for.
    constexpr int at_once = 1 << 30;
    int const late = plan.halves ? slots - 1 : at_once;
    index_t const tiles = w_.layout().row_tiles();
    index_t const parts = plan.in_turn ? (tiles + m::block_tiles - 1) / m::block_tiles : tiles;
    index_t const blocks = std::min(parts, index_t{gpu_.multiprocessors});
    launch(gemv_sm90<Format, T, Parts, Results, RowTiles, RowWarps, ColumnTiles>,
           {.grid = static_cast<unsigned>(blocks),
            .block = gemv_sm90_threads,
            .shared_memory = static_cast<std::size_t>(memory),
            .stream = stream_,
            .overlap = overlap_},
           w_, x_, y_, slots, late, plan.in_turn, plan.pause ? gemv_pause : 0,
           static_cast<int>(parts / blocks), static_cast<int>(parts % blocks));
    return true;
  }

  prepacked_view<Format> const& w_;
  operands<T> const& x_;
  Results y_;
  cudaStream_t stream_;
  bool overlap_;
  device const& gpu_;
};

/// What has been fastest, or close to it, on an H200 for the shapes of bench_cuda_plans, of all plans there
/// are; null where the kernel of older devices is faster: few rows, and short ones or many columns.
///
/// As many row tiles at once as leave the block that has most of them the fewest: its share, up to four, or
/// else six or eight in turn. Kernels that take a few microseconds gain by the next one's ring in the other
/// half of the memory, as long as few columns leave the ring its depth. Equal shares keep all blocks busy to
/// the end; of short rows the ends are taken by the next kernel anyway. A pause pays for blocks of two, six
/// or eight row tiles with up to four columns.
inline std::optional<gemv_plan> plan_gemv(index_t tiles, index_t chunks, index_t code_bytes, int columns,
                                          index_t multiprocessors) {
  auto const over = [](index_t a, index_t b) { return (a + b - 1) / b; };
  auto const most = [&](int at_once) { return over(over(tiles, at_once), multiprocessors) * at_once; };
  index_t const share = over(tiles, multiprocessors);
  bool const many_columns = columns > 8, brief = code_bytes < multiprocessors * (384 * 1024);
  bool const short_rows = chunks <= 32, long_rows = chunks > 64;
  if (share == 1) {
    if (many_columns || short_rows) return std::nullopt;
    return gemv_plan{.shape = {2, 1}, .halves = false, .in_turn = true};
  }
  if (share <= 4) {
    if (!many_columns && brief && (short_rows || columns <= (share == 4 ? 2 : 4))) {
      if (share == 3) return gemv_plan{.shape = {3, 1}, .halves = true, .in_turn = long_rows};
      return gemv_plan{.shape = {2, 1}, .halves = true, .in_turn = false, .pause = columns <= 4};
    }
    int const row_tiles = share == 2 || (share == 4 && brief && columns <= 4) ? 2
                          : share == 3 && !many_columns                       ? 3
                                                                              : 4;
    return gemv_plan{.shape = {row_tiles, 1}, .halves = false, .in_turn = true};
  }
  bool const six = most(6) < most(8);
  block_shape const shape{six ? 3 : 4, 2};
  if (brief && columns == 1 && share > 8 && most(3) <= most(six ? 6 : 8)) {
    return gemv_plan{.shape = {3, 1}, .halves = true, .in_turn = long_rows};
  }
  if (brief && share <= 8 && columns <= (share == 6 ? 4 : 2)) {
    return gemv_plan{.shape = shape, .halves = true, .in_turn = !six, .pause = true};
  }
  bool const even = !six && share < most(8) && (many_columns || !short_rows);
  return gemv_plan{.shape = shape, .halves = false, .in_turn = !even};
}

/// y = W x for up to 16 columns, where this program has gemv_sm90() for this device, memory for it, and
/// nothing faster.
template <device_format Format, class T, int Parts, class Results>
bool launch_gemv_sm90(prepacked_view<Format> const& w, operands<T> const& x, Results const& y,
                      cudaStream_t stream, bool overlap, device const& gpu) {
  if (gpu.capability < 90) return false;
  if (!compiled_for(gemv_sm90<Format, T, Parts, Results, 2, 1, 1>, gemv_sm90_threads)) return false;
  index_t const tiles = w.layout().row_tiles(), chunks = w.layout().chunks();
  auto const plan =
      plan_gemv(tiles, chunks, tiles * chunks * staged<Format>::code_bytes, x.columns, gpu.multiprocessors);
  if (!plan) return false;
  gemv_launcher<Format, T, Parts, Results> const launcher(w, x, y, stream, overlap, gpu);
  return launcher(*plan) || launcher({plan->shape, false, true}) || launcher({{2, 1}, false, true});
}

}  // namespace gptq::cuda::detail
