// The device, and kernels launched on it.
//
//   auto const gpu = gptq::cuda::device::current();
//   gptq::cuda::launch(kernel, {.grid = blocks, .block = 256, .stream = stream}, p);
#pragma once

#include <cstddef>
#include <cuda_runtime.h>
#include <string>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/known_kernels.cuh>

namespace gptq::cuda {

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
  /// May start before its predecessor in the stream ends: the kernel waits for it itself (programmatic
  /// dependent launch).
  bool overlap = false;
};

/// Launches kernel<<<config>>>(arguments...). Throws runtime_error when that fails.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), launch_config const& config, Arguments const&... arguments);

// ---- implementation -------------------------------------------------------------------------------------

inline device device::current() {
  // What a thread has been told once, it remembers: asking takes as long as a launch.
  thread_local device last{.id = -1, .capability = 0, .multiprocessors = 0, .shared_memory = 0};
  device d{};
  d.id = detail::current_device();
  if (d.id == last.id) return last;
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
  return last = d;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), launch_config const& config, Arguments const&... arguments) {
  if (config.shared_memory > 48 * 1024)
    detail::allow_shared_memory(kernel, static_cast<int>(config.shared_memory));
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
