// What compute capability 9.0 and newer have: copies into shared memory that one thread starts and a unit of
// its own makes, and barriers in shared memory that wait for them. PTX ISA, "cp.async.bulk" and "mbarrier".
// For anything older a kernel that uses them is compiled to nothing, with a launch bound that the host
// recognizes: see compiled_for().
#pragma once

#include <cstdint>

#include <gptq/config.hpp>
#include <gptq/cuda/kernels/known_kernels.cuh>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define GPTQ_BULK_COPIES 1
#else
#define GPTQ_BULK_COPIES 0
#endif

namespace gptq::cuda::detail {

/// The launch bound of a kernel of `threads` threads that needs compute capability 9.0.
GPTQ_HOST_DEVICE constexpr int bulk_copy_bound(int threads) { return GPTQ_BULK_COPIES ? threads : 32; }

/// Whether the kernel, of `threads` threads, will run here as what it was written for, and not as nothing.
template <class... Parameters>
bool compiled_for(void (*kernel)(Parameters...), int threads) {
  return most_threads(kernel) >= threads;
}

#if GPTQ_BULK_COPIES

__device__ __forceinline__ std::uint32_t shared_address(void const* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// ---- barriers: `count` arrivals complete a phase; phases have alternating parities, the first 0 ----

__device__ __forceinline__ void initialize_barrier(std::uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
__device__ __forceinline__ void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives as so many threads would.
template <int Threads>
__device__ __forceinline__ void arrive_for(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "n"(Threads)
               : "memory");
}
/// Arrives; and the phase is not complete before so many bytes have been copied.
__device__ __forceinline__ void arrive_expecting(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
/// Arrives when all copies that this thread has started by copy_async() have been made.
__device__ __forceinline__ void arrive_when_copied(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/// Waits until the phase of this parity has been completed.
__device__ __forceinline__ void wait_for(std::uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
/// Starts copying `bytes` bytes, a multiple of 16, that somebody has the barrier expect.
__device__ __forceinline__ void copy_bulk(void* to, void const* from, int bytes, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
/// The same, with what the cache does with the bytes.
__device__ __forceinline__ void copy_bulk(void* to, void const* from, int bytes, std::uint64_t* barrier,
                                          std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
      "[%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
/// The policy for bytes that are read once: they make way first.
__device__ __forceinline__ std::uint64_t read_once() {
  std::uint64_t policy = 0;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// What this thread has written to shared memory lies before what bulk copies write and products read there.
__device__ __forceinline__ void publish_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Barriers that this thread has initialized are there for copies.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// True in one thread of a whole warp.
__device__ __forceinline__ bool one_of_warp() {
  std::uint32_t one = 0;
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, one;\n"
      "}"
      : "=r"(one));
  return one != 0;
}
/// A barrier of the first Threads threads of the block.
template <int Threads>
__device__ __forceinline__ void wait_for_threads() {
  asm volatile("bar.sync 1, %0;" ::"n"(Threads) : "memory");
}

#endif

}  // namespace gptq::cuda::detail
