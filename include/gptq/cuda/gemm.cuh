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
// Small products of activations of 16 bits are gemv's for more columns, too: 16 at a time, in one launch.
// cuBLAS needs a handle in product_options::blas, x and y of the same type of 16 bits, and rows whose length
// is a multiple of 64; otherwise products straight from codes have no limit. For cuBLAS, and by warpgroups
// for more than 64 columns when x and y have 16 bits, weights are rounded to the type of x. Everywhere else
// products are exact. Sums are float32. Unlike gemv, gemm by warpgroups always needs a workspace.
//
// Activations of int8 (prepare.cuh) are for the tensor cores' integer units, on compute capability 9.0 and
// compiled for sm_90a. On an H200 that is faster only for thousands of tokens (bench/README.md):
//
//   auto a = gptq::cuda::prepare(w, x, tokens, memory, {.stream = stream});
//   gptq::cuda::gemm(w, a, y, {.stream = stream, .workspace = space, .workspace_bytes = space_bytes});
//
// The kernels: kernels/gemm_portable.cuh and, for sm_90a, kernels/gemm_sm90.cuh and
// kernels/gemm_int8_sm90.cuh.
#pragma once

#include <cstddef>

#include <gptq/cuda/activations.cuh>
#include <gptq/cuda/kernels/gemm.cuh>
#include <gptq/cuda/kernels/gemm_int8.cuh>
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
  detail::run_gemm(w, input<X>{x, w.in}, tokens, detail::plain_results(y, w.out), options);
}

/// A format whose codes, less their zero points, are int8 numbers or a fraction of them: all of device_format
/// but those of 8 bits with a stored zero point.
template <class Format>
concept int8_format = device_format<Format> && detail::int8_levels<Format>::possible;

/// Bytes of workspace that gemm() of int8 activations may need on the current device.
template <int8_format Format>
std::size_t int8_workspace_bytes(prepacked_view<Format> const& w, index_t tokens) {
  return detail::int8_workspace(w, tokens);
}

/// The product of activations that prepare() has made ready for w, or for a matrix of the same columns and
/// column order: y[tokens, out], row-major. Sums of a group, at most 128 columns of it, are exact; they are
/// multiplied by both scales and added up in float32. Throws invalid_argument, runtime_error or
/// unsupported_device; with the first nothing has been launched.
template <int8_format Format, device_number Y>
void gemm(prepacked_view<Format> const& w, int8_activations const& x, Y* y,
          product_options const& options = {}) {
  detail::run_int8_gemm(w, x, detail::plain_results(y, w.out), options);
}

}  // namespace gptq::cuda
