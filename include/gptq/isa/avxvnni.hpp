// AVX-VNNI: as avx512vnni.hpp, in 256 bits.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_AVXVNNI

#include <gptq/isa/ymm.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

template <>
struct operations<isa::avxvnni> : ymm_operations {
  static constexpr bool wide = true;
  static constexpr bool offset_in_words = false;
  static constexpr bool fixed_chunks = true;
  static constexpr index_t prefetch_bytes = 8192;
  static constexpr int halves_at_once = 2;
  template <int Bits, int Planes>
  static constexpr bool shared_digits = Bits == 4 && Planes == 1;
  static constexpr int direct_rows = 2;
  static constexpr int direct_tokens = 4;
  static constexpr int panel_rows = 4;
  static constexpr int panel_blocks = 1;
  struct accumulator {
    __m256i v[2];
  };

  template <int Shift, int /*Lower*/>
  GPTQ_INLINE static accumulator start(digit_sums const& sums, int /*block*/) {
    __m256i const all = _mm256_set1_epi32(sums.all * (1 << Shift));
    return {{all, all}};
  }
  GPTQ_INLINE static accumulator zero() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
    return {{_mm256_dpbusd_avx_epi32(a.v[0], c.v[0], x), _mm256_dpbusd_avx_epi32(a.v[1], c.v[1], x)}};
  }
  template <int /*Lower*/>
  GPTQ_INLINE static words to_words(accumulator a) {
    return {{a.v[0], a.v[1]}};
  }

  /// Levels of any size with 128 more, as codes of 8 bits.
  template <bool /*Small*/>
  using table_product = product_as_codes<operations, 128, false, 128>;
};

}  // namespace gptq::detail

#endif
