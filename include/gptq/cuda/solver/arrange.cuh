// Weights into the order of the sweep, and codes out of it.
#pragma once

#include <cstdint>

#include <gptq/config.hpp>
#include <gptq/cuda/solver/faults.cuh>

namespace gptq::cuda::detail {

/// work[row, ld - 1 - p] = weight[row, order[p]], zero for dead inputs and what pads a row. A block a row.
template <int Threads = 256>
__global__ void gather_weight(float const* weight, float const* diagonal, int const* order, float* work,
                              index_t columns, index_t ld, faults* found) {
  index_t const row = blockIdx.x;
  for (index_t a = threadIdx.x; a < ld; a += Threads) {
    index_t const position = ld - 1 - a;
    float value = 0.0F;
    if (position < columns) {
      index_t const column = order[position];
      value = weight[row * columns + column];
      if (!isfinite(value)) {
        atomicMin(&found->weight, static_cast<unsigned long long>(row * columns + column));
      }
      if (diagonal[column] == 0.0F) value = 0.0F;
    }
    work[row * ld + a] = value;
  }
}

/// Codes by position to where they are stored: column order[p], or p itself where order is null. A block a
/// row, with `columns` bytes of shared memory.
template <int Threads = 256>
__global__ void store_codes(std::uint8_t const* by_position, int const* order, std::uint8_t* codes,
                            index_t columns, index_t ld) {
  extern __shared__ std::uint8_t stored_row[];
  index_t const row = blockIdx.x;
  for (index_t p = threadIdx.x; p < columns; p += Threads) {
    stored_row[order == nullptr ? p : order[p]] = by_position[row * ld + p];
  }
  __syncthreads();
  for (index_t c = threadIdx.x; c < columns; c += Threads) codes[row * columns + c] = stored_row[c];
}

/// What a sweep made of the rows, and what is kept of them in original column order.
struct sweep_result {
  float const* difference;                ///< [rows, ld] reversed
  std::uint8_t const* codes_by_position;  ///< [rows, ld]
  int const* order;                       ///< original column of each position
  float const* scales;                    ///< [rows, groups]
  std::uint8_t const* zeros;              ///< likewise, or null
  double const* losses;                   ///< [rows]
};
struct kept_result {
  float* difference;    ///< [rows, ld]
  std::uint8_t* codes;  ///< [rows, columns]
  float* scales;
  std::uint8_t* zeros;
  double* losses;
};

/// Keeps the rows of a sweep: all, or those that lose less than what is kept. A block a row.
template <int Threads = 256>
__global__ void keep_rows(sweep_result swept, kept_result kept, index_t columns, index_t ld, index_t groups,
                          bool all) {
  index_t const row = blockIdx.x;
  double const loss = swept.losses[row];
  bool const better = all || loss < kept.losses[row];
  __syncthreads();  // before it is overwritten
  if (!better) return;
  for (index_t p = threadIdx.x; p < columns; p += Threads) {
    index_t const column = swept.order[p];
    kept.difference[row * ld + column] = swept.difference[row * ld + ld - 1 - p];
    kept.codes[row * columns + column] = swept.codes_by_position[row * ld + p];
  }
  for (index_t i = row * groups + threadIdx.x; i < (row + 1) * groups; i += Threads) {
    kept.scales[i] = swept.scales[i];
    if (kept.zeros != nullptr) kept.zeros[i] = swept.zeros[i];
  }
  if (threadIdx.x == 0) kept.losses[row] = loss;
}

}  // namespace gptq::cuda::detail
