// What the architectures of 512 bits share: 16 rows are one register.
#pragma once

#include <gptq/arch/isa.hpp>

#if defined(GPTQ_AVX512BW)

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include <gptq/detail/operations.hpp>

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
  GPTQ_INLINE static void store(float* p, floats a) { _mm512_storeu_ps(p, a.v); }
  /// 16 zero points, an LSB-first stream of codes, less 2^(Bits-1).
  template <int Bits>
  GPTQ_INLINE static floats load_zeros(std::uint8_t const* p) {
    __m512i v;
    if constexpr (Bits == 8) {
      v = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p)));
    } else {
      // 64 bits hold them all; each 64-bit lane moves two down, for the row of its lower half and of its
      // upper one.
      std::uint32_t low = 0;
      std::uint32_t high = 0;
      std::memcpy(&low, p, 4);
      std::memcpy(&high, p + 2 * Bits - 4, 4);
      std::uint64_t const stream = low | static_cast<std::uint64_t>(high) << (16 * Bits - 32);
      __m512i const all = _mm512_set1_epi64(static_cast<long long>(stream));
      __m512i const even = _mm512_srlv_epi64(
          all, _mm512_setr_epi64(0, 2 * Bits, 4 * Bits, 6 * Bits, 8 * Bits, 10 * Bits, 12 * Bits, 14 * Bits));
      // Moved up by 32 - Bits, the next code is at the bottom of the upper half.
      v = _mm512_and_si512(_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(even, 32 - Bits)),
                           _mm512_set1_epi32((1 << Bits) - 1));
    }
    return to_floats({_mm512_sub_epi32(v, _mm512_set1_epi32(1 << (Bits - 1)))});
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
