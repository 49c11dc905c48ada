// The large products between blocks of columns, on the stream of the solver or beside it.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/cuda/solver/sweep.cuh>
#include <gptq/cuda/solver/update_sm90.cuh>

namespace gptq::cuda::detail {

/// Which stream a product runs in: the solver's, which waits for it, or the one beside.
enum class stream_choice { main, beside };

/// Products of matrices of `ld` floats a row.
class column_products {
 public:
  explicit column_products(problem const& p)
      : problem_(p),
        compute_(p.options.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F),
        by_warpgroups_(!p.options.tf32 && update_sm90_runs(p.gpu)) {}

  /// f[rows, count] = d[rows, inner] r'[count, inner], or += ; all begin at multiples of 4 floats, and count
  /// is even.
  /// @param rows  of how many rows
  void run(stream_choice stream, float const* d, float const* r, float* f, index_t rows, index_t count,
           index_t inner, bool add) const {
    if (count == 0 || inner == 0) return;
    problem const& p = problem_;
    bool const beside = stream == stream_choice::beside;
    if (by_warpgroups_ && inner % update_step == 0) {
      launch_update_sm90({d, r, f, p.ld, rows, static_cast<int>(count), static_cast<int>(inner), add},
                         beside ? multiprocessors_beside() : p.gpu.multiprocessors,
                         beside ? p.ctx.side_stream() : p.ctx.stream());
      return;
    }
    float const one = 1.0F;
    float const keep = add ? 1.0F : 0.0F;
    // cuBLAS sees matrices transposed.
    check(cublasGemmEx_64(beside ? p.ctx.side_blas() : p.ctx.blas(), CUBLAS_OP_T, CUBLAS_OP_N, count, rows,
                          inner, &one, r, CUDA_R_32F, p.ld, d, CUDA_R_32F, p.ld, &keep, f, CUDA_R_32F, p.ld,
                          compute_, CUBLAS_GEMM_DEFAULT),
          "updating later columns");
  }

  /// For what is no such product.
  cublasComputeType_t compute() const { return compute_; }

 private:
  /// What a kernel of two blocks to a multiprocessor, with block_rows rows each, leaves free where that is
  /// half of the device or more.
  int multiprocessors_beside() const {
    index_t const swept = ((problem_.rows + block_rows - 1) / block_rows + 1) / 2;
    int const all = problem_.gpu.multiprocessors;
    return all - static_cast<int>(2 * swept <= all ? swept : 0);
  }

  problem const& problem_;
  cublasComputeType_t compute_;
  bool by_warpgroups_;
};

}  // namespace gptq::cuda::detail
