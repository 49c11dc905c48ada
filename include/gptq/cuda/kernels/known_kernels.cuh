// What has been asked of a kernel, and set for it: once, as each of these calls of the runtime takes as long
// as a launch.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>

#include <gptq/cuda/error.cuh>

namespace gptq::cuda::detail {

/// Of a kernel on a device. cudaDeviceReset() takes back what has been set, and this does not notice.
struct known_kernel {
  void const* kernel = nullptr;
  int device = -1;
  int most_threads = 0;   ///< of a block; 0: not asked yet
  int shared_memory = 0;  ///< bytes that blocks may have, as far as they have been set
};

inline int current_device() {
  int id = 0;
  check(cudaGetDevice(&id), "asking for the current device");
  return id;
}

/// This thread's entry for a kernel: what another kernel had there before is asked for again.
inline known_kernel& find_known(void const* kernel, int device) {
  constexpr int bits = 7;
  thread_local known_kernel table[1 << bits];
  auto const hash =
      (reinterpret_cast<std::uintptr_t>(kernel) + static_cast<std::uintptr_t>(device)) * 0x9e3779b97f4a7c15u;
  known_kernel& entry = table[hash >> (64 - bits)];
  if (entry.kernel != kernel || entry.device != device) entry = {.kernel = kernel, .device = device};
  return entry;
}

/// Threads that a block of the kernel may have on the current device.
template <class... Parameters>
int most_threads(void (*kernel)(Parameters...)) {
  known_kernel& known = find_known(reinterpret_cast<void const*>(kernel), current_device());
  if (known.most_threads == 0) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel's attributes");
    known.most_threads = attributes.maxThreadsPerBlock;
  }
  return known.most_threads;
}

/// Raises the kernel's limit of dynamic shared memory on the current device, where it is lower.
template <class... Parameters>
void allow_shared_memory(void (*kernel)(Parameters...), int bytes) {
  known_kernel& known = find_known(reinterpret_cast<void const*>(kernel), current_device());
  if (bytes <= known.shared_memory) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "raising a kernel's limit of shared memory");
  known.shared_memory = bytes;
}

}  // namespace gptq::cuda::detail
