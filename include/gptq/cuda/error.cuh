// What can go wrong on the device, as exceptions.
//
//   gptq::cuda::check(cudaMalloc(&p, bytes), "allocating the workspace");
//
// All of them are a gptq::error. An error of a kernel that runs later, as of any asynchronous work, appears
// at a later call of CUDA: cudaStreamSynchronize() has it at the latest.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolver_common.h>
#include <string>

#include <gptq/error.hpp>

namespace gptq::cuda {

/// A call of the CUDA runtime failed, a launch among them.
struct runtime_error : gptq::error {
  cudaError_t code;
  runtime_error(cudaError_t c, std::string const& what)
      : gptq::error("CUDA: " + what + ": " + cudaGetErrorString(c) + " (" + cudaGetErrorName(c) + ")"),
        code(c) {}
};

/// cuBLAS or cuSOLVER returned a status other than success: a cublasStatus_t or a cusolverStatus_t.
struct library_error : gptq::error {
  int status;
  library_error(std::string const& library, int s, std::string const& what)
      : gptq::error(library + ": " + what + ": status " + std::to_string(s)), status(s) {}
};

/// The device lacks what is asked of it.
struct unsupported_device : gptq::error {
  using gptq::error::error;
};

/// A shape, pointer, size or option that the caller passes is wrong. Nothing has been launched.
struct invalid_argument : gptq::error {
  using gptq::error::error;
};

/// Throws runtime_error unless the call succeeded; `what` says what was being done. The runtime's memory of
/// the error is cleared, unless the error is one that the device does not recover from.
inline void check(cudaError_t code, char const* what) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();
  throw runtime_error(code, what);
}

/// Throws library_error unless the call of cuBLAS or cuSOLVER succeeded.
inline void check(cublasStatus_t status, char const* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw library_error("cuBLAS", status, std::string(what) + ": " + cublasGetStatusString(status));
}
/// The same for cuSOLVER.
inline void check(cusolverStatus_t status, char const* what) {
  if (status != CUSOLVER_STATUS_SUCCESS) throw library_error("cuSOLVER", status, what);
}

}  // namespace gptq::cuda
