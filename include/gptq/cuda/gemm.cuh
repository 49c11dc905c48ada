// Y = X W' for any number of tokens.
//
//   std::size_t bytes = gptq::cuda::workspace_bytes<__half, __half>(w, tokens);    // yours to allocate
//   gptq::cuda::gemm(w, x, tokens, y, {.stream = stream, .workspace = memory, .workspace_bytes = bytes});
//
// The contract is that of gemv.cuh. What computes it goes by the number of columns, which is that of the
// tokens, or three times that with float:
//   up to 16                       gemv
//   up to 192, or without cuBLAS   tensor-core products straight from codes, 32 or 64 columns at a time
//   more                           W decoded, a slice of rows after the other, and cuBLAS
// cuBLAS needs a handle in execution::blas, and x and y of the same type of 16 bits: weights are rounded to
// it. Everywhere else products are exact and sums are float32.
//
// The kernel for up to 64 columns: a block has 256 rows, a warp 32 of them; activations go through a ring in
// shared memory for all warps, codes through one for each. Where rows make too few blocks, columns of W are
// shared out, too, and a second kernel adds up.
#pragma once

#include <gptq/cuda/dequantize.cuh>

namespace gptq::cuda {

/// Columns (tokens, or three times that with float) from which on gemm() decodes W and calls cuBLAS.
inline constexpr index_t blas_columns = 193;

/// Bytes of workspace that gemm() of `tokens` tokens of type X into Y may need on the current device, with
/// cuBLAS and without.
template <device_number X, device_number Y, device_format Format>
std::size_t workspace_bytes(prepacked_view<Format> const& w, index_t tokens);

/// x[tokens, in], y[tokens, out], row-major. Throws invalid_argument, runtime_error, library_error or
/// unsupported_device; with the first nothing has been launched.
template <device_format Format, device_number X, device_number Y>
void gemm(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y, execution const& where = {});

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

inline constexpr int gemm_warps = 8;
inline constexpr int gemm_row_tiles = 2;  // of a warp
inline constexpr int gemm_rows = gemm_warps * gemm_row_tiles * tile_rows;

/// Bytes of a stage: activations of 8 * Tiles columns, then what each warp copies for itself.
template <device_format Format, int Tiles>
inline constexpr int gemm_stage_bytes =
    8 * Tiles* chunk_columns * 2 + gemm_warps* gemm_row_tiles* staged<Format>::bytes;
/// Blocks of a multiprocessor, as registers allow, and stages in the 99 KiB that every device has for a
/// block.
template <int Tiles>
inline constexpr int gemm_blocks = Tiles <= 4 ? 2 : 1;
template <device_format Format, int Tiles>
inline constexpr int gemm_depth = std::min(4, 99 * 1024 / gemm_stage_bytes<Format, Tiles>);

/// Block (x, y, z): columns 8 * Tiles * x and on, rows 256 * y and on, share z of the chunks. With one share
/// the result goes to y, else the sums to partial[share, column, row].
template <device_format Format, class T, class Y, int Tiles>
__global__ void __launch_bounds__(32 * gemm_warps, gemm_blocks<Tiles>)
    gemm_kernel(prepacked_view<Format> w, operands<T> x, Y* y, float* partial) {
  constexpr int depth = gemm_depth<Format, Tiles>, columns = 8 * Tiles;
  constexpr int stage_bytes = gemm_stage_bytes<Format, Tiles>, activation_bytes = columns * chunk_columns * 2;
  extern __shared__ __align__(128) char memory[];
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto const layout = w.layout();
  int const chunks = static_cast<int>(layout.chunks());
  int const shares = static_cast<int>(gridDim.z);
  int const first = static_cast<int>(index_t{blockIdx.z} * chunks / shares);
  int const count = static_cast<int>(index_t{blockIdx.z + 1} * chunks / shares) - first;
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

  float sums[gemm_row_tiles][Tiles][4] = {};
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
      float c[gemm_row_tiles][Tiles][4] = {};
      constexpr int first_half = 4 / groups * J, last_half = first_half + 4 / groups;
      unrolled<first_half, last_half>([&]<int H>() {
        std::uint32_t a[gemm_row_tiles][2][4];
#pragma unroll
        for (int r = 0; r < gemm_row_tiles; ++r) {
          chunk[r].template decode<T, 2 * H>(a[r][0]);
          chunk[r].template decode<T, 2 * H + 1>(a[r][1]);
        }
#pragma unroll
        for (int n = 0; n < Tiles; ++n) {
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
        for (int n = 0; n < Tiles; ++n) {
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
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        index_t const row = (tile + r) * tile_rows + lane / 4 + 8 * (k / 2);
        index_t const column = first_column + 8 * n + 2 * (lane % 4) + k % 2;
        if (row >= w.out || column >= x.columns) continue;
        if (partial == nullptr) {
          y[column * w.out + row] = to<Y>(sums[r][n][k]);
        } else {
          partial[(index_t{blockIdx.z} * x.columns + column) * w.out + row] = sums[r][n][k];
        }
      }
    }
  }
}

/// y[token, row] = the sum of partial[share, token * Parts + part, row] over shares and parts.
template <class Y, int Parts>
__global__ void add_partial(float const* partial, int shares, index_t tokens, index_t out, Y* y) {
  let_successor_start();
  wait_for_predecessor();
  index_t const row = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  index_t const token = blockIdx.y;
  if (row >= out) return;
  float sum = 0.0F;
  for (int share = 0; share < shares; ++share) {
#pragma unroll
    for (int part = 0; part < Parts; ++part) {
      sum += partial[((share * tokens + token) * Parts + part) * out + row];
    }
  }
  y[token * out + row] = to<Y>(sum);
}

/// How gemm_kernel is launched: columns of a block, and shares of W's columns.
struct gemm_shape {
  int tiles;
  int shares;
};
template <class Format>
gemm_shape gemm_shape_of(prepacked_view<Format> const& w, index_t columns, device const& gpu) {
  int const tiles = columns <= 32 ? 4 : 8;
  index_t const blocks = (w.out + gemm_rows - 1) / gemm_rows * ((columns + 8 * tiles - 1) / (8 * tiles));
  // Two blocks fit on a multiprocessor; a share should have a few chunks to keep its ring busy.
  index_t const shares =
      std::min(std::min<index_t>(2 * gpu.multiprocessors / blocks, 16), w.layout().chunks() / 4);
  return {tiles, static_cast<int>(std::max<index_t>(shares, 1))};
}

template <class Format>
std::size_t partial_bytes(prepacked_view<Format> const& w, index_t columns, gemm_shape shape) {
  return static_cast<std::size_t>(shape.shares * columns * w.out) * sizeof(float);
}

template <class Format, class T, int Parts, class Y, int Tiles>
void launch_gemm(prepacked_view<Format> const& w, operands<T> const& x, Y* y, float* partial, int shares,
                 execution const& where) {
  constexpr int columns = 8 * Tiles;
  bool const direct = shares == 1 && Parts == 1;
  launch(gemm_kernel<Format, T, Y, Tiles>,
         {.grid =
              dim3(static_cast<unsigned>((x.columns + columns - 1) / columns),
                   static_cast<unsigned>((w.out + gemm_rows - 1) / gemm_rows), static_cast<unsigned>(shares)),
          .block = 32 * gemm_warps,
          .shared_memory = gemm_depth<Format, Tiles> * std::size_t{gemm_stage_bytes<Format, Tiles>},
          .stream = where.stream,
          .overlap = where.overlap},
         w, x, y, direct ? nullptr : partial);
  if (direct) return;
  constexpr unsigned threads = 256;
  index_t const tokens = x.columns / Parts;
  launch(add_partial<Y, Parts>,
         {.grid = dim3(static_cast<unsigned>((w.out + threads - 1) / threads), static_cast<unsigned>(tokens)),
          .block = threads,
          .stream = where.stream,
          .overlap = where.overlap},
         partial, shares, tokens, w.out, y);
}

/// Whether cuBLAS can multiply activations of type X into Y.
template <class X, class Y>
inline constexpr bool blas_types = std::is_same_v<X, Y> && !std::is_same_v<X, float>;

/// Row tiles that are decoded at once: even shares of at most 256 MiB.
template <class Format>
index_t slice_tiles(prepacked_view<Format> const& w) {
  constexpr index_t most = index_t{256} << 20;
  index_t const slices = (w.layout().row_tiles() * tile_rows * w.in * 2 + most - 1) / most;
  return (w.layout().row_tiles() + slices - 1) / slices;
}
template <class Format>
std::size_t slice_bytes(prepacked_view<Format> const& w) {
  return static_cast<std::size_t>(slice_tiles(w) * tile_rows * w.in) * 2;
}

inline std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class Format, class X>
void multiply_by_blas(prepacked_view<Format> const& w, operands<X> const& x, X* y, X* weights,
                      execution const& where) {
  constexpr cudaDataType type = std::is_same_v<X, __half> ? CUDA_R_16F : CUDA_R_16BF;
  check(cublasSetStream(where.blas, where.stream), "setting a stream");
  float const one = 1.0F, zero = 0.0F;
  index_t const tiles = slice_tiles(w);
  for (index_t first = 0; first < w.layout().row_tiles(); first += tiles) {
    launch_dequantize(w, first, std::min(tiles, w.layout().row_tiles() - first), nullptr, w.in, weights,
                      where.stream);
    index_t const rows = std::min(tiles * tile_rows, w.out - first * tile_rows);
    check(cublasGemmEx(where.blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(rows), x.columns,
                       static_cast<int>(w.in), &one, weights, type, static_cast<int>(w.in), x.data, type,
                       static_cast<int>(x.stride), &zero, y + first * tile_rows, type,
                       static_cast<int>(w.out), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiplying");
  }
}

}  // namespace detail

template <device_number X, device_number Y, device_format Format>
std::size_t workspace_bytes(prepacked_view<Format> const& w, index_t tokens) {
  index_t const columns = tokens * detail::parts<X>;
  auto const prepared = detail::aligned(gemv_workspace_bytes<X>(w, tokens));
  if (columns <= 16 || w.out == 0) return prepared;
  std::size_t most = detail::partial_bytes(w, columns, detail::gemm_shape_of(w, columns, device::current()));
  if constexpr (detail::blas_types<X, Y>) {
    if (columns >= blas_columns) most = std::max(most, detail::slice_bytes(w));
  }
  return prepared + most;
}

template <device_format Format, device_number X, device_number Y>
void gemm(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y, execution const& where) {
  using T = detail::operand<X>;
  constexpr int parts = detail::parts<X>;
  index_t const columns = tokens * parts;
  if (columns <= 16 || w.out == 0 || w.in == 0) return gemv(w, x, tokens, y, where);
  detail::check_product(w, x, tokens, y);
  device const gpu = device::current();
  bool const in_place = detail::readable(w, x);
  std::size_t const before = in_place ? 0 : detail::aligned(gemv_workspace_bytes<X>(w, tokens));
  void* const rest = static_cast<char*>(where.workspace) + before;
  if constexpr (detail::blas_types<X, Y>) {
    if (columns >= blas_columns && where.blas != nullptr) {
      detail::check_workspace(where, before + detail::slice_bytes(w));
      auto const operands = detail::operands_of(w, x, tokens, where);
      return detail::multiply_by_blas(w, operands, y, static_cast<X*>(rest), where);
    }
  }
  auto const shape = detail::gemm_shape_of(w, columns, gpu);
  if (shape.shares > 1 || parts > 1)
    detail::check_workspace(where, before + detail::partial_bytes(w, columns, shape));
  detail::operands<T> const operands = detail::operands_of(w, x, tokens, where);
  auto* const partial = static_cast<float*>(rest);
  if (shape.tiles == 4) {
    detail::launch_gemm<Format, T, parts, Y, 4>(w, operands, y, partial, shape.shares, where);
  } else {
    detail::launch_gemm<Format, T, parts, Y, 8>(w, operands, y, partial, shape.shares, where);
  }
}

}  // namespace gptq::cuda
