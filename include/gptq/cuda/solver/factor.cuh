// The Cholesky factor of the damped Hessian.
#pragma once

#include <cuda_runtime.h>
#include <cusolverDn.h>
#include <string>
#include <vector>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/column_order.cuh>
#include <gptq/cuda/solver/find_faults.cuh>
#include <gptq/cuda/solver/hessian_diagonal.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/solver/damping.hpp>

namespace gptq::cuda::detail {

/// The lower triangle of the reversed, damped Hessian, which is of float32 in any case. A block a column.
/// @param dead_diagonal   what a dead input counts as
/// @param added_diagonal  damping
template <class T>
__global__ void gather_hessian(float const* sum, int const* order, T* matrix, index_t columns, index_t stride,
                               float scale, double dead_diagonal, double added_diagonal, faults* found) {
  index_t const b = blockIdx.x;
  index_t const j = order[columns - 1 - b];
  for (index_t a = b + threadIdx.x; a < columns; a += blockDim.x) {
    index_t const i = order[columns - 1 - a];
    float const given = sum[j * columns + i];
    if (!isfinite(given)) atomicMin(&found->hessian, static_cast<unsigned long long>(j * columns + i));
    float value = scale * given;
    if (a == b) {
      double const live = given == 0.0F ? dead_diagonal : double{value};
      value = static_cast<float>(live + added_diagonal);
    }
    matrix[b * stride + a] = value;
  }
}

/// The lower triangle of `wide` as float32, padded at the upper left. A block a column.
template <int Threads = 256>
__global__ void narrow_factor(double const* wide, float* factor, index_t columns, index_t ld) {
  index_t const pad = ld - columns;
  index_t const b = blockIdx.x;
  for (index_t a = b + threadIdx.x; a < columns; a += Threads) {
    factor[(b + pad) * ld + a + pad] = static_cast<float>(wide[b * columns + a]);
  }
}

/// L of the reversed, damped Hessian: see sweep.cuh.
class factorization {
 public:
  /// In float32 its rounding errors are the largest of all and decide ties; tensor cores factorize float64 as
  /// fast, where there are such. Throws gptq::error where H is not positive definite even with damping 1.
  factorization(problem const& p, hessian_diagonal const& diagonal, column_order const& order,
                device_array<faults> const& found)
      : problem_(p),
        diagonal_(diagonal),
        order_(order),
        found_(found),
        matrix_(p.ctx, p.ld * p.ld),
        ladder_(p.options.damping) {
    matrix_.fill_bytes(0);  // the upper triangle, too, which libraries may read
    index_t const pad = p.ld - p.columns;
    int ratio = 0;
    check(cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, p.gpu.id),
          "asking for a device's speed");
    if (ratio > 2) {
      factorize(matrix_.data() + pad * (p.ld + 1), p.ld);
      return;
    }
    device_array<double> wide(p.ctx, p.columns * p.columns);
    wide.fill_bytes(0);
    factorize(wide.data(), p.columns);
    launch(narrow_factor<>, {.grid = grid_size(p.columns), .block = 256, .stream = p.ctx.stream()},
           wide.data(), matrix_.data(), p.columns, p.ld);
  }

  /// Entry (a, b), a >= b, is at b * ld + a.
  float const* data() const { return matrix_.data(); }
  /// What data() gave is not needed any more.
  void release() { matrix_ = device_array<float>(); }
  double damping() const { return ladder_.damping(); }
  int damping_raised() const { return ladder_.raised(); }
  /// What damping has added to the diagonal.
  double added_diagonal() const { return added_diagonal_; }

 private:
  /// The lower triangle of matrix[columns, columns] becomes L.
  template <class T>
  void factorize(T* matrix, index_t stride) {
    problem const& p = problem_;
    context const& ctx = p.ctx;
    constexpr cudaDataType_t type = sizeof(T) == 4 ? CUDA_R_32F : CUDA_R_64F;
    std::size_t device_bytes = 0;
    std::size_t host_bytes = 0;
    check(cusolverDnXpotrf_bufferSize(ctx.solver(), ctx.solver_parameters(), CUBLAS_FILL_MODE_LOWER,
                                      p.columns, type, matrix, stride, type, &device_bytes, &host_bytes),
          "sizing a Cholesky factorization");
    device_array<char> device_workspace(ctx, static_cast<index_t>(device_bytes));
    std::vector<char> host_workspace(host_bytes);
    device_array<int> info(ctx, 1);
    for (;;) {
      // The mean of the diagonal, dead inputs included.
      added_diagonal_ = ladder_.damping() * diagonal_.average;
      launch(gather_hessian<T>, {.grid = grid_size(p.columns), .block = 256, .stream = ctx.stream()},
             p.h.sum(), order_.columns_there.data(), matrix, p.columns, stride,
             static_cast<float>(p.h.scale()), diagonal_.average, added_diagonal_, found_.data());
      check(cusolverDnXpotrf(ctx.solver(), ctx.solver_parameters(), CUBLAS_FILL_MODE_LOWER, p.columns, type,
                             matrix, stride, type, device_workspace.data(), device_bytes,
                             host_workspace.data(), host_bytes, info.data()),
            "factorizing the Hessian");
      int minor = 0;
      info.download(&minor);
      check_faults(p, found_);
      if (minor == 0) break;
      if (!ladder_.raise()) {
        throw error("quantize: the Hessian of " + std::to_string(p.columns) +
                    " inputs is not positive definite with damping " + std::to_string(ladder_.damping()) +
                    " (mean of the diagonal " + std::to_string(diagonal_.average) + "; " +
                    std::to_string(diagonal_.dead_columns) + " dead inputs; " + std::to_string(p.h.tokens()) +
                    " tokens)");
      }
    }
  }

  problem const& problem_;
  hessian_diagonal const& diagonal_;
  column_order const& order_;
  device_array<faults> const& found_;
  device_array<float> matrix_;
  gptq::solver::damping_ladder ladder_;
  double added_diagonal_ = 0.0;
};

}  // namespace gptq::cuda::detail
