// gemv on any device. A warp reads whole chunks of a few row tiles, a ring of them ahead by asynchronous
// copies, decodes them to A operands and multiplies by up to 16 columns of activations, which it keeps in
// registers for all of its row tiles. The warps of a block take the chunks of a row in turn, and add up in
// the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/options.cuh>

namespace gptq::cuda::detail {

/// Reads the B operands of a lane, chunk by chunk: those of columns g, 8+g, ...; fragment f has words 2f and
/// 2f+1. Columns that are not there stay 0.
template <class T, int ColumnTiles>
struct operand_reader {
  T const* next[ColumnTiles];  ///< of columns g, 8+g, ..., at the columns of this lane in the next chunk
  int left;                    ///< how many numbers of the column are left there
  int columns;                 ///< columns less g

  template <class Operands>
  __device__ operand_reader(Operands const& x, int chunk, int lane)
      : left(static_cast<int>(x.width) - chunk * chunk_columns - 8 * (lane % 4)),
        columns(x.columns - lane / 4) {
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n) {
      next[n] = x.column(min(lane / 4 + 8 * n, x.columns - 1)) + chunk * chunk_columns + 8 * (lane % 4);
    }
  }

  __device__ __forceinline__ void read(int chunks_ahead, std::uint32_t (&b)[ColumnTiles][16]) {
    bool const whole = left > 96;
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n) {
      if (8 * n < columns) {
#pragma unroll
        for (int h = 0; h < 4; ++h) {
          uint4 v = make_uint4(0, 0, 0, 0);
          if (whole || 32 * h < left) v = *reinterpret_cast<uint4 const*>(next[n] + 32 * h);
          b[n][4 * h] = v.x, b[n][4 * h + 1] = v.y, b[n][4 * h + 2] = v.z, b[n][4 * h + 3] = v.w;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n) next[n] += chunks_ahead * chunk_columns;
    left -= chunks_ahead * chunk_columns;
  }
};

/// Copies the columns of a chunk to shared memory, 256 bytes each, and reads B operands from there. The
/// latency of activations is that of the cache they are in, several times over that of a product.
template <class Operands>
struct operand_ring {
  Operands x;
  int lane;

  __device__ __forceinline__ void copy(char* slot, int chunk) const {
    for (int u = lane; u < 16 * x.columns; u += 32) {
      index_t const at = index_t{chunk} * chunk_columns + 8 * (u % 16);
      copy_async_or_zero(slot + 16 * u, at < x.width ? x.column(u / 16) + at : x.data, at < x.width);
    }
  }
  __device__ __forceinline__ void read(char const* slot, std::uint32_t (&b)[16]) const {
    if (lane / 4 >= x.columns) return;  // stays 0
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      uint4 const v = *reinterpret_cast<uint4 const*>(slot + lane / 4 * 256 + 64 * h + 16 * (lane % 4));
      b[4 * h] = v.x, b[4 * h + 1] = v.y, b[4 * h + 2] = v.z, b[4 * h + 3] = v.w;
    }
  }
};

/// Adds a chunk of a row tile, times ColumnTiles * 8 columns b, to `sums`.
template <device_format Format, class T, int ColumnTiles>
__device__ __forceinline__ void multiply_chunk(lane_chunk<Format> const& w,
                                               std::uint32_t const (&b)[ColumnTiles][16],
                                               float (&sums)[ColumnTiles][4]) {
  constexpr int groups = staged<Format>::groups;
  unrolled<0, groups>([&]<int J>() {
    constexpr int chains = ColumnTiles == 1 && groups == 1 ? 2 : 1;  // products that wait for one another
    constexpr int first = 8 / groups * J, last = first + 8 / groups;
    float c[chains][ColumnTiles][4] = {};
    unrolled<first, last>([&]<int F>() {
      std::uint32_t a[4];
      w.template decode<T, F>(a);
#pragma unroll
      for (int n = 0; n < ColumnTiles; ++n) multiply<T>(c[F % chains][n], a, b[n][2 * F], b[n][2 * F + 1]);
    });
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float dot = c[0][n][i];
        if constexpr (chains == 2) dot += c[chains - 1][n][i];
        sums[n][i] = fmaf(w.scales[J][i / 2], dot, sums[n][i]);
      }
    }
  });
}

/// Warps of a block, and (row tile, chunk) pairs that a warp has under way.
inline constexpr int gemv_warps = 8;
template <class Format>
inline constexpr int gemv_depth = 4;

/// Blocks that a multiprocessor has registers for.
template <class Format, int RowTiles, int ColumnTiles>
inline constexpr int gemv_blocks =
    ColumnTiles == 2                                                                    ? 2
    : RowTiles == 1 && Format::bits <= 4 && prepacked_layout<Format>::chunk_groups == 1 ? 4
                                                                                        : 3;

