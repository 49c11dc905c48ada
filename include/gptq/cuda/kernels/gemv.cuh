// What gemv() does: activations made readable, then up to 16 columns at a time by the kernel that is fastest.
#pragma once

#include <algorithm>

#include <gptq/cuda/kernels/gemv_portable.cuh>
#include <gptq/cuda/kernels/gemv_sm90.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/kernels/partial_sums.cuh>

namespace gptq::cuda::detail {

/// Up to 16 columns. Two row tiles a block with up to 8, which halves what is done for each chunk besides the
/// row tiles, unless that leaves multiprocessors idle; with 16 as few as one wave of blocks allows.
template <device_format Format, class T, int Parts, class Results>
void gemv_columns(prepacked_view<Format> const& w, operands<T> const& x, Results const& y,
                  product_options const& options, device const& gpu) {
  constexpr auto blocks = [](index_t tiles, int of_block) { return (tiles + of_block - 1) / of_block; };
  index_t const tiles = w.layout().row_tiles(), sms = gpu.multiprocessors;
  if (launch_gemv_sm90<Format, T, Parts>(w, x, y, options.stream, options.overlap, gpu)) return;
  if (x.columns <= 8) {
    tiles <= sms ? launch_gemv<Format, T, Parts, 1, 1>(w, x, y, options, gpu)
                 : launch_gemv<Format, T, Parts, 2, 1>(w, x, y, options, gpu);
  } else if (tiles <= sms * gemv_blocks<Format, 1, 2>) {
    launch_gemv<Format, T, Parts, 1, 2>(w, x, y, options, gpu);
  } else if (blocks(tiles, 2) <= sms * gemv_blocks<Format, 2, 2>) {
    launch_gemv<Format, T, Parts, 2, 2>(w, x, y, options, gpu);
  } else {
    launch_gemv<Format, T, Parts, 4, 2>(w, x, y, options, gpu);
  }
}

template <class Format, class X, class Results>
void run_gemv(prepacked_view<Format> const& w, input<X> const& x, index_t tokens, Results const& y,
              product_options const& options) {
  using T = operand<X>;
  check_product(w, x.data, x.stride, tokens, y.data, y.stride);
  device const gpu = device::current();
  if (w.out == 0 || tokens == 0) return;
  if (w.in == 0) return zero_product(w.out, tokens, y, options);
  operands<T> const all = readable_operands(w, x, tokens, options);
  constexpr index_t most = 16 / parts<X>;
  for (index_t token = 0; token < tokens; token += most) {
    auto const some = static_cast<int>(std::min(most, tokens - token)) * parts<X>;
    auto of_some = y;
    of_some.data += token * y.stride, of_some.first_token += token;
    gemv_columns<Format, T, parts<X>>(
        w, {all.data + token * parts<X> * all.stride, some, all.width, all.stride}, of_some, options, gpu);
  }
}

}  // namespace gptq::cuda::detail
