// The types that tensor cores multiply, as bits.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

#include <gptq/config.hpp>
#include <gptq/float16.hpp>

namespace gptq::cuda::detail {

/// The type in which activations of type X are multiplied, and how many numbers of it stand for one.
template <class X>
using operand = std::conditional_t<std::is_same_v<X, float>, __nv_bfloat16, X>;
template <class X>
inline constexpr int parts = std::is_same_v<X, float> ? 3 : 1;

/// Two numbers of 16 bits in a register, each the value of a code, less the middle 2^(Bits-1): an integer,
/// and exact in both types. Bit patterns of T: one, and 2^m for the m bits of its fraction.
template <class T>
struct number;
template <>
struct number<__half> {
  static constexpr int fraction = 10;
  static constexpr std::uint32_t one = 0x3c00u, magic = 0x6400u;
  /// a * b + c on both halves.
  __device__ static std::uint32_t fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    std::uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  GPTQ_HOST_DEVICE static constexpr std::uint32_t bits(float value) { return float16(value).bits; }
  GPTQ_HOST_DEVICE static constexpr bool holds(float value) { return float16(value) == value; }
};
template <>
struct number<__nv_bfloat16> {
  static constexpr int fraction = 7;
  static constexpr std::uint32_t one = 0x3f80u, magic = 0x4300u;
  __device__ static std::uint32_t fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    std::uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  GPTQ_HOST_DEVICE static constexpr std::uint32_t bits(float value) { return bfloat16(value).bits; }
  GPTQ_HOST_DEVICE static constexpr bool holds(float value) { return bfloat16(value) == value; }
};

GPTQ_HOST_DEVICE constexpr std::uint32_t twice(std::uint32_t half) { return half | half << 16; }

template <class T>
__device__ __forceinline__ T to(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (number<T>::fraction == 10) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

}  // namespace gptq::cuda::detail
