// AVX2: maddubs multiplies 32 codes with digits and adds pairs into int16, where up to 64 columns are summed
// modulo 2^16. Exact: what is left in the end is within -32768..32767, see integer_sums::start().
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_AVX2

#include <gptq/isa/ymm.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

template <>
struct operations<isa::avx2> : ymm_operations {
  static constexpr bool wide = false;
  static constexpr bool offset_in_words = false;
  static constexpr bool fixed_chunks = true;
  static constexpr index_t prefetch_bytes = 0;
  static constexpr int halves_at_once = 2;
  template <int Bits, int Planes>
  static constexpr bool shared_digits = Bits == 4 && Planes == 1;
  static constexpr int direct_rows = 4;
  static constexpr int direct_tokens = 16;
  static constexpr int panel_rows = 4;
  static constexpr int panel_blocks = 1;
  struct accumulator {
    __m256i v[2];
  };

  template <int Shift, int Lower>
  GPTQ_INLINE static accumulator start(digit_sums const& sums, int block) {
    __m256i const pairs = _mm256_slli_epi16(four(sums.of_pairs[block]), Shift);
    __m256i const lower = _mm256_sub_epi16(pairs, _mm256_set1_epi16(Lower));
    return {{lower, lower}};
  }
  GPTQ_INLINE static accumulator zero() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
    a.v[0] = _mm256_add_epi16(a.v[0], _mm256_maddubs_epi16(c.v[0], x));
    a.v[1] = _mm256_add_epi16(a.v[1], _mm256_maddubs_epi16(c.v[1], x));
    // In this order: compilers would collect all products first, in more registers than there are.
    asm("" : "+x"(a.v[0]), "+x"(a.v[1]));
    return a;
  }
  template <int Lower>
  GPTQ_INLINE static words to_words(accumulator a) {
    __m256i const one = _mm256_set1_epi16(1);
    words const sums{{_mm256_madd_epi16(a.v[0], one), _mm256_madd_epi16(a.v[1], one)}};
    return Lower == 0 ? sums : add(sums, broadcast_words(2 * Lower));
  }

  /// Small levels with 16 more: 16 columns of them add up to at most 8 * 31 * 128 < 2^15.
  using small_levels = product_as_codes<operations, 16, true, 16>;

  /// Any levels, up to 127: the sign of a digit moves to them. Two products are at most 2 * 127 * 128 < 2^15.
  struct any_levels {
    using accumulator = words;
    static constexpr int offset = 0;
    static constexpr bool offset_in_words = false;
    static constexpr int block_columns = 128;
    GPTQ_INLINE static accumulator start(digit_sums const& /*sums*/) { return broadcast_words(0); }
    GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
      __m256i const magnitudes = _mm256_abs_epi8(x);
      for (int i = 0; i < 2; ++i) {
        __m256i const pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(c.v[i], x));
        a.v[i] = _mm256_add_epi32(a.v[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      }
      asm("" : "+x"(a.v[0]), "+x"(a.v[1]));
      return a;
    }
    GPTQ_INLINE static words to_words(accumulator a) { return a; }
  };

  template <bool Small>
  using table_product = std::conditional_t<Small, small_levels, any_levels>;
};

}  // namespace gptq::detail

#endif
