// What columns count for when grids are searched for.
#pragma once

#include <gptq/config.hpp>
#include <gptq/cuda/solver/grids.cuh>
#include <gptq/solver/grid_steps.hpp>

namespace gptq::cuda::detail {

/// metric[p] = R_pp^2 + a share of their mean, of each position p; or metric[order[p]]. One block.
/// @param factor  L of sweep.cuh
template <int Threads = 1024>
__global__ void sweep_metric(float const* factor, int const* order, float* metric, index_t columns,
                             index_t ld) {
  __shared__ double parts[Threads / 32];
  double sum = 0.0;
  for (index_t p = threadIdx.x; p < columns; p += Threads) {
    double const pivot = factor[(ld - 1 - p) * (ld + 1)];
    sum += pivot * pivot;
  }
  sum = sum_over_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0.0;
  for (int i = 0; i < Threads / 32; ++i) sum += parts[i];
  float const least =
      gptq::solver::least_share_of_metric * static_cast<float>(sum) / static_cast<float>(columns);
  for (index_t p = threadIdx.x; p < columns; p += Threads) {
    float const pivot = factor[(ld - 1 - p) * (ld + 1)];
    metric[order == nullptr ? p : order[p]] = pivot * pivot + least;
  }
}

}  // namespace gptq::cuda::detail
