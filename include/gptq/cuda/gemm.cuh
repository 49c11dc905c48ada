// Y = X W' for any number of tokens.
//
//   std::size_t bytes = gptq::cuda::workspace_bytes<__half, __half>(w, tokens);    // yours to allocate
//   gptq::cuda::gemm(w, x, tokens, y, {.stream = stream, .workspace = memory, .workspace_bytes = bytes});
//
// The contract is that of gemv.cuh. What computes it goes by the number of columns, which is that of the
// tokens, or three times that with float:
//   up to 16           gemv
//   up to 256          tensor-core products straight from codes, 32 or 64 columns at a time
//   more               W decoded, a slice of rows after the other, and cuBLAS
// and on compute capability 9.0, where the program has been compiled for sm_90a (CMAKE_CUDA_ARCHITECTURES=90a
// or nvcc -gencode=arch=compute_90a,code=sm_90a, among others; sm_90 alone is not enough):
//   up to 16           gemv
//   up to 4095         products of warpgroups straight from codes, 32, 64 or 128 columns at a time
//   more               W decoded, and cuBLAS
// cuBLAS needs a handle in product_options::blas, x and y of the same type of 16 bits, and rows whose length
// is a multiple of 64; otherwise products straight from codes have no limit. For cuBLAS, and by warpgroups
// for more than 64 columns when x and y have 16 bits, weights are rounded to the type of x. Everywhere else
// products are exact. Sums are float32. Unlike gemv, gemm by warpgroups always needs a workspace.
//
// The kernels: kernels/gemm_portable.cuh and, for sm_90a, kernels/gemm_sm90.cuh.
#pragma once

#include <cstddef>

#include <gptq/cuda/kernels/gemm.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/prepack.cuh>

namespace gptq::cuda {

/// Bytes of workspace that gemm() of `tokens` tokens of type X into Y may need on the current device, with
/// cuBLAS and without.
template <device_number X, device_number Y, device_format Format>
std::size_t workspace_bytes(prepacked_view<Format> const& w, index_t tokens) {
  return detail::gemm_workspace<X, Y>(w, tokens);
}

/// x[tokens, in], y[tokens, out], row-major. Throws invalid_argument, runtime_error, library_error or
/// unsupported_device; with the first nothing has been launched.
template <device_format Format, device_number X, device_number Y>
void gemm(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y,
          product_options const& options = {}) {
  detail::run_gemm(w, x, tokens, y, options);
}

}  // namespace gptq::cuda
