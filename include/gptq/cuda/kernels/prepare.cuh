// Floats to int8 digits (activations.cuh), arranged as stages of the ring of the int8 product.
#pragma once

#include <cstdint>

#include <gptq/cuda/activations.cuh>
#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/options.cuh>

namespace gptq::cuda::detail {

/// Where a digit lies among those of a chunk of a block of tokens: where tensor cores look for it, as B in
/// shared memory (see operand_in_shared_memory()), with the columns of every 32 permuted as int8_codes.cuh
/// has those of A.
GPTQ_HOST_DEVICE constexpr int digit_place(int token, int column) {
  int const in_step = column % 32, t = in_step / 8, half = in_step / 4 % 2, of_four = column % 4;
  int const permuted = of_four == 1 ? 2 : of_four == 2 ? 1 : of_four;
  int const unit = 2 * (column / 32) + half;
  return token * chunk_columns + 16 * (unit ^ token % 8) + 4 * t + permuted;
}

/// Chunks of a token that a warp prepares: half a warp has one at a time, a lane eight columns.
inline constexpr int prepared_at_once = 4;

/// Tokens that are not there, up to the end of their block, are zeros. The arithmetic is that of prepare() on
/// a CPU.
template <class X>
__global__ void prepare_int8(input<X> x, std::int32_t const* order, index_t in, index_t tokens,
                             index_t chunks, bool vectors, std::int8_t* digits, float* scales) {
  let_successor_start();
  wait_for_predecessor();
  index_t const token = index_t{blockIdx.y} * (blockDim.x / 32) + threadIdx.x / 32;
  int const lane = threadIdx.x % 32, column = 8 * (lane % 16);
  index_t const first_chunk = index_t{blockIdx.x} * prepared_at_once + lane / 16;
  struct alignas(16) eight {
    X values[8];
  };
  eight read[prepared_at_once / 2] = {};
#pragma unroll
  for (int i = 0; i < prepared_at_once / 2; ++i) {
    index_t const first = (first_chunk + 2 * i) * chunk_columns + column;
    X const* const from = x.data + token * x.stride;
    if (token >= tokens) continue;
    if (vectors) {  // all eight or none are there
      if (first < in) read[i] = *reinterpret_cast<eight const*>(from + first);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        index_t const p = first + j;
        if (p < in) read[i].values[j] = from[order == nullptr ? p : index_t{order[p]}];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < prepared_at_once / 2; ++i) {
    index_t const chunk = first_chunk + 2 * i;
    float values[8];
    // Magnitudes compare as the integers they look like, infinity and NaN above all others.
    std::uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[j] = static_cast<float>(read[i].values[j]);
      largest = max(largest, __float_as_uint(values[j]) & 0x7fffffffu);
    }
#pragma unroll
    for (int step = 8; step > 0; step /= 2)
      largest = max(largest, __shfl_xor_sync(0xffffffff, largest, step));
    if (chunk >= chunks) continue;
    bool const finite = largest < 0x7f800000u;
    float const magnitude = __uint_as_float(largest);
    bool const counts = finite && magnitude >= 0x1p-100F;
    float const steps = counts ? __fdiv_rn(127.0F, magnitude) : 0.0F;
    std::uint32_t words[2] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      int const digit = counts ? __float2int_rn(__fmul_rn(values[j], steps)) : 0;
      constexpr int places[4] = {0, 2, 1, 3};
      words[j / 4] |= (static_cast<std::uint32_t>(digit) & 0xffu) << (8 * places[j % 4]);
    }
    int const in_block = static_cast<int>(token % activation_tokens);
    index_t const stage = token / activation_tokens * chunks + chunk;
    std::int8_t* const to = digits + stage * (activation_tokens * chunk_columns);
    *reinterpret_cast<std::uint32_t*>(to + digit_place(in_block, column)) = words[0];
    *reinterpret_cast<std::uint32_t*>(to + digit_place(in_block, column + 4)) = words[1];
    if (lane % 16 == 0) {
      scales[stage * activation_tokens + in_block] = counts   ? __fdiv_rn(magnitude, 127.0F)
                                                     : finite ? 0.0F
                                                              : __uint_as_float(0x7fc00000u);
    }
  }
}

template <class X>
int8_activations run_prepare(int8_activations a, input<X> const& x, void* memory,
                             product_options const& options) {
  check_tokens(a.tokens);
  check_shape(0, a.in);
  device::current();
  if (a.tokens == 0 || a.in == 0) return a;
  if (x.data == nullptr || memory == nullptr)
    throw invalid_argument("gptq::cuda::prepare: x or memory is null");
  if (reinterpret_cast<std::uintptr_t>(memory) % 128 != 0) {
    throw invalid_argument("gptq::cuda::prepare: memory is not aligned to 128 bytes");
  }
  auto* const digits = static_cast<std::int8_t*>(memory);
  auto* const scales = reinterpret_cast<float*>(digits + a.digit_bytes());
  a.digits = digits, a.scales = scales;
  bool const vectors = a.order == nullptr && a.in % 8 == 0 && x.stride * index_t{sizeof(X)} % 16 == 0 &&
                       reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
  constexpr index_t block_tokens = 8;
  launch(prepare_int8<X>,
         {.grid = dim3(static_cast<unsigned>((a.chunks() + prepared_at_once - 1) / prepared_at_once),
                       static_cast<unsigned>(a.token_blocks() * (activation_tokens / block_tokens))),
          .block = static_cast<unsigned>(32 * block_tokens),
          .stream = options.stream,
          .overlap = options.overlap},
         x, a.order, a.in, a.tokens, a.chunks(), vectors, digits, scales);
  return a;
}

}  // namespace gptq::cuda::detail
