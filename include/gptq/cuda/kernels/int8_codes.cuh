// Codes as the A operands of int8 products: four codes in a word, signed, their zero point taken off.
#pragma once

#include <cstdint>

#include <gptq/cuda/kernels/code_places.cuh>
#include <gptq/cuda/prepacked.cuh>

namespace gptq::cuda::detail {

/// Four bytes of the eight of a (0..3) and b (4..7): byte i is the one that nibble i of the selector names.
GPTQ_HOST_DEVICE constexpr std::uint32_t select_bytes(std::uint32_t a, std::uint32_t b,
                                                      std::uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, selector);
#else
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    std::uint32_t const from = selector >> (4 * i) & 7;
    word |= ((from < 4 ? a >> (8 * from) : b >> (8 * (from - 4))) & 0xff) << (8 * i);
  }
  return word;
#endif
}

GPTQ_HOST_DEVICE constexpr std::uint32_t four_bytes(std::uint32_t byte) { return byte * 0x01010101u; }

/// Shifts to the left, or, by a negative distance, to the right.
template <int Distance>
GPTQ_HOST_DEVICE constexpr std::uint32_t shifted_left(std::uint32_t word) {
  return Distance >= 0 ? word << (Distance & 31) : word >> (-Distance & 31);
}

/// The codes of a lane's row g, or g + 8 (Upper), of columns c, c + 2, c + 1, c + 3 of its chunk, c =
/// 32 Step + 8t + 4 Half: a byte each, the code in its lowest bits or (Top) in its highest.
template <int Bits, bool Top, int Step, bool Upper, int Half>
GPTQ_HOST_DEVICE constexpr std::uint32_t code_bytes(std::uint32_t const* words) {
  if constexpr (Bits == 8) {
    std::uint32_t const* const pair = words + 4 * Step + 2 * Half;
    return select_bytes(pair[0], pair[1], Upper ? 0x7351 : 0x6240);
  } else if constexpr (Bits == 4) {
    constexpr int to_end = (Top ? 4 : 0) - (Upper ? 4 : 0);
    return shifted_left<to_end>(words[2 * Step + Half]) & four_bytes(Top ? 0xf0 : 0x0f);
  } else {  // registers r and r + 2 of a fragment have columns c, c + 1 and c + 2, c + 3 of both halves
    constexpr int at = Top ? 8 - Bits : 0;
    auto const register_bytes = [&]<int R>() {
      std::uint32_t bytes = shifted_left<at - 2 * R>(words[Step]) & four_bytes(3u << at);
      if constexpr (Bits == 3) {
        constexpr int from = (2 * R + 2 + Step % 2) % 8;
        std::uint32_t word = words[4 + Step / 2];
        if constexpr (R == 3) word = select_bytes(word, 0, 0x2301);
        bytes |= shifted_left<at + 2 - from>(word) & four_bytes(4u << at);
      }
      return bytes;
    };
    return select_bytes(register_bytes.template operator() < Upper ? 1 : 0 > (),
                        register_bytes.template operator() < Upper ? 3 : 2 > (), Half == 0 ? 0x6240 : 0x7351);
  }
}

/// How a format's codes become signed bytes: moved to the top and their sign bit turned over, for a zero
/// point in the middle of the codes or half a step below, which then is an odd multiple of half of what
/// moving multiplies by; or less an integer, where both have at most 4 bits.
template <device_format Format>
struct int8_levels {
  static constexpr int bits = Format::bits;
  static constexpr float middle = static_cast<float>(1 << (bits - 1)), zero = Format::levels.zero;
  static constexpr bool half_step = !Format::has_zero_point && bits < 8 && zero == middle - 0.5F;
  static constexpr bool centered = !Format::has_zero_point && (zero == middle || half_step);
  static constexpr bool less_integer =
      bits <= 4 &&
      (Format::has_zero_point || (zero >= 0.0F && zero <= 15.0F && zero == static_cast<int>(zero)));
  static constexpr bool possible = centered || less_integer;
  /// What the bytes are multiples of.
  static constexpr float unit = centered ? 1.0F / static_cast<float>(1 << (8 - bits)) : 1.0F;
};

/// The same bytes as signed ones: (code - zero) / int8_levels::unit. `zero` is the stored one of the row.
template <device_format Format, int Step, bool Upper, int Half>
GPTQ_HOST_DEVICE constexpr std::uint32_t signed_bytes(std::uint32_t const* words,
                                                      [[maybe_unused]] std::uint32_t zero) {
  using levels = int8_levels<Format>;
  std::uint32_t const codes = code_bytes<Format::bits, levels::centered, Step, Upper, Half>(words);
  if constexpr (levels::centered) {
    return codes ^ four_bytes(0x80 | (levels::half_step ? 1u << (7 - Format::bits) : 0));
  } else {
    if constexpr (!Format::has_zero_point) zero = static_cast<std::uint32_t>(levels::zero);
    return ((codes | four_bytes(0x80)) - four_bytes(zero)) ^ four_bytes(0x80);
  }
}

}  // namespace gptq::cuda::detail
