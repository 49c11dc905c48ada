// What can be chosen about a product and about quantizing on the GPU. Every default works on every device
// that gptq::cuda supports.
//
//   gptq::cuda::quantize_options const options{.act_order = true};
//   auto const same = gptq::cuda::quantize_options::from(gptq::quantize_options{.act_order = true});
#pragma once

#include <cstddef>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <type_traits>

#include <gptq/options.hpp>

namespace gptq::cuda {

/// What activations, results and decoded weights are made of on the device.
template <class T>
concept device_number =
    std::is_same_v<T, float> || std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

/// For gemv() and gemm(): the order of work, and memory for it.
struct product_options {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;        ///< device memory, aligned to 256 bytes
  std::size_t workspace_bytes = 0;  ///< what workspace_bytes() asks for, or more
  cublasHandle_t blas = nullptr;    ///< gemm() with many tokens; its stream is set
  /// Start reading weights while the kernel before in the stream still runs (compute capability 9.0). That
  /// kernel must not write the weights.
  bool overlap = false;
};

/// For quantize(): gptq::quantize_options, with the same names and meanings, less what only a CPU has
/// (block_size, threads), and with what only a GPU has.
struct quantize_options {
  /// All but reference, which quantize() refuses by name: gptq::quantize has it.
  gptq::quality quality = gptq::quality::fast;
  grid_rule grid = grid_rule::published;
  bool mse = false;
  bool act_order = false;
  bool static_groups = false;
  double damping = 0.01;
  bool measure_output_error = true;
  /// The large products that carry the error of quantized columns to later ones: in float32 (from compute
  /// capability 9.0 on as three products of TF32 each, which come as close), or in TF32, which is faster;
  /// the loss stays within 0.1 % then, but not all codes do.
  bool tf32 = false;

  /// What the CPU's options say, but for the two that only a CPU has.
  static quantize_options from(gptq::quantize_options const& o) {
    return {o.quality, o.grid, o.mse, o.act_order, o.static_groups, o.damping, o.measure_output_error};
  }
};

}  // namespace gptq::cuda
