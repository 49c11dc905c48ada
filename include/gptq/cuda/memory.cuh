// What calibration and quantization on the GPU keep between calls, and memory on the device.
//
//   gptq::cuda::context ctx(stream);                          // library handles, a second stream, a pool
//   gptq::cuda::device_array<float> weight(ctx, out * in);    // memory of the pool
//   weight.upload(host);                                      // from the host
//   gptq::cuda::weight_view const view{weight.data(), out};   // what quantize() takes
#pragma once

#include <cstddef>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>
#include <utility>

#include <gptq/config.hpp>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/handles.cuh>

namespace gptq::cuda {

/// Handles for the device that is current when it is made; making one takes milliseconds. One thread at a
/// time; it must outlive everything that was made with it: arrays, Hessians, quantized layers.
class context {
 public:
  /// Throws unsupported_device when the device is too old, else as check() does.
  explicit context(cudaStream_t stream = nullptr) : handles_(stream) {}

  /// What work is ordered by, for the caller.
  cudaStream_t stream() const { return handles_.stream; }
  /// A stream for work that runs beside.
  cudaStream_t side_stream() const { return handles_.side_stream; }
  cublasHandle_t blas() const { return handles_.blas; }
  cublasHandle_t side_blas() const { return handles_.side_blas; }
  cusolverDnHandle_t solver() const { return handles_.solver; }
  cusolverDnParams_t solver_parameters() const { return handles_.solver_parameters; }
  cudaMemPool_t pool() const { return handles_.pool; }

  void synchronize() const { check(cudaStreamSynchronize(stream()), "waiting for the device"); }

 private:
  detail::handles handles_;
};

/// Device memory that owns itself, of a context's pool and in the order of its stream; not initialized.
template <class T>
class device_array {
 public:
  device_array() = default;
  device_array(context const& ctx, index_t size) : stream_(ctx.stream()), size_(size) {
    data_ = static_cast<T*>(detail::allocate(ctx.pool(), stream_, bytes(size)));
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

  /// Sets every byte.
  void fill_bytes(int value) { detail::fill(data_, value, bytes(size_), stream_); }
  /// All entries from the host, which may change them when the stream has come so far.
  void upload(T const* host) { detail::upload(data_, host, bytes(size_), stream_); }
  /// The entries first..first+count to the host, when the stream has come so far: waits for it.
  void download(T* host, index_t first, index_t count) const {
    if (count > 0) detail::download(host, data_ + first, bytes(count), stream_);
  }
  void download(T* host) const { download(host, 0, size_); }

 private:
  static std::size_t bytes(index_t count) { return static_cast<std::size_t>(count) * sizeof(T); }

  cudaStream_t stream_ = nullptr;
  index_t size_ = 0;
  T* data_ = nullptr;
};

/// weight[out, in] of a layer that somebody else owns: row-major, on the device.
struct weight_view {
  float const* data;
  index_t out;
};

}  // namespace gptq::cuda
