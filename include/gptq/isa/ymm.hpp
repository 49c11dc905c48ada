// What the ISAs of 256 bits share: 16 rows are two registers.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_AVX2

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

struct ymm_operations {
  struct words {
    __m256i v[2];
  };
  struct floats {
    __m256 v[2];
  };
  struct codes {
    __m256i v[2];
  };
  using digits = __m256i;

  GPTQ_INLINE static words add(words a, words b) {
    return {{_mm256_add_epi32(a.v[0], b.v[0]), _mm256_add_epi32(a.v[1], b.v[1])}};
  }
  GPTQ_INLINE static words subtract(words a, words b) {
    return {{_mm256_sub_epi32(a.v[0], b.v[0]), _mm256_sub_epi32(a.v[1], b.v[1])}};
  }
  GPTQ_INLINE static words max(words a, words b) {
    return {{_mm256_max_epi32(a.v[0], b.v[0]), _mm256_max_epi32(a.v[1], b.v[1])}};
  }
  GPTQ_INLINE static std::int32_t largest(words a) {
    __m256i const eight = _mm256_max_epi32(a.v[0], a.v[1]);
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
  }
  /// Sums of the lanes 0, 1 and of the lanes 2, 3 modulo 4.
  GPTQ_INLINE static void sum_pairs(words a, std::int32_t (&pairs)[2]) {
    __m256i const eight = _mm256_add_epi32(a.v[0], a.v[1]);
    __m128i const four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(pairs), _mm_hadd_epi32(four, four));
  }
  /// The lower byte of each lane.
  GPTQ_INLINE static void store_bytes(std::int8_t* p, words a) {
    __m256i const pairs = _mm256_packs_epi32(a.v[0], a.v[1]);  // rows 0..3, 8..11, 4..7, 12..15
    __m128i const bytes = _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_shuffle_epi32(bytes, 0xd8));
  }
  GPTQ_INLINE static words broadcast_words(std::int32_t x) {
    return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}};
  }
  /// Times 2^-Shift; exact.
  template <int Shift>
  GPTQ_INLINE static words shift_words(words a) {
    if constexpr (Shift > 0) return {{_mm256_srai_epi32(a.v[0], Shift), _mm256_srai_epi32(a.v[1], Shift)}};
    if constexpr (Shift < 0) return {{_mm256_slli_epi32(a.v[0], -Shift), _mm256_slli_epi32(a.v[1], -Shift)}};
    return a;
  }
  GPTQ_INLINE static floats broadcast(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
  /// |x| as the bits of a float.
  GPTQ_INLINE static words magnitudes(floats a) {
    __m256i const mask = _mm256_set1_epi32(0x7fffffff);
    return {{_mm256_and_si256(_mm256_castps_si256(a.v[0]), mask),
             _mm256_and_si256(_mm256_castps_si256(a.v[1]), mask)}};
  }
  /// To the nearest integer, half to even.
  GPTQ_INLINE static words round(floats a) {
    return {{_mm256_cvtps_epi32(a.v[0]), _mm256_cvtps_epi32(a.v[1])}};
  }
  GPTQ_INLINE static floats to_floats(words a) {
    return {{_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}};
  }
  GPTQ_INLINE static floats add(floats a, floats b) {
    return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}};
  }
  GPTQ_INLINE static floats subtract(floats a, floats b) {
    return {{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}};
  }
  GPTQ_INLINE static floats multiply(floats a, floats b) {
    return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
  }
  GPTQ_INLINE static floats multiply_add(floats a, floats b, floats c) {
    return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
  }
  GPTQ_INLINE static floats load(float const* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
  GPTQ_INLINE static floats load(float16 const* p) {
    return {{_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p))),
             _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p + 8)))}};
  }
  GPTQ_INLINE static floats load(e8m0 const* p) {
    __m128i const bytes = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
    return {{powers(bytes), powers(_mm_srli_si128(bytes, 8))}};
  }
  GPTQ_INLINE static floats load(e4m3 const* p) {
    // As float16 with 8 less in the exponent.
    __m256i const words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p)));
    __m256i const halves = _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(-0x4080));
    __m256 const times = _mm256_set1_ps(256.0F);
    return {{_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), times),
             _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), times)}};
  }
  GPTQ_INLINE static void store(float* p, floats a) {
    _mm256_storeu_ps(p, a.v[0]);
    _mm256_storeu_ps(p + 8, a.v[1]);
  }
  GPTQ_INLINE static codes load_codes(std::uint8_t const* p) {
    codes c{{_mm256_loadu_si256(reinterpret_cast<__m256i const*>(p)),
             _mm256_loadu_si256(reinterpret_cast<__m256i const*>(p + 32))}};
    // Loaded once: compilers would make it the memory operand of each instruction that uses it.
    asm("" : "+x"(c.v[0]), "+x"(c.v[1]));
    return c;
  }
  GPTQ_INLINE static void store_codes(std::uint8_t* p, codes c) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), c.v[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), c.v[1]);
  }
  GPTQ_INLINE static codes bits_and(codes a, int mask) {
    __m256i const m = _mm256_set1_epi8(static_cast<char>(mask));
    return {{_mm256_and_si256(a.v[0], m), _mm256_and_si256(a.v[1], m)}};
  }
  GPTQ_INLINE static codes bits_or(codes a, codes b) {
    return {{_mm256_or_si256(a.v[0], b.v[0]), _mm256_or_si256(a.v[1], b.v[1])}};
  }
  /// The bits of each byte moved down by `Shift`; mask what comes in from its neighbour.
  template <int Shift>
  GPTQ_INLINE static codes shift(codes a) {
    if constexpr (Shift > 0) return {{_mm256_srli_epi16(a.v[0], Shift), _mm256_srli_epi16(a.v[1], Shift)}};
    return a;
  }
  /// Byte `Byte` of each lane.
  template <int Byte>
  GPTQ_INLINE static floats byte(codes c) {
    __m256i const mask = _mm256_set1_epi32(0xff);
    return to_floats({{_mm256_and_si256(_mm256_srli_epi32(c.v[0], 8 * Byte), mask),
                       _mm256_and_si256(_mm256_srli_epi32(c.v[1], 8 * Byte), mask)}});
  }
  /// 16 zero points, an LSB-first stream of codes, less 2^(Bits-1), over zero_weights().
  template <int Bits>
  GPTQ_INLINE static floats load_zeros(std::uint8_t const* p) {
    if constexpr (Bits == 8) {
      __m256i const middle = _mm256_set1_epi32(128);
      __m128i const bytes = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
      return to_floats({{_mm256_sub_epi32(_mm256_cvtepu8_epi32(bytes), middle),
                         _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), middle)}});
    } else {
      return to_floats({{eight_zeros<Bits, 0>(p), eight_zeros<Bits, 8>(p + 2 * Bits - 4)}});
    }
  }
  template <int Bits>
  GPTQ_INLINE static floats zero_weights() {
    if constexpr (Bits == 8) return broadcast(1.0F);
    return {{eight_weights<Bits, 0>(), eight_weights<Bits, 8>()}};
  }
  using table = __m256i;
  template <int Offset>
  GPTQ_INLINE static table load_table(std::int8_t const* p) {
    __m128i const levels = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
    return _mm256_add_epi8(_mm256_broadcastsi128_si256(levels), _mm256_set1_epi8(static_cast<char>(Offset)));
  }
  /// The levels of codes below 16.
  GPTQ_INLINE static codes look_up(table t, codes c) {
    return {{_mm256_shuffle_epi8(t, c.v[0]), _mm256_shuffle_epi8(t, c.v[1])}};
  }
  /// A broadcast of the four int8 at p.
  GPTQ_INLINE static digits four(void const* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }

 private:
  GPTQ_INLINE static __m256 powers(__m128i bytes) {
    __m256i const exponents = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23);
    // 2^-127 has the exponent 0 and a fraction.
    return _mm256_castsi256_ps(_mm256_max_epi32(exponents, _mm256_set1_epi32(0x00400000)));
  }
  template <int Bits, int First>
  GPTQ_INLINE static __m256i eight_zeros(std::uint8_t const* p) {
    using at = zero_lane<Bits>;
    __m256i const masks =
        _mm256_setr_epi32(at::mask(First), at::mask(First + 1), at::mask(First + 2), at::mask(First + 3),
                          at::mask(First + 4), at::mask(First + 5), at::mask(First + 6), at::mask(First + 7));
    __m256i const middles = _mm256_setr_epi32(
        at::middle(First), at::middle(First + 1), at::middle(First + 2), at::middle(First + 3),
        at::middle(First + 4), at::middle(First + 5), at::middle(First + 6), at::middle(First + 7));
    return _mm256_sub_epi32(_mm256_and_si256(four(p), masks), middles);
  }
  template <int Bits, int First>
  GPTQ_INLINE static __m256 eight_weights() {
    using at = zero_lane<Bits>;
    return _mm256_setr_ps(at::weight(First), at::weight(First + 1), at::weight(First + 2),
                          at::weight(First + 3), at::weight(First + 4), at::weight(First + 5),
                          at::weight(First + 6), at::weight(First + 7));
  }
};

}  // namespace gptq::detail

#endif
