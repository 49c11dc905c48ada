// What a Hessian's diagonal says of the inputs.
#pragma once

#include <cmath>
#include <cuda_runtime.h>
#include <string>
#include <vector>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/problem.cuh>

namespace gptq::cuda::detail {

[[noreturn]] inline void throw_not_finite(index_t row, index_t column, float value) {
  throw error("quantize: entry (" + std::to_string(row) + ", " + std::to_string(column) +
              ") of the hessian is " + std::to_string(value));
}

struct hessian_diagonal {
  std::vector<float> values;  ///< [columns] of S
  device_array<float> there;  ///< the same on the device; where all inputs are dead, ones
  index_t dead_columns = 0;
  bool all_dead = false;
  double average = 0.0;  ///< of diag(H) without dead inputs: what a dead one counts as

  explicit hessian_diagonal(problem const& p) : values(at(p.columns)), there(p.ctx, p.columns) {
    check(cudaMemcpy2DAsync(there.data(), sizeof(float), p.h.sum(), at(p.columns + 1) * sizeof(float),
                            sizeof(float), at(p.columns), cudaMemcpyDeviceToDevice, p.ctx.stream()),
          "copying a diagonal");
    there.download(values.data());
    double sum = 0.0;
    for (index_t i = 0; i < p.columns; ++i) {
      float const d = values[at(i)];
      if (!std::isfinite(d)) throw_not_finite(i, i, d);
      if (d == 0.0F) ++dead_columns;
      sum += static_cast<double>(d) * p.h.scale();
    }
    all_dead = dead_columns == p.columns;
    // A dead input counts as an average one, so that no choice of unit for the activations matters.
    average = all_dead ? 1.0 : sum / static_cast<double>(p.columns - dead_columns);
    // Nothing is passed on then, and no weight becomes zero: all are rounded to nearest.
    if (all_dead) {
      std::vector<float> const ones(at(p.columns), 1.0F);
      there.upload(ones.data());
      p.ctx.synchronize();  // the copy may be made later
    }
  }
};

}  // namespace gptq::cuda::detail
