// What calibration and quantization on the GPU keep between calls: library handles, a second stream, memory.
//
//   gptq::cuda::context ctx(stream);
#pragma once

#include <cstddef>
#include <cstdint>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>
#include <limits>
#include <utility>

#include <gptq/cuda/error.cuh>
#include <gptq/format.hpp>

namespace gptq::cuda {

/// Handles for the device that is current when it is made; making one takes milliseconds. One thread at a
/// time; it must outlive every hessian and result that was made with it.
class context {
 public:
  /// Throws unsupported_device when the device is too old.
  explicit context(cudaStream_t stream = nullptr);
  context(context const&) = delete;
  context& operator=(context const&) = delete;
  ~context() { release(); }

  /// What work is ordered by, for the caller.
  cudaStream_t stream() const { return stream_; }
  /// A stream for work that runs beside.
  cudaStream_t side_stream() const { return side_stream_; }
  cublasHandle_t blas() const { return blas_; }
  cublasHandle_t side_blas() const { return side_blas_; }
  cusolverDnHandle_t solver() const { return solver_; }
  cusolverDnParams_t solver_parameters() const { return solver_parameters_; }
  cudaMemPool_t pool() const { return pool_; }

  void synchronize() const { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

 private:
  void release();

  cudaStream_t stream_;
  cudaStream_t side_stream_ = nullptr;
  cublasHandle_t blas_ = nullptr;
  cublasHandle_t side_blas_ = nullptr;
  cusolverDnHandle_t solver_ = nullptr;
  cusolverDnParams_t solver_parameters_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
};

namespace detail {

/// Device memory in the order of a context's stream; not initialized.
template <class T>
class device_array {
 public:
  device_array() = default;
  device_array(context const& ctx, index_t size) : stream_(ctx.stream()), size_(size) {
    if (size > 0) {
      check(cudaMallocFromPoolAsync(reinterpret_cast<void**>(&data_),
                                    static_cast<std::size_t>(size) * sizeof(T), ctx.pool(), stream_),
            "allocating memory on the device");
    }
  }
  device_array(device_array&& other) noexcept
      : stream_(other.stream_),
        size_(std::exchange(other.size_, 0)),
        data_(std::exchange(other.data_, nullptr)) {}
  device_array& operator=(device_array&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~device_array() {
    if (data_ != nullptr) (void)cudaFreeAsync(data_, stream_);
  }

  T* data() const { return data_; }
  index_t size() const { return size_; }
  void fill_bytes(int value) {
    check(cudaMemsetAsync(data_, value, static_cast<std::size_t>(size_) * sizeof(T), stream_),
          "filling memory on the device");
  }
  void upload(T const* host) { copy(data_, host, cudaMemcpyHostToDevice); }
  /// The entries first..first+count, when the stream has come so far: waits for it.
  void download(T* host, index_t first, index_t count) const {
    if (count == 0) return;
    check(cudaMemcpyAsync(host, data_ + first, static_cast<std::size_t>(count) * sizeof(T),
                          cudaMemcpyDeviceToHost, stream_),
          "copying from the device");
    check(cudaStreamSynchronize(stream_), "waiting for the device");
  }
  void download(T* host) const { download(host, 0, size_); }

 private:
  void copy(void* to, void const* from, cudaMemcpyKind kind) {
    if (size_ > 0) {
      check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(size_) * sizeof(T), kind, stream_),
            "copying to the device");
    }
  }

  cudaStream_t stream_ = nullptr;
  index_t size_ = 0;
  T* data_ = nullptr;
};

/// A point in a stream.
class event {
 public:
  explicit event(unsigned flags = cudaEventDisableTiming) {
    check(cudaEventCreateWithFlags(&event_, flags), "making an event");
  }
  event(event const&) = delete;
  event& operator=(event const&) = delete;
  ~event() { (void)cudaEventDestroy(event_); }

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }
  void hold_up(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_), "waiting for an event");
  }
  /// Seconds from another one to this one; both are over and were made with cudaEventDefault.
  double seconds_since(event const& start) const {
    float milliseconds = 0.0F;
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "reading an event's time");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace detail

// ---- implementation -------------------------------------------------------------------------------------

inline context::context(cudaStream_t stream) : stream_(stream) {
  auto const d = device::current();
  try {
    check(cudaStreamCreateWithFlags(&side_stream_, cudaStreamNonBlocking), "making a stream");
    check(cublasCreate(&blas_), "starting cuBLAS");
    check(cublasSetStream(blas_, stream_), "giving cuBLAS its stream");
    check(cublasCreate(&side_blas_), "starting cuBLAS");
    check(cublasSetStream(side_blas_, side_stream_), "giving cuBLAS its stream");
    check(cusolverDnCreate(&solver_), "starting cuSOLVER");
    check(cusolverDnSetStream(solver_, stream_), "giving cuSOLVER its stream");
    check(cusolverDnCreateParams(&solver_parameters_), "starting cuSOLVER");
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = d.id;
    check(cudaMemPoolCreate(&pool_, &properties), "making a memory pool");
    // Memory stays with the pool, or every call would ask the driver for it.
    auto threshold = std::numeric_limits<std::uint64_t>::max();
    check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold),
          "setting up a memory pool");
  } catch (...) {
    release();
    throw;
  }
}

inline void context::release() {
  if (solver_parameters_ != nullptr) (void)cusolverDnDestroyParams(solver_parameters_);
  if (solver_ != nullptr) (void)cusolverDnDestroy(solver_);
  if (side_blas_ != nullptr) (void)cublasDestroy(side_blas_);
  if (blas_ != nullptr) (void)cublasDestroy(blas_);
  if (side_stream_ != nullptr) (void)cudaStreamDestroy(side_stream_);
  if (pool_ != nullptr) (void)cudaMemPoolDestroy(pool_);
}

}  // namespace gptq::cuda
