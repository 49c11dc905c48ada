// What can go wrong on the device, as exceptions, and launches that are checked.
//
//   gptq::cuda::check(cudaMalloc(&p, bytes), "allocating the workspace");
//   gptq::cuda::launch(kernel, {.grid = blocks, .block = 256, .stream = stream}, arguments...);
//
// All of them are a gptq::error. An error of a kernel that runs later, as of any asynchronous work, appears
// at a later call of CUDA: cudaStreamSynchronize() has it at the latest.
#pragma once

#include <cstddef>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolver_common.h>
#include <string>

#include <gptq/error.hpp>

namespace gptq::cuda {

/// A call of the CUDA runtime failed, a launch among them.
struct runtime_error : gptq::error {
  cudaError_t code;
  runtime_error(cudaError_t code, std::string const& what);
};

/// cuBLAS or cuSOLVER returned a status other than success: a cublasStatus_t or a cusolverStatus_t.
struct library_error : gptq::error {
  int status;
  library_error(std::string const& library, int status, std::string const& what);
};

/// The device lacks what is asked of it.
struct unsupported_device : gptq::error {
  using gptq::error::error;
};

/// A shape, pointer or size that the caller passes is wrong. Nothing has been launched.
struct invalid_argument : gptq::error {
  using gptq::error::error;
};

/// Throws unless the call succeeded; `what` says what was being done. The runtime's memory of the error is
/// cleared, unless the error is one that the device does not recover from.
void check(cudaError_t code, char const* what);
void check(cublasStatus_t status, char const* what);
void check(cusolverStatus_t status, char const* what);

/// The current device, in the numbers that launches depend on.
struct device {
  int id;
  int capability;       ///< compute capability, 10 * major + minor
  int multiprocessors;  ///< SMs
  int shared_memory;    ///< bytes a block may opt in to

  /// Throws unsupported_device unless its compute capability is 8.0 or newer.
  static device current();
};

/// The shape of a launch.
struct launch_config {
  dim3 grid;
  dim3 block;
  std::size_t shared_memory = 0;  ///< bytes, dynamic; above 48 KiB the kernel's limit is raised first
  cudaStream_t stream = nullptr;
  bool overlap =
      false;  ///< may start before its predecessor in the stream ends: the kernel waits for it itself
};

/// Launches kernel<<<config>>>(arguments...). Throws runtime_error when that fails.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), launch_config const& config, Arguments const&... arguments);

// ---- implementation -------------------------------------------------------------------------------------

inline runtime_error::runtime_error(cudaError_t c, std::string const& what)
    : gptq::error("CUDA: " + what + ": " + cudaGetErrorString(c) + " (" + cudaGetErrorName(c) + ")"),
      code(c) {}

inline library_error::library_error(std::string const& library, int s, std::string const& what)
    : gptq::error(library + ": " + what + ": status " + std::to_string(s)), status(s) {}

inline void check(cudaError_t code, char const* what) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();
  throw runtime_error(code, what);
}

inline void check(cublasStatus_t status, char const* what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw library_error("cuBLAS", status, std::string(what) + ": " + cublasGetStatusString(status));
  }
}

inline void check(cusolverStatus_t status, char const* what) {
  if (status != CUSOLVER_STATUS_SUCCESS) throw library_error("cuSOLVER", status, what);
}

inline device device::current() {
  device d{};
  check(cudaGetDevice(&d.id), "asking for the current device");
  auto const attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, d.id), "asking for an attribute of the device");
    return value;
  };
  d.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  d.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  d.shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (d.capability < 80) {
    throw unsupported_device("device " + std::to_string(d.id) + " has compute capability " +
                             std::to_string(d.capability / 10) + "." + std::to_string(d.capability % 10) +
                             ", and 8.0 is the least that is supported");
  }
  return d;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), launch_config const& config, Arguments const&... arguments) {
  if (config.shared_memory > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(config.shared_memory)),
          "raising a kernel's limit of shared memory");
  }
  cudaLaunchConfig_t launch{};
  launch.gridDim = config.grid;
  launch.blockDim = config.block;
  launch.dynamicSmemBytes = config.shared_memory;
  launch.stream = config.stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  launch.attrs = &attribute;
  launch.numAttrs = config.overlap ? 1 : 0;
  check(cudaLaunchKernelEx(&launch, kernel, static_cast<Parameters>(arguments)...), "launching a kernel");
}

}  // namespace gptq::cuda
