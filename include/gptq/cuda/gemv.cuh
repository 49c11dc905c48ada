// y = W x for one or a few tokens, at the speed of reading W.
//
//   gptq::cuda::gemv(w, x, y, {.stream = stream});               // x[in], y[out]
//   gptq::cuda::gemv(w, x, tokens, y, {.stream = stream});       // x[tokens, in], y[tokens, out], row-major
//
// w is a prepacked_view (prepack.cuh); x and y are device memory: __half, __nv_bfloat16 or float each.
// Products are exact and sums in float32 on tensor cores: half and bfloat16 take part as they are, float as
// three bfloat16 numbers, which is all of its 24 bits. Where x is half and y has 16 bits, sums may have 2^-16
// of the largest products as an error instead, a hundredth of what y is rounded by. Everything is done in
// stream order, with no allocation or synchronization, and may be captured in a graph. The same input gives
// the same bits.
//
// A workspace is needed where activations cannot be read as they lie: with a column order, with float, with
// `in` no multiple of 8 or x not aligned to 16 bytes. gemv_workspace_bytes() says how much:
//
//   std::size_t bytes = gptq::cuda::gemv_workspace_bytes<__half>(w, tokens);    // yours to allocate
//   gptq::cuda::gemv(w, x, tokens, y, {.stream = stream, .workspace = memory, .workspace_bytes = bytes});
//
// The kernels: kernels/gemv_sm90.cuh from compute capability 9.0 on, for most shapes, and
// kernels/gemv_portable.cuh.
#pragma once

#include <cstddef>

#include <gptq/cuda/kernels/gemv.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/prepack.cuh>

namespace gptq::cuda {

/// Bytes of workspace that gemv() of `tokens` tokens of type X may need.
template <device_number X, device_format Format>
std::size_t gemv_workspace_bytes(prepacked_view<Format> const& w, index_t tokens) {
  return detail::operand_bytes<X>(w, tokens);
}

/// Any number of tokens up to 65535; W is read again for each 16 of them (5 with float). Throws
/// invalid_argument, runtime_error or unsupported_device; with the first nothing has been launched.
template <device_format Format, device_number X, device_number Y>
void gemv(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y,
          product_options const& options = {}) {
  detail::run_gemv(w, input<X>{x, w.in}, tokens, detail::plain_results(y, w.out), options);
}

/// One token.
template <device_format Format, device_number X, device_number Y>
void gemv(prepacked_view<Format> const& w, X const* x, Y* y, product_options const& options = {}) {
  detail::run_gemv(w, input<X>{x, w.in}, 1, detail::plain_results(y, w.out), options);
}

}  // namespace gptq::cuda
