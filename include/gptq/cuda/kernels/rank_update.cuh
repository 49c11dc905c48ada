// S += X'X for a symmetric S on the device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cublas_v2.h>

#include <gptq/config.hpp>
#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>

namespace gptq::cuda::detail {

inline constexpr int mirror_edge = 32;

/// Copies the lower triangle of a[n, n], by columns, to the upper one, a square of Edge x Edge by a block.
template <int Edge = mirror_edge>
__global__ void mirror_lower(float* a, index_t n) {
  __shared__ float square[Edge][Edge + 1];
  if (blockIdx.y > blockIdx.x) return;
  index_t const row = index_t{blockIdx.x} * Edge;
  index_t const column = index_t{blockIdx.y} * Edge;
  for (int j = threadIdx.y; j < Edge; j += blockDim.y) {
    index_t const r = row + threadIdx.x;
    if (r < n && column + j < n) square[j][threadIdx.x] = a[(column + j) * n + r];
  }
  __syncthreads();
  for (int j = threadIdx.y; j < Edge; j += blockDim.y) {
    index_t const r = column + threadIdx.x;
    index_t const c = row + j;
    if (r < c && c < n) a[c * n + r] = square[threadIdx.x][j];
  }
}

inline void mirror(float* sum, index_t in, cudaStream_t stream) {
  auto const squares = static_cast<unsigned>((in + mirror_edge - 1) / mirror_edge);
  launch(mirror_lower<>, {.grid = {squares, squares}, .block = {mirror_edge, 8}, .stream = stream}, sum, in);
}

/// The lower triangle of sum[in, in], by columns, += x' x for x[tokens, in].
inline void add_rank_update(float* sum, index_t in, void const* x, cudaDataType_t type, index_t tokens,
                            cublasHandle_t blas) {
  index_t const size = type == CUDA_R_32F ? 4 : 2;
  // Some columns at a time, so that little above the diagonal is computed; each product wide enough to fill
  // the device.
  index_t const columns = std::max(index_t{2048}, (in / 8 + 255) / 256 * 256);
  float const one = 1.0F;
  for (index_t first = 0; first < in; first += columns) {
    auto const* const rows = static_cast<char const*>(x) + first * size;
    check(cublasGemmEx_64(blas, CUBLAS_OP_N, CUBLAS_OP_T, in - first, std::min(columns, in - first), tokens,
                          &one, rows, type, in, rows, type, in, &one, sum + first * in + first, CUDA_R_32F,
                          in, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiplying activations");
  }
}

/// a += b, both of `count` floats.
inline void add_to(float* a, float const* b, index_t count, cublasHandle_t blas) {
  float const one = 1.0F;
  check(cublasSaxpy_64(blas, count, &one, b, 1, a, 1), "adding Hessians");
}

}  // namespace gptq::cuda::detail
