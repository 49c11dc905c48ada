// What the ISAs of 512 bits share: 16 rows are one register.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_AVX512BW

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include <gptq/kernels/operations.hpp>

// g++ 12 calls uninitialized what its own intrinsics leave undefined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace gptq::detail {

struct zmm_operations {
  struct words {
    __m512i v;
  };
  struct floats {
    __m512 v;
  };
  struct codes {
    __m512i v;
  };
  using digits = __m512i;

  GPTQ_INLINE static words add(words a, words b) { return {_mm512_add_epi32(a.v, b.v)}; }
  GPTQ_INLINE static words subtract(words a, words b) { return {_mm512_sub_epi32(a.v, b.v)}; }
  GPTQ_INLINE static words max(words a, words b) { return {_mm512_max_epi32(a.v, b.v)}; }
  GPTQ_INLINE static std::int32_t largest(words a) { return _mm512_reduce_max_epi32(a.v); }
  /// Sums of the lanes 0, 1 and of the lanes 2, 3 modulo 4.
  GPTQ_INLINE static void sum_pairs(words a, std::int32_t (&pairs)[2]) {
    __m256i const eight = _mm256_add_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
    __m128i const four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(pairs), _mm_hadd_epi32(four, four));
  }
  /// The lower byte of each lane.
  GPTQ_INLINE static void store_bytes(std::int8_t* p, words a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
  }
  GPTQ_INLINE static words broadcast_words(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
  GPTQ_INLINE static words load_words(std::int32_t const* p) { return {_mm512_loadu_si512(p)}; }
  /// Times 2^-Shift; exact.
  template <int Shift>
  GPTQ_INLINE static words shift_words(words a) {
    if constexpr (Shift > 0) return {_mm512_srai_epi32(a.v, Shift)};
    if constexpr (Shift < 0) return {_mm512_slli_epi32(a.v, -Shift)};
    return a;
  }

  GPTQ_INLINE static floats broadcast(float x) { return {_mm512_set1_ps(x)}; }
  /// |x| as the bits of a float.
  GPTQ_INLINE static words magnitudes(floats a) {
    return {_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff))};
  }
  /// To the nearest integer, half to even.
  GPTQ_INLINE static words round(floats a) { return {_mm512_cvtps_epi32(a.v)}; }
  GPTQ_INLINE static floats to_floats(words a) { return {_mm512_cvtepi32_ps(a.v)}; }
  GPTQ_INLINE static floats add(floats a, floats b) { return {_mm512_add_ps(a.v, b.v)}; }
  GPTQ_INLINE static floats subtract(floats a, floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
  GPTQ_INLINE static floats multiply(floats a, floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
  GPTQ_INLINE static floats multiply_add(floats a, floats b, floats c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  GPTQ_INLINE static floats load(float const* p) { return {_mm512_loadu_ps(p)}; }
  GPTQ_INLINE static floats load(float16 const* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(p)))};
  }
  GPTQ_INLINE static floats load(e8m0 const* p) {
    __m128i const bytes = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
    // 2^-127 has the exponent 0 and a fraction.
    return {_mm512_castsi512_ps(
        _mm512_max_epi32(_mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23), _mm512_set1_epi32(0x00400000)))};
  }
  GPTQ_INLINE static floats load(e4m3 const* p) {
    // As float16 with 8 less in the exponent.
    __m256i const words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p)));
    __m256i const halves = _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(-0x4080));
    return {_mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.0F))};
  }
  GPTQ_INLINE static void store(float* p, floats a) { _mm512_storeu_ps(p, a.v); }
  /// 16 zero points, an LSB-first stream of codes, less 2^(Bits-1), over zero_weights().
  template <int Bits>
  GPTQ_INLINE static floats load_zeros(std::uint8_t const* p) {
    __m512i v;
    if constexpr (Bits == 8) {
      v = _mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p))),
                           _mm512_set1_epi32(128));
    } else {
      using at = zero_lane<Bits>;
      std::int32_t lower = 0;
      std::int32_t upper = 0;
      std::memcpy(&lower, p, 4);
      std::memcpy(&upper, p + 2 * Bits - 4, 4);
      __m512i const masks =
          _mm512_setr_epi32(at::mask(0), at::mask(1), at::mask(2), at::mask(3), at::mask(4), at::mask(5),
                            at::mask(6), at::mask(7), at::mask(8), at::mask(9), at::mask(10), at::mask(11),
                            at::mask(12), at::mask(13), at::mask(14), at::mask(15));
      __m512i const middles = _mm512_setr_epi32(
          at::middle(0), at::middle(1), at::middle(2), at::middle(3), at::middle(4), at::middle(5),
          at::middle(6), at::middle(7), at::middle(8), at::middle(9), at::middle(10), at::middle(11),
          at::middle(12), at::middle(13), at::middle(14), at::middle(15));
      v = _mm512_mask_set1_epi32(_mm512_set1_epi32(lower), 0xff00, upper);
      v = _mm512_sub_epi32(_mm512_and_si512(v, masks), middles);
    }
    return to_floats({v});
  }
  template <int Bits>
  GPTQ_INLINE static floats zero_weights() {
    if constexpr (Bits == 8) return broadcast(1.0F);
    using at = zero_lane<Bits>;
    return {_mm512_setr_ps(at::weight(0), at::weight(1), at::weight(2), at::weight(3), at::weight(4),
                           at::weight(5), at::weight(6), at::weight(7), at::weight(8), at::weight(9),
                           at::weight(10), at::weight(11), at::weight(12), at::weight(13), at::weight(14),
                           at::weight(15))};
  }

  GPTQ_INLINE static codes load_codes(std::uint8_t const* p) {
    codes c{_mm512_loadu_si512(p)};
    // Loaded once: compilers would make it the memory operand of each instruction that uses it.
    asm("" : "+v"(c.v));
    return c;
  }
  GPTQ_INLINE static void store_codes(std::uint8_t* p, codes c) { _mm512_storeu_si512(p, c.v); }
  GPTQ_INLINE static codes bits_and(codes a, int mask) {
    return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(mask)))};
  }
  GPTQ_INLINE static codes bits_or(codes a, codes b) { return {_mm512_or_si512(a.v, b.v)}; }
  /// The bits of each byte moved down by `Shift`; mask what comes in from its neighbour.
  template <int Shift>
  GPTQ_INLINE static codes shift(codes a) {
    if constexpr (Shift > 0) return {_mm512_srli_epi16(a.v, Shift)};
    return a;
  }
  /// Byte `Byte` of each lane.
  template <int Byte>
  GPTQ_INLINE static floats byte(codes c) {
    return to_floats({_mm512_and_si512(_mm512_srli_epi32(c.v, 8 * Byte), _mm512_set1_epi32(0xff))});
  }
  using table = __m512i;
  template <int Offset>
  GPTQ_INLINE static table load_table(std::int8_t const* p) {
    __m128i const levels = _mm_loadu_si128(reinterpret_cast<__m128i const*>(p));
    return _mm512_add_epi8(_mm512_broadcast_i32x4(levels), _mm512_set1_epi8(static_cast<char>(Offset)));
  }
  /// The levels of codes below 16.
  GPTQ_INLINE static codes look_up(table t, codes c) { return {_mm512_shuffle_epi8(t, c.v)}; }
  /// A broadcast of the four int8 at p.
  GPTQ_INLINE static digits four(void const* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
};

}  // namespace gptq::detail

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
