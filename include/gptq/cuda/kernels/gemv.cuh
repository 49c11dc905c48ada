// What gemv() does: activations made readable, then up to 16 columns at a time by the kernel that is fastest.
#pragma once

#include <algorithm>

#include <gptq/cuda/kernels/gemv_portable.cuh>
#include <gptq/cuda/kernels/gemv_sm90.cuh>
#include <gptq/cuda/kernels/operands.cuh>

namespace gptq::cuda::detail {

/// Up to 16 columns. Two row tiles a block with up to 8, which halves what is done for each chunk besides the
/// row tiles, unless that leaves multiprocessors idle; with 16 as few as one wave of blocks allows.
template <device_format Format, class T, int Parts, class Y>
void gemv_columns(prepacked_view<Format> const& w, operands<T> const& x, Y* y, product_options const& options,
                  device const& gpu) {
  constexpr auto blocks = [](index_t tiles, int of_block) { return (tiles + of_block - 1) / of_block; };
  index_t const tiles = w.layout().row_tiles(), sms = gpu.multiprocessors;
  if (launch_gemv_sm90<Format, T, Parts>(w, x, y, options.stream, options.overlap, gpu)) return;
  if (x.columns <= 8) {
    tiles <= sms ? launch_gemv<Format, T, Parts, Y, 1, 1>(w, x, y, options, gpu)
                 : launch_gemv<Format, T, Parts, Y, 2, 1>(w, x, y, options, gpu);
  } else if (tiles <= sms * gemv_blocks<Format, 1, 2>) {
    launch_gemv<Format, T, Parts, Y, 1, 2>(w, x, y, options, gpu);
  } else if (blocks(tiles, 2) <= sms * gemv_blocks<Format, 2, 2>) {
    launch_gemv<Format, T, Parts, Y, 2, 2>(w, x, y, options, gpu);
  } else {
    launch_gemv<Format, T, Parts, Y, 4, 2>(w, x, y, options, gpu);
  }
}

template <class Format, class X, class Y>
void run_gemv(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y,
              product_options const& options) {
  using T = operand<X>;
  check_product(w, x, tokens, y);
  device const gpu = device::current();
  if (w.out == 0 || tokens == 0) return;
  if (w.in == 0) {
    check(cudaMemsetAsync(y, 0, static_cast<std::size_t>(tokens * w.out) * sizeof(Y), options.stream),
          "zeroing y");
    return;
  }
  operands<T> const all = readable_operands(w, x, tokens, options);
  constexpr index_t most = 16 / parts<X>;
  for (index_t token = 0; token < tokens; token += most) {
    auto const some = static_cast<int>(std::min(most, tokens - token)) * parts<X>;
    gemv_columns<Format, T, parts<X>>(w,
                                      {all.data + token * parts<X> * all.stride, some, all.width, all.stride},
                                      y + token * w.out, options, gpu);
  }
}

}  // namespace gptq::cuda::detail
