// What a context is made of: library handles, streams and a pool that own themselves, and copies in the order
// of a stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>
#include <limits>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>

namespace gptq::cuda::detail {

struct handles {
  cudaStream_t stream;
  cudaStream_t side_stream = nullptr;
  cublasHandle_t blas = nullptr;
  cublasHandle_t side_blas = nullptr;
  cusolverDnHandle_t solver = nullptr;
  cusolverDnParams_t solver_parameters = nullptr;
  cudaMemPool_t pool = nullptr;

  explicit handles(cudaStream_t given) : stream(given) {
    auto const d = device::current();
    try {
      check(cudaStreamCreateWithFlags(&side_stream, cudaStreamNonBlocking), "making a stream");
      check(cublasCreate(&blas), "starting cuBLAS");
      check(cublasSetStream(blas, stream), "giving cuBLAS its stream");
      check(cublasCreate(&side_blas), "starting cuBLAS");
      check(cublasSetStream(side_blas, side_stream), "giving cuBLAS its stream");
      check(cusolverDnCreate(&solver), "starting cuSOLVER");
      check(cusolverDnSetStream(solver, stream), "giving cuSOLVER its stream");
      check(cusolverDnCreateParams(&solver_parameters), "starting cuSOLVER");
      cudaMemPoolProps properties{};
      properties.allocType = cudaMemAllocationTypePinned;
      properties.location.type = cudaMemLocationTypeDevice;
      properties.location.id = d.id;
      check(cudaMemPoolCreate(&pool, &properties), "making a memory pool");
      // Memory stays with the pool, or every call would ask the driver for it.
      auto threshold = std::numeric_limits<std::uint64_t>::max();
      check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold),
            "setting up a memory pool");
    } catch (...) {
      release();
      throw;
    }
  }
  handles(handles const&) = delete;
  handles& operator=(handles const&) = delete;
  ~handles() { release(); }

 private:
  void release() {
    if (solver_parameters != nullptr) (void)cusolverDnDestroyParams(solver_parameters);
    if (solver != nullptr) (void)cusolverDnDestroy(solver);
    if (side_blas != nullptr) (void)cublasDestroy(side_blas);
    if (blas != nullptr) (void)cublasDestroy(blas);
    if (side_stream != nullptr) (void)cudaStreamDestroy(side_stream);
    if (pool != nullptr) (void)cudaMemPoolDestroy(pool);
  }
};

inline void* allocate(cudaMemPool_t pool, cudaStream_t stream, std::size_t bytes) {
  void* memory = nullptr;
  if (bytes > 0) {
    check(cudaMallocFromPoolAsync(&memory, bytes, pool, stream), "allocating memory on the device");
  }
  return memory;
}

inline void fill(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes > 0) check(cudaMemsetAsync(memory, value, bytes, stream), "filling memory on the device");
}

inline void upload(void* to, void const* from, std::size_t bytes, cudaStream_t stream) {
  if (bytes > 0) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copying to the device");
  }
}

/// Waits for the copy.
inline void download(void* to, void const* from, std::size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "copying from the device");
  check(cudaStreamSynchronize(stream), "waiting for the device");
}

}  // namespace gptq::cuda::detail
