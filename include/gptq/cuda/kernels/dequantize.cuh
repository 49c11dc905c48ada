// Codes to weights in memory.
#pragma once

#include <cstdint>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/operands.cuh>

namespace gptq::cuda::detail {

/// Rows first_row_tile * 16 and on; a warp for each (row tile, chunk) pair. `stride` numbers a row.
template <device_format Format, class T>
__global__ void __launch_bounds__(256)
    dequantize_kernel(prepacked_view<Format> w, index_t first_row_tile, index_t row_tiles,
                      std::int32_t const* order, index_t stride, T* weights) {
  auto const layout = w.layout();
  index_t const pair = index_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  int const lane = threadIdx.x % 32;
  let_successor_start();
  if (pair >= row_tiles * layout.chunks()) return;
  index_t const row_tile = first_row_tile + pair / layout.chunks(), chunk = pair % layout.chunks();
  index_t const group = row_tile * layout.groups() + layout.first_group(chunk);
  lane_chunk<Format> codes;
  codes.load(
      reinterpret_cast<char const*>(w.codes + (row_tile * layout.chunks() + chunk) * layout.chunk_words),
      reinterpret_cast<char const*>(w.scales + group * tile_rows),
      reinterpret_cast<char const*>(w.zeros) + group * layout.zero_bytes, lane);
  wait_for_predecessor();
  unrolled<0, 4>([&]<int H>() {
    // bfloat16 and float16 hold every code - zero exactly; float16 makes them in fewer steps.
    std::uint32_t a[2][4];
    codes.template decode<__half, 2 * H>(a[0]);
    codes.template decode<__half, 2 * H + 1>(a[1]);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      index_t const row = row_tile * tile_rows + lane / 4 + 8 * upper;
      index_t const column = chunk * chunk_columns + 32 * H + 8 * (lane % 4);
      if (row >= w.out || column >= w.in) continue;
      float const scale = codes.scales[H * staged<Format>::groups / 4][upper];
      alignas(16) T values[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float2 const v = __half22float2(reinterpret_cast<__half2 const&>(a[i / 2][2 * (i % 2) + upper]));
        values[2 * i] = to<T>(scale * v.x), values[2 * i + 1] = to<T>(scale * v.y);
      }
      T* const target = weights + (row - first_row_tile * tile_rows) * stride;
      if (order == nullptr && stride % 8 == 0 && column + 8 <= w.in) {
#pragma unroll
        for (int i = 0; i < 8 * int{sizeof(T)} / 16; ++i) {
          reinterpret_cast<uint4*>(target + column)[i] = reinterpret_cast<uint4 const*>(values)[i];
        }
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (column + i < w.in)
            target[order == nullptr ? column + i : index_t{order[column + i]}] = values[i];
        }
      }
    }
  });
}

template <device_format Format, class T>
void launch_dequantize(prepacked_view<Format> const& w, index_t first_row_tile, index_t row_tiles,
                       std::int32_t const* order, index_t stride, T* weights, cudaStream_t stream) {
  constexpr unsigned warps = 8;
  launch(dequantize_kernel<Format, T>,
         {.grid = static_cast<unsigned>((row_tiles * w.layout().chunks() + warps - 1) / warps),
          .block = 32 * warps,
          .stream = stream},
         w, first_row_tile, row_tiles, order, stride, weights);
}

template <class Format, class T>
void run_dequantize(prepacked_view<Format> const& w, T* weights, cudaStream_t stream) {
  check_product(w, weights, w.in, 1, weights, w.out);
  if (reinterpret_cast<std::uintptr_t>(weights) % 16 != 0) {
    throw invalid_argument("gptq::cuda::dequantize: the weights are not aligned to 16 bytes");
  }
  device::current();
  if (w.out == 0 || w.in == 0) return;
  launch_dequantize(w, 0, w.layout().row_tiles(), w.order, w.in, weights, stream);
}

}  // namespace gptq::cuda::detail
