// Sums over rows that a report consists of.
#pragma once

#include <gptq/config.hpp>
#include <gptq/cuda/solver/grids.cuh>

namespace gptq::cuda::detail {

/// sums[row] = sum over the columns of term(row, column), in double and in a fixed order. A block a row.
template <int Threads, class Term>
__global__ void row_sums(Term term, double* sums, index_t columns) {
  __shared__ double parts[Threads / 32];
  index_t const row = blockIdx.x;
  double sum = 0.0;
  for (index_t column = threadIdx.x; column < columns; column += Threads) sum += term(row, column);
  sum = sum_over_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < Threads / 32; ++i) sum += parts[i];
  sums[row] = sum;
}

/// w[row] . (w S)[row]
struct signal_term {
  float const* weight;   ///< [rows, columns]
  float const* product;  ///< [rows, ld]
  index_t columns;
  index_t ld;

  __device__ double operator()(index_t row, index_t column) const {
    return double{weight[row * columns + column]} * double{product[row * ld + column]};
  }
};

/// What damping and dead inputs add to the loss of a row: to be taken out of it again.
struct damping_term {
  float const* difference;  ///< [rows, ld], reversed
  float const* diagonal;    ///< [columns]
  int const* order;
  index_t ld;
  double added_diagonal;
  double dead_diagonal;

  __device__ double operator()(index_t row, index_t position) const {
    double const d = difference[row * ld + ld - 1 - position];
    double const added = added_diagonal + (diagonal[order[position]] == 0.0F ? dead_diagonal : 0.0);
    return added * d * d;
  }
};

}  // namespace gptq::cuda::detail
