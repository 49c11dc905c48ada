// What an engine does to the results of a product next, done before they are stored: the steps of steps.hpp,
// with strides of yours between tokens.
//
//   gptq::cuda::gemv(w, x, 1, gptq::output{y}, {.stream = stream}, gptq::add_bias{bias});            // y = W x + bias
//   gptq::cuda::gemm(w, x, tokens, gptq::output{y}, {}, gptq::add_residual{y, w.out});               // Y += X W'
//   gptq::cuda::gemm(w, gptq::input{x, stride}, tokens, gptq::output{y, y_stride}, {}, gptq::gelu{});
//   gptq::cuda::gated_gemm(gate, up, x, tokens, gptq::output{y}, gptq::silu{}, {});    // silu(gate x) * (up x)
//
// The contract is that of gemv.cuh and gemm.cuh, and sums are theirs, bit for bit, as far as they are made by
// this library's kernels: each step is done to them in float32, in the order of the arguments, and at last
// they are rounded to the type of y (in steps of your own the compiler may fuse a product and a sum). With
// steps cuBLAS is never called. What is not asked for costs nothing: kernels without steps are other kernels.
// y may be what a step reads (add_residual{y}). Pointers in steps are to device memory, and in a graph they
// stay as they are.
#pragma once

#include <cstddef>

#include <gptq/activations.hpp>
#include <gptq/cuda/activations.cuh>
#include <gptq/cuda/gemm.cuh>
#include <gptq/cuda/gemv.cuh>
#include <gptq/cuda/kernels/gated.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/prepacked.cuh>
#include <gptq/steps.hpp>

namespace gptq::cuda {

/// Y = X W' for few tokens, as gemv.cuh has it, and then `steps`.
/// @param x  x[tokens, in] without gaps, or gptq::input{x, stride}
template <device_format Format, class X, device_number Y, class... Steps>
void gemv(prepacked_view<Format> const& w, X const& x, index_t tokens, output<Y> y,
          product_options const& options = {}, Steps const&... steps) {
  detail::run_gemv(w, detail::as_input(x, w.in), tokens, detail::as_results(y, w.out, steps...), options);
}

/// The same for any number of tokens, as gemm.cuh has it, with the workspace that workspace_bytes() says.
template <device_format Format, class X, device_number Y, class... Steps>
void gemm(prepacked_view<Format> const& w, X const& x, index_t tokens, output<Y> y,
          product_options const& options = {}, Steps const&... steps) {
  detail::run_gemm(w, detail::as_input(x, w.in), tokens, detail::as_results(y, w.out, steps...), options);
}

/// The same of int8 activations.
template <int8_format Format, device_number Y, class... Steps>
void gemm(prepacked_view<Format> const& w, int8_activations const& x, output<Y> y,
          product_options const& options = {}, Steps const&... steps) {
  detail::run_int8_gemm(w, x, detail::as_results(y, w.out, steps...), options);
}

/// Y = activation(X gate') * (X up') for matrices of the same shape: what the two first layers of a gated MLP
/// do. The products with `gate` are kept in the workspace, in float32.
/// @param activation  a step: silu{}, gelu{}, ...
/// @param steps       done to the products of the two
template <device_format Format, class X, device_number Y, class Activation, class... Steps>
void gated_gemm(prepacked_view<Format> const& gate, prepacked_view<Format> const& up, X const& x,
                index_t tokens, output<Y> y, Activation const& activation, product_options const& options,
                Steps const&... steps) {
  detail::run_gated(gate, up, detail::as_input(x, up.in), tokens, y, activation, options, steps...);
}

/// Bytes of workspace that gated_gemm() of `tokens` tokens of type X into Y may need on the current device.
template <device_number X, device_number Y, device_format Format>
std::size_t gated_workspace_bytes(prepacked_view<Format> const& up, index_t tokens) {
  return detail::gated_workspace<X, Y>(up, tokens);
}

}  // namespace gptq::cuda
