// Weights as numbers again, on the device.
//
//   gptq::cuda::dequantize(w, weights, stream);     // weights[out, in], row-major, columns in original order
//
// The product scale * (code - zero) is rounded once, to the type of the weights; float holds it exactly when
// scales are float16. What exceeds float16's range becomes infinite there.
#pragma once

#include <cuda_runtime.h>

#include <gptq/cuda/kernels/dequantize.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/prepack.cuh>

namespace gptq::cuda {

/// weights[out, in] of float, __half or __nv_bfloat16, aligned to 16 bytes, in stream order. Throws
/// invalid_argument, runtime_error or unsupported_device; with the first nothing has been launched.
template <device_format Format, device_number T>
void dequantize(prepacked_view<Format> const& w, T* weights, cudaStream_t stream = nullptr) {
  detail::run_dequantize(w, weights, stream);
}

}  // namespace gptq::cuda
