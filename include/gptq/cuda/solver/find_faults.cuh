// Naming what kernels have found wrong.
#pragma once

#include <cmath>
#include <cuda_runtime.h>
#include <string>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/faults.cuh>
#include <gptq/cuda/solver/hessian_diagonal.cuh>
#include <gptq/cuda/solver/problem.cuh>

namespace gptq::cuda::detail {

/// Throws for what kernels have found. Waits for them.
inline void check_faults(problem const& p, device_array<faults> const& there) {
  faults found{};
  there.download(&found);
  auto const value_at = [&](float const* values, unsigned long long i) {
    float value = 0.0F;
    check(cudaMemcpy(&value, values + i, sizeof value, cudaMemcpyDeviceToHost), "copying from the device");
    return value;
  };
  if (found.weight != faults::none) {
    // Rows of different layers may share an index: the first layer that has the fault is the one to name.
    for (std::size_t layer = 0; layer < p.weights.size(); ++layer) {
      weight_view const& w = p.weights[layer];
      if (found.weight >= static_cast<unsigned long long>(w.out * p.columns)) continue;
      float const value = value_at(w.data, found.weight);
      if (std::isfinite(value)) continue;
      auto const columns = static_cast<unsigned long long>(p.columns);
      throw error("quantize: weight " +
                  (p.weights.size() > 1 ? "of layer " + std::to_string(layer) + " " : std::string()) +
                  "at row " + std::to_string(found.weight / columns) + ", column " +
                  std::to_string(found.weight % columns) + " is " + std::to_string(value));
    }
  }
  if (found.hessian != faults::none) {
    auto const i = static_cast<index_t>(found.hessian);
    throw_not_finite(i % p.columns, i / p.columns, value_at(p.h.sum(), found.hessian));
  }
  if (found.scale != faults::none) {
    auto const i = static_cast<index_t>(found.scale);
    throw error("quantize: the scale of row " + std::to_string(i / p.format.groups) + ", group " +
                std::to_string(i % p.format.groups) +
                " is beyond the range of its type (65504 for float16): store the scales as float32");
  }
}

}  // namespace gptq::cuda::detail
