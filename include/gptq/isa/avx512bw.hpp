// AVX-512 without dot products: as avx2.hpp, in 512 bits.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_AVX512BW

#include <gptq/isa/zmm.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

template <>
struct operations<isa::avx512bw> : zmm_operations {
  static constexpr bool wide = false;
  static constexpr bool offset_in_words = false;
  static constexpr bool fixed_chunks = true;
  static constexpr index_t prefetch_bytes = 8192;
  static constexpr int halves_at_once = 2;
  template <int Bits, int Planes>
  static constexpr bool shared_digits = Bits == 4 && Planes == 1;
  static constexpr int direct_rows = 4;
  static constexpr int direct_tokens = 16;
  static constexpr int panel_rows = 8;
  static constexpr int panel_blocks = 1;
  using accumulator = __m512i;

  template <int Shift, int Lower>
  GPTQ_INLINE static accumulator start(digit_sums const& sums, int block) {
    return _mm512_sub_epi16(_mm512_slli_epi16(four(sums.of_pairs[block]), Shift), _mm512_set1_epi16(Lower));
  }
  GPTQ_INLINE static accumulator zero() { return _mm512_setzero_si512(); }
  GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
    a = _mm512_add_epi16(a, _mm512_maddubs_epi16(c.v, x));
    asm("" : "+v"(a));  // in this order, see avx2.hpp
    return a;
  }
  template <int Lower>
  GPTQ_INLINE static words to_words(accumulator a) {
    words const sums{_mm512_madd_epi16(a, _mm512_set1_epi16(1))};
    return Lower == 0 ? sums : add(sums, broadcast_words(2 * Lower));
  }

  /// Small levels with 16 more: 16 columns of them add up to at most 8 * 31 * 128 < 2^15.
  using small_levels = product_as_codes<operations, 16, true, 16>;

  /// Any levels, up to 127: the sign of a digit moves to them, see avx2.hpp.
  struct any_levels {
    using accumulator = words;
    static constexpr int offset = 0;
    static constexpr bool offset_in_words = false;
    static constexpr int block_columns = 128;
    GPTQ_INLINE static accumulator start(digit_sums const& /*sums*/) { return broadcast_words(0); }
    GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
      __m512i const levels = _mm512_mask_sub_epi8(c.v, _mm512_movepi8_mask(x), _mm512_setzero_si512(), c.v);
      __m512i const pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(x), levels);
      a.v = _mm512_add_epi32(a.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
      asm("" : "+v"(a.v));
      return a;
    }
    GPTQ_INLINE static words to_words(accumulator a) { return a; }
  };

  template <bool Small>
  using table_product = std::conditional_t<Small, small_levels, any_levels>;
};

}  // namespace gptq::detail

#endif
