// Sums of blocks that have split the columns of W among them.
#pragma once

#include <cstddef>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/results.cuh>
#include <gptq/cuda/options.cuh>

namespace gptq::cuda::detail {

inline std::size_t aligned_256(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// y[token, row]: the sum of partial[split, token * Parts + part, row] over splits and parts.
template <int Parts, class Results>
__global__ void add_partial(float const* partial, int splits, index_t tokens, index_t out, Results y) {
  let_successor_start();
  wait_for_predecessor();
  index_t const row = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  index_t const token = blockIdx.y;
  if (row >= out) return;
  float sum = 0.0F;
  for (int split = 0; split < splits; ++split) {
#pragma unroll
    for (int part = 0; part < Parts; ++part) {
      sum += partial[((split * tokens + token) * Parts + part) * out + row];
    }
  }
  y.store(token, row, sum);
}

template <int Parts, class Results>
void launch_add_partial(float const* partial, int splits, index_t tokens, index_t out, Results const& y,
                        product_options const& options) {
  constexpr unsigned threads = 256;
  launch(add_partial<Parts, Results>,
         {.grid = dim3(static_cast<unsigned>((out + threads - 1) / threads), static_cast<unsigned>(tokens)),
          .block = threads,
          .stream = options.stream,
          .overlap = options.overlap},
         partial, splits, tokens, out, y);
}

/// The product where the matrix has no columns: sums of nothing.
template <class Results>
void zero_product(index_t out, index_t tokens, Results const& y, product_options const& options) {
  launch_add_partial<1>(nullptr, 0, tokens, out, y, options);
}

}  // namespace gptq::cuda::detail