/// Bytes of shared memory: the rings, and in the end, in their place, the sums of all warps.
template <device_format Format, int RowTiles, int ColumnTiles>
constexpr int gemv_shared_memory(int columns) {
  int const codes = gemv_depth<Format> * staged<Format>::bytes;
  int const activations = ColumnTiles == 1 ? gemv_depth<Format> / RowTiles * columns * 256 : 0;
  int const sums = RowTiles * tile_rows * (8 * ColumnTiles + 2) * int{sizeof(float)};
  return gemv_warps * std::max(codes + activations, sums);
}

/// What of a call a block works on: row tiles of W, counted from its first, columns, and where results go.
template <class Operands>
struct block_work {
  index_t first_tile;  ///< of W
  index_t first_row;   ///< of y
  int tiles;
  index_t end_row;
  Operands x;
  int first_token = 0;          ///< of y
  int const* tokens = nullptr;  ///< or those of the columns
  bool unknown = false;         ///< there are no such rows: results are NaN

  __device__ __forceinline__ int token(int column) const {
    return tokens == nullptr ? first_token + column : tokens[column];
  }
};

/// Blocks have the row tiles of one matrix in turn.
struct one_matrix {
  template <int RowTiles, class Format, class T>
  __device__ __forceinline__ block_work<operands<T>> find(prepacked_view<Format> const& w,
                                                          operands<T> const& x) const {
    index_t const first = index_t{blockIdx.x} * RowTiles;
    return {first, first * tile_rows,
            static_cast<int>(min(index_t{RowTiles}, w.layout().row_tiles() - first)), w.out, x};
  }
  static constexpr bool may_be_empty = false;
  GPTQ_HOST_DEVICE static constexpr int most_blocks(int blocks) { return blocks; }
};

/// The same, 16 columns at a time: block (x, y) has those from 16y on.
struct column_groups {
  static constexpr bool may_be_empty = false;
  GPTQ_HOST_DEVICE static constexpr int most_blocks(int blocks) { return blocks; }
  template <int RowTiles, class Format, class T>
  __device__ __forceinline__ block_work<operands<T>> find(prepacked_view<Format> const& w,
                                                          operands<T> const& x) const {
    auto work = one_matrix{}.template find<RowTiles>(w, x);
    work.first_token = 16 * static_cast<int>(blockIdx.y);
    work.x.data += work.first_token * x.stride;
    work.x.columns = min(16, x.columns - work.first_token);
    return work;
  }
};

/// RowTiles row tiles a block; ColumnTiles * 8 columns.
template <device_format Format, class T, int Parts, class Results, int RowTiles, int ColumnTiles, class Work>
__global__ void __launch_bounds__(32 * gemv_warps,
                                  Work::most_blocks(gemv_blocks<Format, RowTiles, ColumnTiles>))
    gemv_kernel(prepacked_view<Format> w, operands<T> all, Results y, Work find_work) {
  constexpr int depth = gemv_depth<Format>;
  extern __shared__ __align__(128) char memory[];
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto const layout = w.layout();
  int const chunks = static_cast<int>(layout.chunks());
  let_successor_start();
  auto const work = find_work.template find<RowTiles>(w, all);
  auto const& x = work.x;
  index_t const first_tile = work.first_tile;
  int const tiles = work.tiles;
  if (Work::may_be_empty && tiles <= 0) return;
  int const mine = warp < chunks ? (chunks - warp + gemv_warps - 1) / gemv_warps : 0;
  char* const ring = memory + warp * depth * staged<Format>::bytes;
  // Up to 8 columns go through a ring, too; for 16 it would be too large.
  constexpr bool columns_in_ring = ColumnTiles == 1;
  constexpr int chunk_depth = depth / RowTiles;
  int const column_bytes = x.columns * 256;
  char* const column_ring =
      memory + gemv_warps * depth * staged<Format>::bytes + warp * chunk_depth * column_bytes;
  operand_ring<std::remove_cvref_t<decltype(x)>> const column_copies{x, lane};

  chunk_reader<Format> reader(w, first_tile, warp, lane);
  // Copies are made in the order of use, RowTiles for each chunk: `depth` of them are under way, so the next
  // one is of the same row tile. Row tiles beyond the last repeat it.
  static_assert(depth % RowTiles == 0);
  int offsets[RowTiles];
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) offsets[r] = min(r, tiles - 1);
  char* slot = ring;
  auto const next_slot = [&] {
    slot += staged<Format>::bytes;
    if (slot == ring + depth * staged<Format>::bytes) slot = ring;
  };
