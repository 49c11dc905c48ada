// Storage types for 16-bit floating point: IEEE 754 binary16 and bfloat16.
//
//   gptq::float16 h{0.1f};        // rounds to nearest, ties to even; overflow gives infinity
//   float back = h;               // exact
//
// They hold bits and convert; arithmetic happens in float. Both are trivially copyable, two bytes, without
// padding, so that a buffer of them may be read from a file or handed over by another library.
#pragma once

#include <cstdint>

#include <gptq/config.hpp>

namespace gptq {

/// IEEE 754 binary16: 1 sign, 5 exponent, 10 fraction bits; largest finite value 65504.
struct float16 {
  std::uint16_t bits;

  float16() = default;
  /// Rounds to nearest, ties to even. |value| >= 65520 gives infinity, NaN stays a (quiet) NaN.
  GPTQ_HOST_DEVICE explicit constexpr float16(float value);
  GPTQ_HOST_DEVICE constexpr operator float() const;  ///< exact

  GPTQ_INLINE static constexpr float16 from_bits(std::uint16_t b) {
    float16 h;
    h.bits = b;
    return h;
  }
};

/// bfloat16: the upper half of an IEEE 754 binary32.
struct bfloat16 {
  std::uint16_t bits;

  bfloat16() = default;
  /// Rounds to nearest, ties to even; NaN stays a (quiet) NaN.
  GPTQ_HOST_DEVICE explicit constexpr bfloat16(float value);
  GPTQ_HOST_DEVICE constexpr operator float() const;  ///< exact

  GPTQ_INLINE static constexpr bfloat16 from_bits(std::uint16_t b) {
    bfloat16 h;
    h.bits = b;
    return h;
  }
};

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// std::bit_cast for kernels: a part of whoever uses it, see GPTQ_INLINE.
template <class To, class From>
GPTQ_INLINE GPTQ_HOST_DEVICE constexpr To bit_cast(From from) {
  return __builtin_bit_cast(To, from);
}

}  // namespace detail

GPTQ_INLINE GPTQ_HOST_DEVICE constexpr float16::float16(float value) : bits{} {
  std::uint32_t const word = detail::bit_cast<std::uint32_t>(value);
  std::uint32_t const sign = (word >> 16) & 0x8000u;
  std::uint32_t const magnitude = word & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal: rebias the exponent, round the 13 dropped bits
    std::uint32_t const rebased = magnitude - 0x38000000u;
    half = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  } else if (magnitude > 0x33000000u) {  // subnormal; exactly 2^-25 ties to zero
    std::uint32_t const exponent = magnitude >> 23;
    std::uint32_t const fraction = (magnitude & 0x7fffffu) | 0x800000u;
    std::uint32_t const shift = 126u - exponent;
    half = fraction >> shift;
    std::uint32_t const rest = fraction & ((1u << shift) - 1u);
    std::uint32_t const tie = 1u << (shift - 1u);
    if (rest > tie || (rest == tie && (half & 1u) != 0u)) ++half;
  }
  bits = static_cast<std::uint16_t>(sign | half);
}

GPTQ_INLINE GPTQ_HOST_DEVICE constexpr float16::operator float() const {
  std::uint32_t const sign = (bits & 0x8000u) * 0x10000u;
  std::uint32_t const exponent = (bits >> 10) & 0x1fu;
  std::uint32_t const fraction = bits & 0x3ffu;
  if (exponent == 31u) return detail::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0u) return detail::bit_cast<float>(sign | ((exponent + 112u) << 23) | (fraction << 13));
  float const magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(magnitude));
}

GPTQ_INLINE GPTQ_HOST_DEVICE constexpr bfloat16::bfloat16(float value) : bits{} {
  std::uint32_t const word = detail::bit_cast<std::uint32_t>(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) {
    bits = static_cast<std::uint16_t>((word >> 16) | 0x40u);
  } else {
    bits = static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
}

GPTQ_INLINE GPTQ_HOST_DEVICE constexpr bfloat16::operator float() const {
  return detail::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

static_assert(sizeof(float16) == 2 && sizeof(bfloat16) == 2);

}  // namespace gptq
