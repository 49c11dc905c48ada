// gemm on any device, straight from codes. A block has 256 rows, a warp 32 of them; activations go through a
// ring in shared memory for all warps, codes through one for each. Where rows make too few blocks, the chunks
// of W are split among blocks, too (split-K), and a second kernel adds up.
#pragma once

#include <algorithm>
#include <cstdint>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/options.cuh>

namespace gptq::cuda::detail {

inline constexpr int gemm_warps = 8;
inline constexpr int gemm_row_tiles = 2;  // of a warp
inline constexpr int gemm_rows = gemm_warps * gemm_row_tiles * tile_rows;

/// Bytes of a stage: activations of 8 * ColumnTiles columns, then what each warp copies for itself.
template <device_format Format, int ColumnTiles>
inline constexpr int gemm_stage_bytes =
    8 * ColumnTiles* chunk_columns * 2 + gemm_warps* gemm_row_tiles* staged<Format>::bytes;
/// Blocks of a multiprocessor, as registers allow, and stages in the 99 KiB that every device has for a
/// block.
template <int ColumnTiles>
inline constexpr int gemm_blocks = ColumnTiles <= 4 ? 2 : 1;
template <device_format Format, int ColumnTiles>
inline constexpr int gemm_depth = std::min(4, 99 * 1024 / gemm_stage_bytes<Format, ColumnTiles>);

/// Block (x, y, z): columns 8 * ColumnTiles * x and on, rows 256 * y and on, split z of the chunks. With one
/// split the result goes to y, else the sums to partial[split, column, row].
template <device_format Format, class T, class Results, int ColumnTiles>
__global__ void __launch_bounds__(32 * gemm_warps, gemm_blocks<ColumnTiles>)
    gemm_kernel(prepacked_view<Format> w, operands<T> x, Results y, float* partial) {
  constexpr int depth = gemm_depth<Format, ColumnTiles>, columns = 8 * ColumnTiles;
  constexpr int stage_bytes = gemm_stage_bytes<Format, ColumnTiles>,
                activation_bytes = columns * chunk_columns * 2;
  extern __shared__ __align__(128) char memory[];
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto const layout = w.layout();
  int const chunks = static_cast<int>(layout.chunks());
  int const splits = static_cast<int>(gridDim.z);
  int const first = static_cast<int>(index_t{blockIdx.z} * chunks / splits);
  int const count = static_cast<int>(index_t{blockIdx.z + 1} * chunks / splits) - first;
  index_t const tile = (index_t{blockIdx.y} * gemm_warps + warp) * gemm_row_tiles;
  int const inside =
      static_cast<int>(min(index_t{gemm_row_tiles}, layout.row_tiles() - tile));  // may be negative
  int const first_column = static_cast<int>(blockIdx.x) * columns;

  let_successor_start();
  chunk_reader<Format> reader(w, inside > 0 ? tile : 0, first, lane);
  auto const stage_at = [&](int i) { return memory + i % depth * stage_bytes; };
  auto const codes_at = [&](int i, int r) {
    return stage_at(i) + activation_bytes + (warp * gemm_row_tiles + r) * staged<Format>::bytes;
  };
  auto const copy_codes = [&](int i) {
#pragma unroll
    for (int r = 0; r < gemm_row_tiles; ++r) {
      if (r < inside && i < count) reader.copy(codes_at(i, r), r);
    }
    reader.advance(1);
  };
  // Units of 16 bytes, 16 a column; odd columns have the halves of every 128 bytes exchanged, so that the
  // eight lanes that read at once find eight different groups of banks. A thread copies unit threadIdx.x % 16
  // of every 16th column.
  constexpr int column_step = 32 * gemm_warps / 16;
  int const unit = threadIdx.x % 16, own_column = threadIdx.x / 16;
  T const* const own =
      x.data + (first_column + own_column) * x.stride + index_t{first} * chunk_columns + 8 * unit;
  int const own_left = static_cast<int>(x.width) - first * chunk_columns - 8 * unit;
  int const own_place = own_column * 256 + 16 * (unit ^ (own_column % 2 * 4));
  auto const copy_activations = [&](int i) {
    if (i >= count) return;
#pragma unroll
    for (int k = 0; k < columns / column_step; ++k) {
      bool const there =
          first_column + own_column + k * column_step < x.columns && i * chunk_columns < own_left;
      T const* const from = there ? own + k * column_step * x.stride + i * chunk_columns : x.data;
      copy_async_or_zero(stage_at(i) + own_place + k * column_step * 256, from, there);
    }
  };
#pragma unroll
  for (int i = 0; i < depth - 1; ++i) copy_codes(i);
  wait_for_predecessor();
#pragma unroll
  for (int i = 0; i < depth - 1; ++i) {
    copy_activations(i);
    commit_copies();  // the first group has all codes so far
  }

  float sums[gemm_row_tiles][ColumnTiles][4] = {};
  for (int i = 0; i < count; ++i) {
    wait_copies<depth - 2>();
    __syncthreads();
    copy_codes(i + depth - 1);
    copy_activations(i + depth - 1);
    commit_copies();
    char const* const stage = stage_at(i);
    lane_chunk<Format> chunk[gemm_row_tiles];
#pragma unroll
    for (int r = 0; r < gemm_row_tiles; ++r) chunk[r].load(codes_at(i, r), lane);
    constexpr int groups = staged<Format>::groups;
    unrolled<0, groups>([&]<int J>() {
      float c[gemm_row_tiles][ColumnTiles][4] = {};
      constexpr int first_half = 4 / groups * J, last_half = first_half + 4 / groups;
      unrolled<first_half, last_half>([&]<int H>() {
        std::uint32_t a[gemm_row_tiles][2][4];
#pragma unroll
        for (int r = 0; r < gemm_row_tiles; ++r) {
          chunk[r].template decode<T, 2 * H>(a[r][0]);
          chunk[r].template decode<T, 2 * H + 1>(a[r][1]);
        }
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n) {
          int const column = 8 * n + lane / 4, unit = 4 * H + lane % 4;
          uint4 const b =
              *reinterpret_cast<uint4 const*>(stage + column * 256 + 16 * (unit ^ (column % 2 * 4)));
#pragma unroll
          for (int r = 0; r < gemm_row_tiles; ++r) multiply<T>(c[r][n], a[r][0], b.x, b.y);
#pragma unroll
          for (int r = 0; r < gemm_row_tiles; ++r) multiply<T>(c[r][n], a[r][1], b.z, b.w);
        }
      });
#pragma unroll
      for (int r = 0; r < gemm_row_tiles; ++r) {
#pragma unroll
        for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            sums[r][n][k] = fmaf(chunk[r].scales[J][k / 2], c[r][n][k], sums[r][n][k]);
          }
        }
      }
    });
  }
  wait_copies<0>();
#pragma unroll
  for (int r = 0; r < gemm_row_tiles; ++r) {
    store_sums(sums[r], (tile + r) * tile_rows, w.out, first_column, x.columns, y,
               partial == nullptr ? nullptr : partial + index_t{blockIdx.z} * x.columns * w.out);
  }
}

template <class Format, class T, int ColumnTiles, class Results>
void launch_gemm(prepacked_view<Format> const& w, operands<T> const& x, Results const& y, float* partial,
                 int splits, product_options const& options) {
  constexpr int columns = 8 * ColumnTiles;
  launch(
      gemm_kernel<Format, T, Results, ColumnTiles>,
      {.grid =
           dim3(static_cast<unsigned>((x.columns + columns - 1) / columns),
                static_cast<unsigned>((w.out + gemm_rows - 1) / gemm_rows), static_cast<unsigned>(splits)),
       .block = 32 * gemm_warps,
       .shared_memory = gemm_depth<Format, ColumnTiles> * std::size_t{gemm_stage_bytes<Format, ColumnTiles>},
       .stream = options.stream,
       .overlap = options.overlap},
      w, x, y, partial);
}

}  // namespace gptq::cuda::detail