#pragma unroll
  for (int i = 0; i < depth; ++i) {
    if (i / RowTiles < mine) reader.copy(slot, offsets[i % RowTiles]);
    if constexpr (!columns_in_ring) commit_copies();
    next_slot();
    if (i % RowTiles == RowTiles - 1) reader.advance(gemv_warps);
  }
  wait_for_predecessor();
  if constexpr (columns_in_ring) {
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      if (i % RowTiles == 0 && i / RowTiles < mine) {
        column_copies.copy(column_ring + i / RowTiles * column_bytes, warp + i / RowTiles * gemv_warps);
      }
      commit_copies();  // the first group has all codes so far
    }
  }

  float sums[RowTiles][ColumnTiles][4] = {};
  std::uint32_t b[ColumnTiles][16] = {};
  operand_reader<T, ColumnTiles> columns(x, warp, lane);
  char* column_slot = column_ring;
  for (int i = 0; i < mine; ++i) {
    if constexpr (!columns_in_ring) columns.read(gemv_warps, b);
    bool const more = i + chunk_depth < mine;
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
      wait_copies<depth - 1>();
      __syncwarp();
      lane_chunk<Format> chunk;
      chunk.load(slot, lane);
      if constexpr (columns_in_ring) {
        if (r == 0) column_copies.read(column_slot, b[0]);
      }
      __syncwarp();
      if (more) reader.copy(slot, offsets[r]);
      if constexpr (columns_in_ring) {
        if (r == 0) {
          if (more) column_copies.copy(column_slot, warp + (i + chunk_depth) * gemv_warps);
          column_slot += column_bytes;
          if (column_slot == column_ring + chunk_depth * column_bytes) column_slot = column_ring;
        }
      }
      commit_copies();
      next_slot();
      multiply_chunk<Format, T, ColumnTiles>(chunk, b, sums[r]);
    }
    reader.advance(gemv_warps);
  }
  wait_copies<0>();
  __syncthreads();

  // The warps' sums: [warp][row][column], rows two floats apart from a multiple of the banks.
  constexpr int pitch = 8 * ColumnTiles + 2;
  float* const shared = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        int const row = (warp * RowTiles + r) * tile_rows + lane / 4 + 8 * upper;
        *reinterpret_cast<float2*>(shared + row * pitch + 8 * n + 2 * (lane % 4)) =
            make_float2(sums[r][n][2 * upper], sums[r][n][2 * upper + 1]);
      }
    }
  }
  __syncthreads();
  constexpr int rows = RowTiles * tile_rows;
  for (int i = threadIdx.x; i < rows * (x.columns / Parts); i += blockDim.x) {
    int const row = i % rows, token = i / rows;
    float const sum = add_warps<gemv_warps, Parts>(shared + row * pitch + token * Parts, rows * pitch, 1);
    index_t const at = work.first_row + row;
    if (at < work.end_row) y.store(work.token(token), at, work.unknown ? __uint_as_float(0x7fc00000u) : sum);
  }
}

template <device_format Format, class T, int Parts, int RowTiles, int ColumnTiles, class Results>
void launch_gemv(prepacked_view<Format> const& w, operands<T> const& x, Results const& y,
                 product_options const& options, device const& gpu) {
  auto const blocks = static_cast<int>((w.layout().row_tiles() + RowTiles - 1) / RowTiles);
  // No multiprocessor should get more blocks than its share while others wait for the kernel before to end:
  // that much shared memory is asked for that no more fit.
  int const share = (blocks + gpu.multiprocessors - 1) / gpu.multiprocessors;
  int const needed = gemv_shared_memory<Format, RowTiles, ColumnTiles>(x.columns);
  launch(gemv_kernel<Format, T, Parts, Results, RowTiles, ColumnTiles, one_matrix>,
         {.grid = static_cast<unsigned>(blocks),
          .block = 32 * gemv_warps,
          .shared_memory = static_cast<std::size_t>(std::max(needed, gpu.shared_memory / (share + 1) + 1024)),
          .stream = options.stream,
          .overlap = options.overlap},
         w, x, y, one_matrix{});
}

/// Any number of columns, in one launch.
template <class Format, class T, class Results>
void launch_column_groups(prepacked_view<Format> const& w, operands<T> const& x, Results const& y,
                          product_options const& options, device const& gpu) {
  index_t const groups = (x.columns + 15) / 16, tiles = w.layout().row_tiles();
  auto const launch_tiles = [&]<int RowTiles>() {
    launch(gemv_kernel<Format, T, 1, Results, RowTiles, 2, column_groups>,
           {.grid =
                dim3(static_cast<unsigned>((tiles + RowTiles - 1) / RowTiles), static_cast<unsigned>(groups)),
            .block = 32 * gemv_warps,
            .shared_memory = static_cast<std::size_t>(gemv_shared_memory<Format, RowTiles, 2>(16)),
            .stream = options.stream,
            .overlap = options.overlap},
           w, x, y, column_groups{});
  };
  index_t const at_once = gpu.multiprocessors * gemv_blocks<Format, 2, 2>;
  if (tiles * groups <= at_once) return launch_tiles.template operator()<1>();
  if (tiles * groups <= 2 * at_once) return launch_tiles.template operator()<2>();
  launch_tiles.template operator()<4>();
}

}  // namespace gptq::cuda::detail
