// Y = X W' for any number of tokens.
//
//   std::size_t bytes = gptq::cuda::workspace_bytes<__half, __half>(w, tokens);    // yours to allocate
//   gptq::cuda::gemm(w, x, tokens, y, {.stream = stream, .workspace = memory, .workspace_bytes = bytes});
//
// The contract is that of gemv.cuh. What computes it goes by the number of columns, which is that of the
// tokens, or three times that with float:
//   up to 16           gemv
//   up to 256          tensor-core products straight from codes, 32 or 64 columns at a time
//   more               W decoded, a slice of rows after the other, and cuBLAS
// and on compute capability 9.0, where the program has been compiled for sm_90a (CMAKE_CUDA_ARCHITECTURES=90a
// or nvcc -gencode=arch=compute_90a,code=sm_90a, among others; sm_90 alone is not enough):
//   up to 16           gemv
//   up to 4095         products of warpgroups straight from codes, 32, 64 or 128 columns at a time
//   more               W decoded, and cuBLAS
// cuBLAS needs a handle in execution::blas, x and y of the same type of 16 bits, and rows whose length is a
// multiple of 64; otherwise products straight from codes have no limit. For cuBLAS, and by warpgroups for
// more than 64 columns when x and y have 16 bits, weights are rounded to the type of x. Everywhere else
// products are exact. Sums are float32. Unlike gemv, gemm by warpgroups always needs a workspace.
//
// The portable kernel: a block has 256 rows, a warp 32 of them; activations go through a ring in shared
// memory for all warps, codes through one for each. That for sm_90a: kernels/gemm_sm90.cuh. With both, where
// rows make too few blocks, columns of W are shared out, too, and a second kernel adds up.
#pragma once

#include <gptq/cuda/dequantize.cuh>
#include <gptq/cuda/kernels/gemm_sm90.cuh>

