// What gemm() does with int8 activations.
#pragma once

#include <algorithm>
#include <limits>

#include <gptq/cuda/activations.cuh>
#include <gptq/cuda/kernels/gemm_int8_sm90.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/kernels/partial_sums.cuh>

namespace gptq::cuda::detail {

/// Row tiles of a warpgroup, at most: with several groups a chunk registers would not hold two.
template <class Format>
inline constexpr int int8_row_tiles = staged<Format>::groups == 1 ? 2 : 1;

/// How the product is shared out: row tiles of a warpgroup, 1 or 2, and blocks that split the chunks.
struct int8_plan {
  int row_tiles;
  int splits;
};

/// The plan that takes the least time: of as many blocks as come one after the other on a multiprocessor, in
/// chunks of two row tiles, each block a few more to fill its ring and to store; and of writing the sums of
/// splits and reading them again. Found on an H200.
template <class Format>
int8_plan plan_int8(prepacked_view<Format> const& w, index_t tokens, device const& gpu) {
  auto const over = [](index_t a, index_t b) { return (a + b - 1) / b; };
  index_t const token_blocks = over(tokens, activation_tokens), chunks = w.layout().chunks();
  double best = std::numeric_limits<double>::infinity();
  int8_plan plan{1, 1};
  for (int row_tiles = int8_row_tiles<Format>; row_tiles > 0; --row_tiles) {
    index_t const blocks = over(w.out, 128 * row_tiles) * token_blocks;
    for (int splits = 1; splits <= std::min<index_t>(16, std::max<index_t>(chunks / 4, 1)); ++splits) {
      constexpr double beside = 4.0, bytes_a_chunk = 2e6;
      double const chunk = row_tiles == 2 ? 1.0 : 0.6;
      double const blocks_in_turn = static_cast<double>(over(blocks * splits, gpu.multiprocessors));
      double const sums =
          splits == 1 ? 0.0 : 3.0 + static_cast<double>(splits * tokens * w.out * 8) / bytes_a_chunk;
      double const time =
          blocks_in_turn * (static_cast<double>(over(chunks, splits)) * chunk + beside) + sums;
      if (time < best) best = time, plan = {row_tiles, splits};
    }
  }
  return plan;
}

template <class Format>
std::size_t int8_workspace(prepacked_view<Format> const& w, index_t tokens) {
  if (tokens == 0 || w.out == 0 || w.in == 0) return 0;
  int const splits = plan_int8(w, tokens, device::current()).splits;
  return splits == 1 ? 0 : static_cast<std::size_t>(splits * tokens * w.out) * sizeof(float);
}

template <int RowTiles, class Format, class Results>
void launch_int8_gemm(prepacked_view<Format> const& w, int8_activations const& a, Results const& y,
                      float* partial, int splits, product_options const& options) {
  using block = int8_block<RowTiles>;
  launch(int8_gemm<Format, Results, block>,
         {.grid = dim3(static_cast<unsigned>((a.tokens + block::tokens - 1) / block::tokens),
                       static_cast<unsigned>((w.out + block::rows - 1) / block::rows),
                       static_cast<unsigned>(splits)),
          .block = block::threads,
          .shared_memory = int8_ring<Format, block>::bytes,
          .stream = options.stream,
          .overlap = options.overlap},
         w, a.digits, a.scales, static_cast<int>(a.tokens), y, partial);
}

template <class Format, class Results>
void run_int8_gemm(prepacked_view<Format> const& w, int8_activations const& a, Results const& y,
                   int8_plan plan, product_options const& options) {
  float* partial = nullptr;
  if (plan.splits > 1) {
    check_workspace(options, static_cast<std::size_t>(plan.splits * a.tokens * w.out) * sizeof(float));
    partial = static_cast<float*>(options.workspace);
  }
  if (plan.row_tiles == int8_row_tiles<Format>) {
    launch_int8_gemm<int8_row_tiles<Format>>(w, a, y, partial, plan.splits, options);
  } else {
    launch_int8_gemm<1>(w, a, y, partial, plan.splits, options);
  }
  if (partial != nullptr) launch_add_partial<1>(partial, plan.splits, a.tokens, w.out, y, options);
}

template <class Format, class Results>
void run_int8_gemm(prepacked_view<Format> const& w, int8_activations const& a, Results const& y,
                   product_options const& options) {
  check_product(w, a.digits, a.in, a.tokens, y.data, y.stride);
  if (a.in != w.in || a.order != w.order) {
    throw invalid_argument(
        "gptq::cuda: the activations were prepared for a matrix of other columns, or in another order");
  }
  device const gpu = device::current();
  if (w.out == 0 || a.tokens == 0) return;
  if (w.in == 0) return zero_product(w.out, a.tokens, y, options);
  if (gpu.capability != 90 ||
      !compiled_for(int8_gemm<Format, Results, int8_block<1>>, int8_block<1>::threads)) {
    throw unsupported_device(
        "gptq::cuda: products of int8 activations need compute capability 9.0, and a program compiled for "
        "sm_90a");
  }
  run_int8_gemm(w, a, y, plan_int8(w, a.tokens, gpu), options);
}

}  // namespace gptq::cuda::detail
