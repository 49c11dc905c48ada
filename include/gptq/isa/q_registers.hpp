// What the ISAs of AArch64 Advanced SIMD share: 16 rows are four q registers.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_NEON

#include <arm_neon.h>
#include <cstdint>
#include <cstring>

#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

struct q_operations {
  struct words {
    int32x4_t v[4];
  };
  struct floats {
    float32x4_t v[4];
  };
  struct codes {
    uint8x16_t v[4];
  };
  using digits = int8x16_t;

  /// Products take codes as int8.
  static constexpr bool signed_codes = true;
  /// shift() moves each byte by itself.
  static constexpr bool shifts_bytes = true;

  GPTQ_INLINE static words add(words a, words b) {
    return {{vaddq_s32(a.v[0], b.v[0]), vaddq_s32(a.v[1], b.v[1]), vaddq_s32(a.v[2], b.v[2]),
             vaddq_s32(a.v[3], b.v[3])}};
  }
  GPTQ_INLINE static words subtract(words a, words b) {
    return {{vsubq_s32(a.v[0], b.v[0]), vsubq_s32(a.v[1], b.v[1]), vsubq_s32(a.v[2], b.v[2]),
             vsubq_s32(a.v[3], b.v[3])}};
  }
  GPTQ_INLINE static words max(words a, words b) {
    return {{vmaxq_s32(a.v[0], b.v[0]), vmaxq_s32(a.v[1], b.v[1]), vmaxq_s32(a.v[2], b.v[2]),
             vmaxq_s32(a.v[3], b.v[3])}};
  }
  GPTQ_INLINE static std::int32_t largest(words a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
  }
  /// Sums of the lanes 0, 1 and of the lanes 2, 3 modulo 4.
  GPTQ_INLINE static void sum_pairs(words a, std::int32_t (&pairs)[2]) {
    int32x4_t const four = vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]));
    vst1_s32(pairs, vpadd_s32(vget_low_s32(four), vget_high_s32(four)));
  }
  /// The lower byte of each lane.
  GPTQ_INLINE static void store_bytes(std::int8_t* p, words a) {
    int16x8_t const low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
    int16x8_t const high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
  GPTQ_INLINE static words broadcast_words(std::int32_t x) {
    int32x4_t const v = vdupq_n_s32(x);
    return {{v, v, v, v}};
  }
  /// Times 2^-Shift; exact.
  template <int Shift>
  GPTQ_INLINE static words shift_words(words a) {
    if constexpr (Shift > 0) {
      return {{vshrq_n_s32(a.v[0], Shift), vshrq_n_s32(a.v[1], Shift), vshrq_n_s32(a.v[2], Shift),
               vshrq_n_s32(a.v[3], Shift)}};
    }
    if constexpr (Shift < 0) {
      return {{vshlq_n_s32(a.v[0], -Shift), vshlq_n_s32(a.v[1], -Shift), vshlq_n_s32(a.v[2], -Shift),
               vshlq_n_s32(a.v[3], -Shift)}};
    }
    return a;
  }

  GPTQ_INLINE static floats broadcast(float x) {
    float32x4_t const v = vdupq_n_f32(x);
    return {{v, v, v, v}};
  }
  /// |x| as the bits of a float.
  GPTQ_INLINE static words magnitudes(floats a) {
    int32x4_t const mask = vdupq_n_s32(0x7fffffff);
    return {{vandq_s32(vreinterpretq_s32_f32(a.v[0]), mask), vandq_s32(vreinterpretq_s32_f32(a.v[1]), mask),
             vandq_s32(vreinterpretq_s32_f32(a.v[2]), mask), vandq_s32(vreinterpretq_s32_f32(a.v[3]), mask)}};
  }
  /// To the nearest integer, half to even.
  GPTQ_INLINE static words round(floats a) {
    return {{vcvtnq_s32_f32(a.v[0]), vcvtnq_s32_f32(a.v[1]), vcvtnq_s32_f32(a.v[2]), vcvtnq_s32_f32(a.v[3])}};
  }
  GPTQ_INLINE static floats to_floats(words a) {
    return {{vcvtq_f32_s32(a.v[0]), vcvtq_f32_s32(a.v[1]), vcvtq_f32_s32(a.v[2]), vcvtq_f32_s32(a.v[3])}};
  }
  GPTQ_INLINE static floats add(floats a, floats b) {
    return {{vaddq_f32(a.v[0], b.v[0]), vaddq_f32(a.v[1], b.v[1]), vaddq_f32(a.v[2], b.v[2]),
             vaddq_f32(a.v[3], b.v[3])}};
  }
  GPTQ_INLINE static floats subtract(floats a, floats b) {
    return {{vsubq_f32(a.v[0], b.v[0]), vsubq_f32(a.v[1], b.v[1]), vsubq_f32(a.v[2], b.v[2]),
             vsubq_f32(a.v[3], b.v[3])}};
  }
  GPTQ_INLINE static floats multiply(floats a, floats b) {
    return {{vmulq_f32(a.v[0], b.v[0]), vmulq_f32(a.v[1], b.v[1]), vmulq_f32(a.v[2], b.v[2]),
             vmulq_f32(a.v[3], b.v[3])}};
  }
  GPTQ_INLINE static floats multiply_add(floats a, floats b, floats c) {
    c = {{vfmaq_f32(c.v[0], a.v[0], b.v[0]), vfmaq_f32(c.v[1], a.v[1], b.v[1]),
          vfmaq_f32(c.v[2], a.v[2], b.v[2]), vfmaq_f32(c.v[3], a.v[3], b.v[3])}};
    in_order(c.v[0], c.v[1], c.v[2], c.v[3]);
    return c;
  }
  GPTQ_INLINE static floats load(float const* p) {
    return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
  }
  GPTQ_INLINE static floats load(float16 const* p) {
    auto const* const bytes = reinterpret_cast<std::uint8_t const*>(p);
    float16x8_t const low = vreinterpretq_f16_u8(vld1q_u8(bytes));
    float16x8_t const high = vreinterpretq_f16_u8(vld1q_u8(bytes + 16));
    return {{vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)),
             vcvt_high_f32_f16(high)}};
  }
  GPTQ_INLINE static floats load(e8m0 const* p) {
    uint8x16_t const bytes = vld1q_u8(reinterpret_cast<std::uint8_t const*>(p));
    return {{powers(bytes, 0), powers(bytes, 4), powers(bytes, 8), powers(bytes, 12)}};
  }
  GPTQ_INLINE static floats load(e4m3 const* p) {
    // As float16 with 8 less in the exponent.
    int8x16_t const bytes = vld1q_s8(reinterpret_cast<std::int8_t const*>(p));
    float16x8_t const low = halves(vmovl_s8(vget_low_s8(bytes)));
    float16x8_t const high = halves(vmovl_high_s8(bytes));
    return multiply({{vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
                      vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)}},
                    broadcast(256.0F));
  }
  GPTQ_INLINE static void store(float* p, floats a) {
    vst1q_f32(p, a.v[0]);
    vst1q_f32(p + 4, a.v[1]);
    vst1q_f32(p + 8, a.v[2]);
    vst1q_f32(p + 12, a.v[3]);
  }
  /// 16 zero points, an LSB-first stream of codes, less 2^(Bits-1), over zero_weights().
  template <int Bits>
  GPTQ_INLINE static floats load_zeros(std::uint8_t const* p) {
    if constexpr (Bits == 8) {
      int32x4_t const middle = vdupq_n_s32(-128);
      uint8x16_t const bytes = vld1q_u8(p);
      uint16x8_t const low = vmovl_u8(vget_low_u8(bytes));
      uint16x8_t const high = vmovl_high_u8(bytes);
      return to_floats(add(as_words(vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low),
                                    vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)),
                           {{middle, middle, middle, middle}}));
    } else {
      std::uint32_t lower = 0;
      std::uint32_t upper = 0;
      std::memcpy(&lower, p, 4);
      std::memcpy(&upper, p + 2 * Bits - 4, 4);
      return to_floats({{four_zeros<Bits, 0>(lower), four_zeros<Bits, 4>(lower), four_zeros<Bits, 8>(upper),
                         four_zeros<Bits, 12>(upper)}});
    }
  }
  template <int Bits>
  GPTQ_INLINE static floats zero_weights() {
    if constexpr (Bits == 8) return broadcast(1.0F);
    return {{four_weights<Bits, 0>(), four_weights<Bits, 4>(), four_weights<Bits, 8>(),
             four_weights<Bits, 12>()}};
  }

  GPTQ_INLINE static codes load_codes(std::uint8_t const* p) {
    codes c{{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
    in_order(c.v[0], c.v[1], c.v[2], c.v[3]);
    return c;
  }
  GPTQ_INLINE static void store_codes(std::uint8_t* p, codes c) {
    vst1q_u8(p, c.v[0]);
    vst1q_u8(p + 16, c.v[1]);
    vst1q_u8(p + 32, c.v[2]);
    vst1q_u8(p + 48, c.v[3]);
  }
  GPTQ_INLINE static codes bits_and(codes a, int mask) {
    uint8x16_t const m = vdupq_n_u8(static_cast<std::uint8_t>(mask));
    return {{vandq_u8(a.v[0], m), vandq_u8(a.v[1], m), vandq_u8(a.v[2], m), vandq_u8(a.v[3], m)}};
  }
  GPTQ_INLINE static codes bits_or(codes a, codes b) {
    return {{vorrq_u8(a.v[0], b.v[0]), vorrq_u8(a.v[1], b.v[1]), vorrq_u8(a.v[2], b.v[2]),
             vorrq_u8(a.v[3], b.v[3])}};
  }
  /// Codes of 8 bits less 128, as int8.
  GPTQ_INLINE static codes less_128(codes a) {
    uint8x16_t const m = vdupq_n_u8(0x80);
    return {{veorq_u8(a.v[0], m), veorq_u8(a.v[1], m), veorq_u8(a.v[2], m), veorq_u8(a.v[3], m)}};
  }
  /// The bits of each byte moved down by `Shift`.
  template <int Shift>
  GPTQ_INLINE static codes shift(codes a) {
    if constexpr (Shift > 0) {
      return {{vshrq_n_u8(a.v[0], Shift), vshrq_n_u8(a.v[1], Shift), vshrq_n_u8(a.v[2], Shift),
               vshrq_n_u8(a.v[3], Shift)}};
    }
    return a;
  }
  /// Byte `Byte` of each lane.
  template <int Byte>
  GPTQ_INLINE static floats byte(codes c) {
    return to_floats(as_words(byte_of_lanes<Byte>(c.v[0]), byte_of_lanes<Byte>(c.v[1]),
                              byte_of_lanes<Byte>(c.v[2]), byte_of_lanes<Byte>(c.v[3])));
  }
  using table = uint8x16_t;
  template <int Offset>
  GPTQ_INLINE static table load_table(std::int8_t const* p) {
    return vaddq_u8(vreinterpretq_u8_s8(vld1q_s8(p)), vdupq_n_u8(Offset));
  }
  /// The levels of codes below 16.
  GPTQ_INLINE static codes look_up(table t, codes c) {
    return {{vqtbl1q_u8(t, c.v[0]), vqtbl1q_u8(t, c.v[1]), vqtbl1q_u8(t, c.v[2]), vqtbl1q_u8(t, c.v[3])}};
  }
  /// A broadcast of the four int8 at p.
  GPTQ_INLINE static digits four(void const* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    int32x4_t v = vdupq_n_s32(word);
    // clang would see that both halves are the same and move upper halves of codes down, for smlal, not
    // smlal2.
    asm("" : "+w"(v));
    return vreinterpretq_s8_s32(v);
  }

 protected:
  /// One step after the other: GCC would load and unpack codes long before they are needed, in more registers
  /// than there are.
  template <class Register>
  GPTQ_INLINE static void in_order(Register& a, Register& b, Register& c, Register& d) {
    asm volatile("" : "+w"(a), "+w"(b), "+w"(c), "+w"(d));
  }

 private:
  /// Bytes first..first+3 as powers of two.
  GPTQ_INLINE static float32x4_t powers(uint8x16_t bytes, int first) {
    uint8x16_t const at =
        vaddq_u8(uint8x16_t{255 - 12, 255 - 12, 255 - 12, 0, 255 - 12, 255 - 12, 255 - 12, 1, 255 - 12,
                            255 - 12, 255 - 12, 2, 255 - 12, 255 - 12, 255 - 12, 3},
                 vdupq_n_u8(static_cast<std::uint8_t>(first)));
    uint32x4_t const exponents = vshrq_n_u32(vreinterpretq_u32_u8(vqtbl1q_u8(bytes, at)), 1);
    // 2^-127 has the exponent 0 and a fraction.
    return vreinterpretq_f32_u32(vmaxq_u32(exponents, vdupq_n_u32(0x00400000)));
  }
  GPTQ_INLINE static float16x8_t halves(int16x8_t words) {
    return vreinterpretq_f16_s16(vandq_s16(vshlq_n_s16(words, 7), vdupq_n_s16(-0x4080)));
  }
  GPTQ_INLINE static words as_words(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
    return {{vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b), vreinterpretq_s32_u32(c),
             vreinterpretq_s32_u32(d)}};
  }
  template <int Bits, int First>
  GPTQ_INLINE static int32x4_t four_zeros(std::uint32_t stream) {
    using at = zero_lane<Bits>;
    int32x4_t const masks = {at::mask(First), at::mask(First + 1), at::mask(First + 2), at::mask(First + 3)};
    int32x4_t const middles = {at::middle(First), at::middle(First + 1), at::middle(First + 2),
                               at::middle(First + 3)};
    return vsubq_s32(vandq_s32(vreinterpretq_s32_u32(vdupq_n_u32(stream)), masks), middles);
  }
  template <int Bits, int First>
  GPTQ_INLINE static float32x4_t four_weights() {
    using at = zero_lane<Bits>;
    return {at::weight(First), at::weight(First + 1), at::weight(First + 2), at::weight(First + 3)};
  }
  template <int Byte>
  GPTQ_INLINE static uint32x4_t byte_of_lanes(uint8x16_t codes) {
    uint32x4_t v = vreinterpretq_u32_u8(codes);
    if constexpr (Byte > 0) v = vshrq_n_u32(v, 8 * Byte);
    if constexpr (Byte < 3) v = vandq_u32(v, vdupq_n_u32(0xff));
    return v;
  }
};

}  // namespace gptq::detail

#endif
