// AArch64 with dot products: sdot multiplies 16 codes with digits and adds fours into int32.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_NEON_DOTPROD

#include <gptq/isa/q_registers.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

template <>
struct operations<isa::neon_dotprod> : q_operations {
  static constexpr bool wide = true;
  static constexpr bool offset_in_words = false;
  static constexpr bool fixed_chunks = true;
  static constexpr index_t prefetch_bytes = 0;
  static constexpr int halves_at_once = 2;
  template <int Bits, int Planes>
  static constexpr bool shared_digits = true;
  static constexpr int direct_rows = 2;
  static constexpr int direct_tokens = 4;
  static constexpr int panel_rows = 4;
  static constexpr int panel_blocks = 1;
  using accumulator = words;

  template <int Shift, int /*Lower*/>
  GPTQ_INLINE static accumulator start(digit_sums const& sums, int /*block*/) {
    return broadcast_words(sums.all * (1 << Shift));
  }
  GPTQ_INLINE static accumulator zero() { return broadcast_words(0); }
  GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
    a = {{vdotq_s32(a.v[0], vreinterpretq_s8_u8(c.v[0]), x),
          vdotq_s32(a.v[1], vreinterpretq_s8_u8(c.v[1]), x),
          vdotq_s32(a.v[2], vreinterpretq_s8_u8(c.v[2]), x),
          vdotq_s32(a.v[3], vreinterpretq_s8_u8(c.v[3]), x)}};
    in_order(a.v[0], a.v[1], a.v[2], a.v[3]);
    return a;
  }
  template <int /*Lower*/>
  GPTQ_INLINE static words to_words(accumulator a) {
    return a;
  }

  /// Levels of any size, as they are.
  template <bool /*Small*/>
  struct table_product {
    using accumulator = words;
    static constexpr int offset = 0;
    static constexpr bool offset_in_words = false;
    static constexpr int block_columns = 128;
    GPTQ_INLINE static accumulator start(digit_sums const& /*sums*/) { return zero(); }
    GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) { return operations::dot(a, c, x); }
    GPTQ_INLINE static words to_words(accumulator a) { return a; }
  };
};

}  // namespace gptq::detail

#endif
