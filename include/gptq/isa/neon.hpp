// AArch64 Advanced SIMD: smlal multiplies 8 codes with digits and adds to as many int16. A lane has one of
// four columns, so 64 columns add up to at most 16 * 15 * 128 < 2^15: exact, without a start below zero.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_NEON

#include <gptq/isa/q_registers.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

template <>
struct operations<isa::neon> : q_operations {
  static constexpr bool wide = false;
  static constexpr bool offset_in_words = true;
  static constexpr bool fixed_chunks = true;
  static constexpr index_t prefetch_bytes = 0;
  static constexpr int halves_at_once = 2;
  template <int Bits, int Planes>
  static constexpr bool shared_digits = true;
  static constexpr int direct_rows = 1;
  static constexpr int direct_tokens = 2;
  static constexpr int panel_rows = 2;
  static constexpr int panel_blocks = 1;
  struct accumulator {
    int16x8_t v[8];
  };

  template <int Shift, int /*Lower*/>
  GPTQ_INLINE static accumulator start(digit_sums const& /*sums*/, int /*block*/) {
    return zero();
  }
  GPTQ_INLINE static accumulator zero() {
    int16x8_t const v = vdupq_n_s16(0);
    return {{v, v, v, v, v, v, v, v}};
  }
  GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
    dot_four(a.v[0], a.v[1], c.v[0], x);
    dot_four(a.v[2], a.v[3], c.v[1], x);
    dot_four(a.v[4], a.v[5], c.v[2], x);
    dot_four(a.v[6], a.v[7], c.v[3], x);
    in_order(a.v[0], a.v[1], a.v[2], a.v[3]);
    in_order(a.v[4], a.v[5], a.v[6], a.v[7]);
    return a;
  }
  template <int /*Lower*/>
  GPTQ_INLINE static words to_words(accumulator a) {
    return {{sums(a.v[0], a.v[1]), sums(a.v[2], a.v[3]), sums(a.v[4], a.v[5]), sums(a.v[6], a.v[7])}};
  }

  /// Small levels: 64 columns of them add up to at most 16 * 15 * 128 < 2^15, as of codes.
  using small_levels = product_as_codes<operations, 0, false, 64>;
  /// Any levels, up to 127: products of 8 of them with digits, at most 127 * 128 each, move on to int32 in pairs.
  struct any_levels {
    struct accumulator {
      int32x4_t v[8];
    };
    static constexpr int offset = 0;
    static constexpr bool offset_in_words = false;
    static constexpr int block_columns = 128;
    GPTQ_INLINE static accumulator start(digit_sums const& /*sums*/) {
      int32x4_t const v = vdupq_n_s32(0);
      return {{v, v, v, v, v, v, v, v}};
    }
    GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
      dot_four(a.v[0], a.v[1], c.v[0], x);
      dot_four(a.v[2], a.v[3], c.v[1], x);
      dot_four(a.v[4], a.v[5], c.v[2], x);
      dot_four(a.v[6], a.v[7], c.v[3], x);
      in_order(a.v[0], a.v[1], a.v[2], a.v[3]);
      in_order(a.v[4], a.v[5], a.v[6], a.v[7]);
      return a;
    }
    GPTQ_INLINE static words to_words(accumulator a) {
      return {{vpaddq_s32(a.v[0], a.v[1]), vpaddq_s32(a.v[2], a.v[3]), vpaddq_s32(a.v[4], a.v[5]),
               vpaddq_s32(a.v[6], a.v[7])}};
    }

   private:
    GPTQ_INLINE static void dot_four(int32x4_t& low, int32x4_t& high, uint8x16_t codes, digits x) {
      int8x16_t const c = vreinterpretq_s8_u8(codes);
      low = vpadalq_s16(low, vmull_s8(vget_low_s8(c), vget_low_s8(x)));
      high = vpadalq_s16(high, vmull_high_s8(c, x));
    }
  };
  template <bool Small>
  using table_product = std::conditional_t<Small, small_levels, any_levels>;

 private:
  /// Four rows.
  GPTQ_INLINE static void dot_four(int16x8_t& low, int16x8_t& high, uint8x16_t codes, digits x) {
    int8x16_t const c = vreinterpretq_s8_u8(codes);
    low = vmlal_s8(low, vget_low_s8(c), vget_low_s8(x));
    high = vmlal_high_s8(high, c, x);
  }
  GPTQ_INLINE static int32x4_t sums(int16x8_t low, int16x8_t high) {
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
  }
};

}  // namespace gptq::detail

#endif
