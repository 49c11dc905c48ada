// Types of one byte that scales are stored in.
//
//   gptq::e8m0 power{0.3F};       // 2^-2: a power of two, as in the OCP microscaling formats (MXFP4)
//   gptq::e4m3 scale{0.3F};       // 0.3125: four bits of exponent, three of fraction (NVFP4)
//   float back = scale;           // exact
//
// They hold bits and convert; arithmetic happens in float. OCP Microscaling Formats (MX) Specification 1.0, 2023;
// OCP 8-bit Floating Point Specification 1.0, 2023 (E4M3).
#pragma once

#include <cstdint>

#include <gptq/config.hpp>
#include <gptq/float16.hpp>

namespace gptq {

/// A power of two, 2^(bits - 127) for bits 0..254: no sign, no zero. 255 is NaN.
struct e8m0 {
  std::uint8_t bits;

  e8m0() = default;
  /// The power of two nearest to |value|, the larger one of two; at least 2^-127 and at most 2^127. Infinity and NaN
  /// give NaN.
  explicit constexpr e8m0(float value);
  constexpr operator float() const;  ///< exact

  GPTQ_INLINE static constexpr e8m0 from_bits(std::uint8_t b) {
    e8m0 e{};
    e.bits = b;
    return e;
  }
};

/// 1 sign, 4 exponent, 3 fraction bits: up to 448, no infinity, NaN with all of its other bits set.
struct e4m3 {
  std::uint8_t bits;

  e4m3() = default;
  /// Rounds to nearest, ties to even; what is larger becomes 448, infinity and NaN become NaN.
  explicit constexpr e4m3(float value);
  constexpr operator float() const;  ///< exact

  GPTQ_INLINE static constexpr e4m3 from_bits(std::uint8_t b) {
    e4m3 e{};
    e.bits = b;
    return e;
  }
};

// ---- implementation -------------------------------------------------------------------------------------

GPTQ_INLINE constexpr e8m0::e8m0(float value) : bits{} {
  std::uint32_t const magnitude = detail::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
  std::uint32_t exponent = 255;
  if (magnitude < 0x00800000u) {  // below 2^-126
    exponent = magnitude >= 0x00600000u ? 1 : 0;
  } else if (magnitude < 0x7f800000u) {
    exponent = (magnitude + 0x00400000u) >> 23;  // 1.5 and more: up
    exponent = exponent > 254 ? 254 : exponent;
  }
  bits = static_cast<std::uint8_t>(exponent);
}

GPTQ_INLINE constexpr e8m0::operator float() const {
  if (bits == 0) return 0x1p-127F;
  return detail::bit_cast<float>(bits == 255 ? 0x7fc00000u : std::uint32_t{bits} << 23);
}

GPTQ_INLINE constexpr e4m3::e4m3(float value) : bits{} {
  std::uint32_t const word = detail::bit_cast<std::uint32_t>(value);
  std::uint32_t const magnitude = word & 0x7fffffffu;
  std::uint32_t rounded = 0x7fu;
  if (magnitude >= 0x3c800000u && magnitude < 0x7f800000u) {  // 2^-6 and more: normal
    std::uint32_t const rebased = magnitude - 0x3c000000u;
    rounded = (rebased + 0x7ffffu + ((rebased >> 20) & 1u)) >> 20;
    rounded = rounded > 0x7eu ? 0x7eu : rounded;
  } else if (magnitude < 0x3c800000u) {  // multiples of 2^-9: adding 2^14 leaves them in the last bits
    float const shifted = detail::bit_cast<float>(magnitude) + 0x1p14F;
    rounded = detail::bit_cast<std::uint32_t>(shifted) - detail::bit_cast<std::uint32_t>(0x1p14F);
  }
  bits = static_cast<std::uint8_t>((word >> 24 & 0x80u) | rounded);
}

GPTQ_INLINE constexpr e4m3::operator float() const {
  std::uint32_t const magnitude = bits & 0x7fu;
  float value = static_cast<float>(magnitude) * 0x1p-9F;
  if (magnitude == 0x7fu) value = detail::bit_cast<float>(0x7fc00000u);
  if (magnitude >= 8 && magnitude < 0x7fu) value = detail::bit_cast<float>((magnitude << 20) + 0x3c000000u);
  return (bits & 0x80u) != 0 ? -value : value;
}

static_assert(sizeof(e8m0) == 1 && sizeof(e4m3) == 1);

}  // namespace gptq