namespace gptq::cuda {

/// Columns (tokens, or three times that with float) from which on gemm() decodes W and calls cuBLAS: without
/// the kernels for sm_90a, and with them. Found on an H200.
inline constexpr index_t blas_columns = 257;
inline constexpr index_t blas_columns_sm90 = 4096;

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
    store_sums(sums[r], (tile + r) * tile_rows, w.out, first_column, x.columns, y,
               partial == nullptr ? nullptr : partial + index_t{blockIdx.z} * x.columns * w.out);
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

template <class Format, class T, class Y, int Tiles>
void launch_gemm(prepacked_view<Format> const& w, operands<T> const& x, Y* y, float* partial, int shares,
                 execution const& where) {
  constexpr int columns = 8 * Tiles;
  launch(gemm_kernel<Format, T, Y, Tiles>,
         {.grid =
              dim3(static_cast<unsigned>((x.columns + columns - 1) / columns),
                   static_cast<unsigned>((w.out + gemm_rows - 1) / gemm_rows), static_cast<unsigned>(shares)),
          .block = 32 * gemm_warps,
          .shared_memory = gemm_depth<Format, Tiles> * std::size_t{gemm_stage_bytes<Format, Tiles>},
          .stream = where.stream,
          .overlap = where.overlap},
         w, x, y, partial);
}

template <class Y, int Parts>
void launch_add_partial(float const* partial, int shares, index_t tokens, index_t out, Y* y,
                        execution const& where) {
  constexpr unsigned threads = 256;
  launch(add_partial<Y, Parts>,
         {.grid = dim3(static_cast<unsigned>((out + threads - 1) / threads), static_cast<unsigned>(tokens)),
          .block = threads,
          .stream = where.stream,
          .overlap = where.overlap},
         partial, shares, tokens, out, y);
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

/// What computes a product of more than 16 columns.
enum class gemm_way { warps, warpgroups, blas };

template <class X, class Y, class Format>
gemm_way way_of_gemm(prepacked_view<Format> const& w, index_t tokens, bool blas, device const& gpu) {
  bool const warpgroups = warpgroups_run<Format, operand<X>, Y>(gpu);
  index_t const most = warpgroups ? blas_columns_sm90 : blas_columns;
  // Of rows that are no multiple of 64, cuBLAS 13.0 leaves out the end where it shares them out.
  if (blas && blas_types<X, Y> && w.in % 64 == 0 && tokens * parts<X> >= most) return gemm_way::blas;
  return warpgroups ? gemm_way::warpgroups : gemm_way::warps;
}

/// And how.
struct gemm_plan {
  gemm_way way;
  int block_columns;          ///< of a block
  int shares;                 ///< blocks that share the columns of W
  std::size_t operand_bytes;  ///< of activations, when they are prepared
  std::size_t rest_bytes;     ///< of the sums of shares, or of decoded weights
};

template <class X, class Y, class Format>
gemm_plan plan_gemm(gemm_way way, prepacked_view<Format> const& w, index_t tokens, device const& gpu) {
  index_t const columns = tokens * parts<X>, chunks = w.layout().chunks();
  if (way == gemm_way::blas) return {way, 0, 1, aligned(gemv_workspace_bytes<X>(w, tokens)), slice_bytes(w)};
  bool const warps = way == gemm_way::warps;
  gemm_plan plan{way, 0, 1, 0, 0};
  plan.block_columns = columns <= 32                                             ? 32
                       : columns <= 64 || warps || !rounds_weights<Format, X, Y> ? 64
                                                                                 : 128;
  index_t const column_blocks = (columns + plan.block_columns - 1) / plan.block_columns;
  plan.operand_bytes =
      warps ? aligned(gemv_workspace_bytes<X>(w, tokens))
            : static_cast<std::size_t>(column_blocks * plan.block_columns * chunks * chunk_columns) *
                  sizeof(operand<X>);
  // As many blocks as run at once; a share should have a few chunks to keep its ring busy.
  index_t const rows = warps ? gemm_rows : warpgroup_rows;
  index_t const blocks = (w.out + rows - 1) / rows * column_blocks,
                at_once = gpu.multiprocessors * (warps ? 2 : 1);
  plan.shares = static_cast<int>(std::max<index_t>(std::min({at_once / blocks, chunks / 4, index_t{16}}), 1));
  if (plan.shares > 1 || parts < X >> 1) {
    plan.rest_bytes = static_cast<std::size_t>(plan.shares * columns * w.out) * sizeof(float);
  }
  return plan;
}

template <class Format, class X, class Y>
void run_gemm(gemm_plan const& plan, prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y,
              execution const& where) {
  using T = operand<X>;
  bool const in_place = plan.way != gemm_way::warpgroups && readable(w, x);
  std::size_t const before = in_place ? 0 : plan.operand_bytes;
  if (before + plan.rest_bytes > 0) check_workspace(where, before + plan.rest_bytes);
  void* const rest = static_cast<char*>(where.workspace) + before;
  auto* const partial = plan.shares > 1 || parts<X> > 1 ? static_cast<float*>(rest) : nullptr;
  if (plan.way == gemm_way::warpgroups) {
    auto* const stages = static_cast<T*>(where.workspace);
    launch_prepare_stages(w, x, tokens, plan.block_columns, stages, where);
    auto const multiply = [&]<class Shape>(Shape) {
      launch_warpgroups<Shape>(w, stages, static_cast<int>(tokens * parts<X>), y, partial, plan.shares,
                               where);
    };
    if (plan.block_columns == 32) {
      multiply(warpgroup_shape<4, false>{});
    } else if (plan.block_columns == 64) {
      multiply(warpgroup_shape<8, false>{});
    } else if constexpr (rounds_weights<Format, X, Y>) {
      multiply(warpgroup_shape<16, true>{});
    }
  } else {
    operands<T> const operands = operands_of(w, x, tokens, where);
    if (plan.way == gemm_way::blas) {
      if constexpr (blas_types<X, Y>) return multiply_by_blas(w, operands, y, static_cast<X*>(rest), where);
    } else if (plan.block_columns == 32) {
      launch_gemm<Format, T, Y, 4>(w, operands, y, partial, plan.shares, where);
    } else {
      launch_gemm<Format, T, Y, 8>(w, operands, y, partial, plan.shares, where);
    }
  }
  if (partial != nullptr) launch_add_partial<Y, parts<X>>(partial, plan.shares, tokens, w.out, y, where);
}

}  // namespace detail

template <device_number X, device_number Y, device_format Format>
std::size_t workspace_bytes(prepacked_view<Format> const& w, index_t tokens) {
  if (tokens * detail::parts<X> <= 16 || w.out == 0) return gemv_workspace_bytes<X>(w, tokens);
  device const gpu = device::current();
  std::size_t most = 0;
  for (bool const blas : {false, true}) {
    auto const plan =
        detail::plan_gemm<X, Y>(detail::way_of_gemm<X, Y>(w, tokens, blas, gpu), w, tokens, gpu);
    most = std::max(most, plan.operand_bytes + plan.rest_bytes);
  }
  return most;
}

template <device_format Format, device_number X, device_number Y>
void gemm(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y, execution const& where) {
  if (tokens * detail::parts<X> <= 16 || w.out == 0 || w.in == 0) return gemv(w, x, tokens, y, where);
  detail::check_product(w, x, tokens, y);
  device const gpu = device::current();
  auto const way = detail::way_of_gemm<X, Y>(w, tokens, where.blas != nullptr, gpu);
  detail::run_gemm(detail::plan_gemm<X, Y>(way, w, tokens, gpu), w, x, tokens, y, where);
}

}  // namespace gptq::cuda
