// Activations as kernels read them, and what is wrong with a request for a product.
#pragma once

#include <cstdint>
#include <string>

#include <gptq/activations.hpp>
#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/prepacking.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/prepacked.cuh>

namespace gptq::cuda::detail {

/// Columns of the right-hand side: tokens * parts rows of `stride` numbers, of which the first `width`, a
/// multiple of 8, count.
template <class T>
struct operands {
  T const* data;
  int columns;
  index_t width;
  index_t stride;

  __device__ __forceinline__ T const* column(int i) const { return data + i * stride; }
};

/// The same with columns from a list: column i is row rows[i] of x.
template <class T>
struct listed_operands {
  T const* data;
  int columns;
  index_t width;
  index_t stride;
  int const* rows;

  __device__ __forceinline__ T const* column(int i) const { return data + rows[i] * stride; }
};

/// Activations in stored order, padded to whole chunks, float as three numbers: prepared[tokens * parts,
/// padded].
template <class X>
__global__ void prepare(input<X> x, std::int32_t const* order, index_t in, index_t padded,
                        operand<X>* prepared) {
  let_successor_start();
  wait_for_predecessor();
  index_t const p = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  index_t const token = blockIdx.y;
  if (p >= padded) return;
  X value = to<X>(0.0F);
  if (p < in) value = x.data[token * x.stride + (order == nullptr ? p : index_t{order[p]})];
  operand<X>* const target = prepared + token * parts<X> * padded + p;
  if constexpr (parts<X> == 1) {
    *target = value;
  } else {
    float rest = value;
    for (int part = 0; part < parts<X>; ++part) {
      operand<X> const rounded = __float2bfloat16_rn(rest);
      target[part * padded] = rounded;
      rest -= __bfloat162float(rounded);
    }
  }
}

inline void check_tokens(index_t tokens) {
  if (tokens < 0 || tokens > 65535) {
    throw invalid_argument("gptq::cuda: " + std::to_string(tokens) + " tokens; 0 to 65535 are possible");
  }
}

template <class Format>
void check_product(prepacked_view<Format> const& w, void const* x, index_t x_stride, index_t tokens,
                   void const* y, index_t y_stride) {
  check_shape(w.out, w.in);
  check_tokens(tokens);
  if (w.out == 0 || tokens == 0) return;
  if (tokens > 1 && (x_stride < w.in || y_stride < w.out)) {
    throw invalid_argument("gptq::cuda: strides of " + std::to_string(x_stride) + " and " +
                           std::to_string(y_stride) + " between tokens; x has " + std::to_string(w.in) +
                           " columns and y " + std::to_string(w.out) + " rows");
  }
  if (y == nullptr || (w.in != 0 && x == nullptr)) throw invalid_argument("gptq::cuda: x or y is null");
  if (w.in == 0) return;
  if (w.codes == nullptr || w.scales == nullptr || (Format::has_zero_point && w.zeros == nullptr)) {
    throw invalid_argument("gptq::cuda: the matrix lacks codes, scales or zeros");
  }
  if (reinterpret_cast<std::uintptr_t>(w.codes) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(w.scales) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(w.zeros) % 4 != 0) {
    throw invalid_argument("gptq::cuda: codes or scales are not aligned to 16 bytes");
  }
}

inline void check_workspace(product_options const& options, std::size_t needed) {
  if (options.workspace_bytes < needed || options.workspace == nullptr) {
    throw invalid_argument("gptq::cuda: the workspace has " +
                           std::to_string(options.workspace == nullptr ? 0 : options.workspace_bytes) +
                           " bytes, and " + std::to_string(needed) + " are needed");
  }
}

/// Bytes of activations of type X in the workspace.
template <class X, class Format>
std::size_t operand_bytes(prepacked_view<Format> const& w, index_t tokens) {
  index_t const padded = w.layout().chunks() * chunk_columns;
  return static_cast<std::size_t>(tokens * parts<X> * padded) * sizeof(operand<X>);
}

/// Whether kernels can read x as it lies.
template <class X, class Format>
bool readable(prepacked_view<Format> const& w, input<X> const& x) {
  return parts<X> == 1 && w.order == nullptr && w.in % 8 == 0 && x.stride % 8 == 0 &&
         reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
}

/// x as kernels read it: in place, or prepared in the workspace.
template <class X, class Format>
operands<operand<X>> readable_operands(prepacked_view<Format> const& w, input<X> const& x, index_t tokens,
                                       product_options const& options) {
  if constexpr (parts<X> == 1) {
    if (readable(w, x)) return {x.data, static_cast<int>(tokens), w.in, x.stride};
  }
  index_t const padded = w.layout().chunks() * chunk_columns;
  check_workspace(options, operand_bytes<X>(w, tokens));
  auto* const prepared = static_cast<operand<X>*>(options.workspace);
  constexpr unsigned threads = 256;
  launch(
      prepare<X>,
      {.grid = dim3(static_cast<unsigned>((padded + threads - 1) / threads), static_cast<unsigned>(tokens)),
       .block = threads,
       .stream = options.stream,
       .overlap = options.overlap},
      x, w.order, w.in, padded, prepared);
  return {prepared, static_cast<int>(tokens) * parts<X>, padded, padded};
}

}  // namespace gptq::cuda::detail
