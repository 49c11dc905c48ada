// What calls with steps (epilogue.cuh) make of their arguments, and the product of a gated pair.
#pragma once

#include <cstddef>

#include <gptq/activations.hpp>
#include <gptq/cuda/kernels/gemm.cuh>
#include <gptq/cuda/kernels/results.cuh>
#include <gptq/steps.hpp>

namespace gptq::cuda::detail {

template <device_number X>
input<X> as_input(X const* x, index_t in) {
  return {x, in};
}
template <device_number X>
input<X> as_input(input<X> const& x, index_t) {
  return x;
}

template <class Y, class... Steps>
results<Y, Steps...> as_results(output<Y> const& y, index_t out, Steps const&... steps) {
  return {y.data, y.stride != 0 ? y.stride : out, list_steps(steps...), 0};
}

/// v * activation(gate[token, row])
template <class Activation>
struct multiply_activation {
  float const* gate;
  index_t stride;
  Activation activation;

  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t token, index_t row,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) {
      float factor = gate[token * stride + row + i];
      activation(&factor, token, row + i, index_t{1});
      v[i] = gptq::detail::times(v[i], factor);
    }
  }
};

template <class Format>
std::size_t gate_bytes(prepacked_view<Format> const& w, index_t tokens) {
  return aligned_256(static_cast<std::size_t>(tokens * w.out) * sizeof(float));
}

template <class X, class Y, class Format>
std::size_t gated_workspace(prepacked_view<Format> const& up, index_t tokens) {
  return gate_bytes(up, tokens) + gemm_workspace<X, Y>(up, tokens);
}

/// The gate's products lie at the beginning of the workspace; the rest is each product's in turn.
template <class Format, class X, class Y, class Activation, class... Steps>
void run_gated(prepacked_view<Format> const& gate, prepacked_view<Format> const& up, input<X> const& x,
               index_t tokens, output<Y> const& y, Activation const& activation, product_options options,
               Steps const&... steps) {
  if (gate.out != up.out || gate.in != up.in) {
    throw invalid_argument("gptq::cuda::gated_gemm: gate has " + std::to_string(gate.out) + " x " +
                           std::to_string(gate.in) + " weights and up " + std::to_string(up.out) + " x " +
                           std::to_string(up.in));
  }
  auto const last = as_results(
      y, up.out, multiply_activation<Activation>{static_cast<float*>(options.workspace), up.out, activation},
      steps...);
  check_product(gate, x.data, x.stride, tokens, y.data, last.stride);
  check_product(up, x.data, x.stride, tokens, y.data, last.stride);
  if (up.out == 0 || tokens == 0) return;
  check_workspace(options, gated_workspace<X, Y>(up, tokens));
  intermediate_results<Y> const between{{static_cast<float*>(options.workspace), up.out, {}, 0}};
  std::size_t const kept = gate_bytes(up, tokens);
  options.workspace = static_cast<char*>(options.workspace) + kept;
  options.workspace_bytes -= kept;
  run_gemm(gate, x, tokens, between, options);
  run_gemm(up, x, tokens, last, options);
}

}  // namespace gptq::cuda::detail
