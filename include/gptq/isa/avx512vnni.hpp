// AVX-512 VNNI: vpdpbusd multiplies 64 codes with digits and adds fours into int32.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_AVX512VNNI

#include <gptq/isa/zmm.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

template <>
struct operations<isa::avx512vnni> : zmm_operations {
  static constexpr bool wide = true;
  static constexpr bool offset_in_words = false;
  static constexpr bool fixed_chunks = true;
  static constexpr index_t prefetch_bytes = 8192;
  static constexpr int halves_at_once = 2;
  template <int Bits, int Planes>
  static constexpr bool shared_digits = true;
  static constexpr int direct_rows = 4;
  static constexpr int direct_tokens = 4;
  static constexpr int panel_rows = 8;
  static constexpr int panel_blocks = 2;
  using accumulator = __m512i;

  template <int Shift, int /*Lower*/>
  GPTQ_INLINE static accumulator start(digit_sums const& sums, int /*block*/) {
    return _mm512_set1_epi32(sums.all * (1 << Shift));
  }
  GPTQ_INLINE static accumulator zero() { return _mm512_setzero_si512(); }
  GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
    return _mm512_dpbusd_epi32(a, c.v, x);
  }
  template <int /*Lower*/>
  GPTQ_INLINE static words to_words(accumulator a) {
    return {a};
  }

  /// Levels of any size with 128 more, as codes of 8 bits.
  template <bool /*Small*/>
  using table_product = product_as_codes<operations, 128, false, 128>;
};

}  // namespace gptq::detail

#endif
