// Activations made ready for products of int8, once for all matrices of the same columns and column order: q,
// k and v; gate and up; of any format.
//
//   auto a = gptq::cuda::prepare(w, x, tokens, memory, {.stream = stream});    // x[tokens, in]
//   gptq::cuda::gemm(w, a, y, {.stream = stream});                             // gemm.cuh; y[tokens, out]
//
// What becomes of x, and how much memory it takes: activations.cuh. Done in stream order, with no allocation
// or synchronization; may be captured in a graph.
#pragma once

#include <gptq/activations.hpp>
#include <gptq/cuda/activations.cuh>
#include <gptq/cuda/kernels/prepare.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/prepacked.cuh>

namespace gptq::cuda {

/// x[token, column] at x.data[token * x.stride + column], any alignment, prepared in `memory` of
/// activation_bytes(w.in, tokens) bytes, aligned to 128. Of the options stream and overlap count. Throws
/// invalid_argument, unsupported_device or runtime_error; with the first nothing has been launched.
template <device_format Format, device_number X>
int8_activations prepare(prepacked_view<Format> const& w, input<X> x, index_t tokens, void* memory,
                         product_options const& options = {}) {
  return detail::run_prepare({.in = w.in, .tokens = tokens, .order = w.order}, x, memory, options);
}

/// The same for x[tokens, in] without gaps.
template <device_format Format, device_number X>
int8_activations prepare(prepacked_view<Format> const& w, X const* x, index_t tokens, void* memory,
                         product_options const& options = {}) {
  return prepare(w, input<X>{x, w.in}, tokens, memory, options);
}

}  // namespace gptq::cuda
