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
  float const* difference;  ///< [rows, ld], reversed and in this order; or, where order is null, by columns
  float const* diagonal;    ///< [columns]
  int const* order;
  index_t ld;
  double added_diagonal;
  double dead_diagonal;

  __device__ double operator()(index_t row, index_t position) const {
    index_t const column = order == nullptr ? position : index_t{order[position]};
    double const d = difference[row * ld + (order == nullptr ? position : ld - 1 - position)];
    double const added = added_diagonal + (diagonal[column] == 0.0F ? dead_diagonal : 0.0);
    return added * d * d;
  }
};

/// Looks for what is not finite in the lower triangle by columns of sum[columns, columns]. A block a column.
template <int Threads = 256>
__global__ void find_not_finite(float const* sum, index_t columns, faults* found) {
  index_t const column = blockIdx.x;
  for (index_t row = column + threadIdx.x; row < columns; row += Threads) {
    index_t const at = column * columns + row;
    if (!isfinite(sum[at])) atomicMin(&found->hessian, static_cast<unsigned long long>(at));
  }
}

/// Rows of codes, and what they stand for.
struct coded_weights {
  std::uint8_t const* codes;  ///< [rows, columns]
  float const* scales;        ///< [rows, groups]
  std::uint8_t const* zeros;  ///< likewise, or null
  int const* order;           ///< original column of each stored one; null: itself
  index_t groups;
  index_t group_columns;
  code_levels levels;
};

/// difference[row, column] = weight[row, column] less what its code stands for. A block a row.
template <int Threads = 256>
__global__ void decoded_difference(float const* weight, coded_weights coded, float* difference,
                                   index_t columns) {
  index_t const row = blockIdx.x;
  for (index_t stored = threadIdx.x; stored < columns; stored += Threads) {
    index_t const column = coded.order == nullptr ? stored : index_t{coded.order[stored]};
    index_t const at = row * coded.groups + stored / coded.group_columns;
    grid const g{coded.scales[at], coded.zeros == nullptr ? 0 : int{coded.zeros[at]}};
    difference[row * columns + column] =
        weight[row * columns + column] - coded.levels.decode(coded.codes[row * columns + stored], g);
  }
}

}  // namespace gptq::cuda::detail
