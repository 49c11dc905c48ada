// What gemm() does: which kernel, or cuBLAS, multiplies how many columns at a time, and what the workspace is
// for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cublas_v2.h>
#include <type_traits>

#include <gptq/cuda/kernels/dequantize.cuh>
#include <gptq/cuda/kernels/gemm_portable.cuh>
#include <gptq/cuda/kernels/gemm_sm90.cuh>
#include <gptq/cuda/kernels/gemv.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/kernels/partial_sums.cuh>
#include <gptq/cuda/options.cuh>

namespace gptq::cuda::detail {

/// Columns (tokens, or three times that with float) from which on gemm() decodes W and calls cuBLAS: without
/// the kernels for sm_90a, and with them. Found on an H200.
inline constexpr index_t blas_columns = 257;
inline constexpr index_t blas_columns_sm90 = 4096;

/// Whether cuBLAS can multiply activations of type X into these results.
template <class X, class Results>
inline constexpr bool blas_types = std::is_same_v<results<X>, Results> && !std::is_same_v<X, float>;

/// Row tiles that are decoded at once: even splits of at most 256 MiB.
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

template <class Format, class X>
void multiply_by_blas(prepacked_view<Format> const& w, operands<X> const& x, results<X> const& y, X* weights,
                      product_options const& options) {
  constexpr cudaDataType type = std::is_same_v<X, __half> ? CUDA_R_16F : CUDA_R_16BF;
  check(cublasSetStream(options.blas, options.stream), "setting a stream");
  float const one = 1.0F, zero = 0.0F;
  index_t const tiles = slice_tiles(w);
  for (index_t first = 0; first < w.layout().row_tiles(); first += tiles) {
    launch_dequantize(w, first, std::min(tiles, w.layout().row_tiles() - first), nullptr, w.in, weights,
                      options.stream);
    index_t const rows = std::min(tiles * tile_rows, w.out - first * tile_rows);
    check(cublasGemmEx(options.blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(rows), x.columns,
                       static_cast<int>(w.in), &one, weights, type, static_cast<int>(w.in), x.data, type,
                       static_cast<int>(x.stride), &zero, y.data + first * tile_rows, type,
                       static_cast<int>(y.stride), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiplying");
  }
}

/// What computes a product of more than 16 columns.
enum class gemm_method { warps, warpgroups, blas };

template <class X, class Results, class Format>
gemm_method choose_method(prepacked_view<Format> const& w, index_t tokens, bool blas, device const& gpu) {
  bool const warpgroups = warpgroups_run<Format, operand<X>, Results>(gpu);
  index_t const most = warpgroups ? blas_columns_sm90 : blas_columns;
  // Of rows that are no multiple of 64, cuBLAS 13.0 leaves out the end where it splits them out.
  if (blas && blas_types<X, Results> && w.in % 64 == 0 && tokens * parts<X> >= most) return gemm_method::blas;
  return warpgroups ? gemm_method::warpgroups : gemm_method::warps;
}

/// And how.
struct gemm_plan {
  gemm_method method;
  int block_columns;          ///< of a block
  int splits;                 ///< blocks that split the columns of W
  std::size_t operand_bytes;  ///< of activations, when they are prepared
  std::size_t rest_bytes;     ///< of the sums of splits, or of decoded weights
};

template <class X, class Y, class Format>
gemm_plan plan_gemm(gemm_method method, prepacked_view<Format> const& w, index_t tokens, device const& gpu) {
  index_t const columns = tokens * parts<X>, chunks = w.layout().chunks();
  if (method == gemm_method::blas)
    return {method, 0, 1, aligned_256(operand_bytes<X>(w, tokens)), slice_bytes(w)};
  bool const warps = method == gemm_method::warps;
  gemm_plan plan{method, 0, 1, 0, 0};
  plan.block_columns = columns <= 32                                             ? 32
                       : columns <= 64 || warps || !rounds_weights<Format, X, Y> ? 64
                                                                                 : 128;
  index_t const column_blocks = (columns + plan.block_columns - 1) / plan.block_columns;
  plan.operand_bytes =
      warps ? aligned_256(operand_bytes<X>(w, tokens))
            : static_cast<std::size_t>(column_blocks * plan.block_columns * chunks * chunk_columns) *
                  sizeof(operand<X>);
  // As many blocks as run at once; a split should have a few chunks to keep its ring busy.
  index_t const rows = warps ? gemm_rows : warpgroup_rows;
  index_t const blocks = (w.out + rows - 1) / rows * column_blocks,
                at_once = gpu.multiprocessors * (warps ? 2 : 1);
  plan.splits = static_cast<int>(std::max<index_t>(std::min({at_once / blocks, chunks / 4, index_t{16}}), 1));
  if (plan.splits > 1 || parts<X> != 1) {
    plan.rest_bytes = static_cast<std::size_t>(plan.splits * columns * w.out) * sizeof(float);
  }
  return plan;
}

template <class Format, class X, class Results>
void run_gemm(gemm_plan const& plan, prepacked_view<Format> const& w, input<X> const& x, index_t tokens,
              Results const& y, product_options const& options) {
  using T = operand<X>;
  using Y = typename Results::rounded_to;
  bool const in_place = plan.method != gemm_method::warpgroups && readable(w, x);
  std::size_t const before = in_place ? 0 : plan.operand_bytes;
  if (before + plan.rest_bytes > 0) check_workspace(options, before + plan.rest_bytes);
  void* const rest = static_cast<char*>(options.workspace) + before;
  auto* const partial = plan.splits > 1 || parts<X> != 1 ? static_cast<float*>(rest) : nullptr;
  if (plan.method == gemm_method::warpgroups) {
    auto* const stages = static_cast<T*>(options.workspace);
    launch_prepare_stages(w, x, tokens, plan.block_columns, stages, options);
    auto const multiply = [&]<class Shape>(Shape) {
      launch_warpgroups<Shape>(w, stages, static_cast<int>(tokens * parts<X>), y, partial, plan.splits,
                               options);
    };
    if (plan.block_columns == 32) {
      multiply(warpgroup_shape<4, false>{});
    } else if (plan.block_columns == 64) {
      multiply(warpgroup_shape<8, false>{});
    } else if constexpr (rounds_weights<Format, X, Y>) {
      multiply(warpgroup_shape<16, true>{});
    }
  } else {
    operands<T> const operands = readable_operands(w, x, tokens, options);
    if (plan.method == gemm_method::blas) {
      if constexpr (blas_types<X, Results>)
        return multiply_by_blas(w, operands, y, static_cast<X*>(rest), options);
    } else if (plan.block_columns == 32) {
      launch_gemm<Format, T, 4>(w, operands, y, partial, plan.splits, options);
    } else {
      launch_gemm<Format, T, 8>(w, operands, y, partial, plan.splits, options);
    }
  }
  if (partial != nullptr) launch_add_partial<parts<X>>(partial, plan.splits, tokens, w.out, y, options);
}

/// Whether a product is so small that gemv's kernel, 16 columns at a time, is done before others have been
/// prepared: by its number of row tiles, chunks and groups of columns. Found on an H200.
template <class X, class Format>
bool by_column_groups(prepacked_view<Format> const& w, index_t tokens) {
  constexpr index_t most = 10000;
  return parts<X> == 1 && w.layout().row_tiles() * w.layout().chunks() * ((tokens + 15) / 16) <= most;
}

template <class X, class Y, class Format>
std::size_t gemm_workspace(prepacked_view<Format> const& w, index_t tokens) {
  if (tokens * parts<X> <= 16 || w.out == 0) return operand_bytes<X>(w, tokens);
  device const gpu = device::current();
  std::size_t most = by_column_groups<X>(w, tokens) ? operand_bytes<X>(w, tokens) : 0;
  for (bool const blas : {false, true}) {
    auto const plan = plan_gemm<X, Y>(choose_method<X, results<Y>>(w, tokens, blas, gpu), w, tokens, gpu);
    most = std::max(most, plan.operand_bytes + plan.rest_bytes);
  }
  return most;
}

template <class Format, class X, class Results>
void run_gemm(prepacked_view<Format> const& w, input<X> const& x, index_t tokens, Results const& y,
              product_options const& options) {
  if (tokens * parts<X> <= 16 || w.out == 0 || w.in == 0) return run_gemv(w, x, tokens, y, options);
  check_product(w, x.data, x.stride, tokens, y.data, y.stride);
  device const gpu = device::current();
  if constexpr (parts<X> == 1) {
    if (by_column_groups<X>(w, tokens)) {
      return launch_column_groups(w, readable_operands(w, x, tokens, options), y, options, gpu);
    }
  }
  auto const method = choose_method<X, Results>(w, tokens, options.blas != nullptr, gpu);
  run_gemm(plan_gemm<X, typename Results::rounded_to>(method, w, tokens, gpu), w, x, tokens, y, options);
}

}  // namespace gptq::cuda::detail
