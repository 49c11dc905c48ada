// Any CPU that xsimd knows, through what it offers on all of them: 16-bit products. An even and an
// odd column share a 16-bit lane, and up to 64 columns are summed modulo 2^16, as in avx2.hpp.
#pragma once

#include <gptq/kernels/operations.hpp>

#if GPTQ_GENERIC
#include <xsimd/xsimd.hpp>
#endif

namespace gptq::detail {

#if GPTQ_GENERIC

template <>
struct operations<isa::generic> {
  static constexpr bool wide = false;
  static constexpr bool offset_in_words = false;
  static constexpr bool fixed_chunks = false;
  static constexpr index_t prefetch_bytes = 0;
  static constexpr int halves_at_once = 1;
  template <int Bits, int Planes>
  static constexpr bool shared_digits = true;
  static constexpr int direct_rows = 1;
  static constexpr int direct_tokens = 1;
  static constexpr int panel_rows = 1;
  static constexpr int panel_blocks = 1;

  using word = xsimd::batch<std::int32_t>;
  using real = xsimd::batch<float>;
  using half_word = xsimd::batch<std::int16_t>;
  using code_pair = xsimd::batch<std::uint16_t>;
  static constexpr int registers = 64 / static_cast<int>(sizeof(word));  // for 16 rows
  static constexpr int lanes = static_cast<int>(word::size);

  struct words {
    word v[registers];
  };
  struct floats {
    real v[registers];
  };
  struct codes {
    code_pair v[registers];
  };
  struct digits {
    half_word even, odd;
  };
  struct accumulator {
    half_word v[registers];
  };

  /// Calls f(register) for each and returns what it gives.
  template <class Result, class F>
  GPTQ_INLINE static Result each(F&& f) {
    Result result;
    unrolled<registers>([&]<int I>() __attribute__((always_inline)) { result.v[I] = f(I); });
    return result;
  }
  // Spelled the same in every version of xsimd.
  template <class To, class From>
  GPTQ_INLINE static To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
  }

  GPTQ_INLINE static words add(words a, words b) {
    return each<words>([&](int i) __attribute__((always_inline)) { return a.v[i] + b.v[i]; });
  }
  GPTQ_INLINE static words subtract(words a, words b) {
    return each<words>([&](int i) __attribute__((always_inline)) { return a.v[i] - b.v[i]; });
  }
  GPTQ_INLINE static words max(words a, words b) {
    return each<words>([&](int i) __attribute__((always_inline)) { return xsimd::max(a.v[i], b.v[i]); });
  }
  GPTQ_INLINE static std::int32_t largest(words a) {
    std::int32_t lane[16];
    std::memcpy(lane, &a, 64);
    std::int32_t all = lane[0];
    for (std::int32_t const x : lane) all = x > all ? x : all;
    return all;
  }
  /// Sums of the lanes 0, 1 and of the lanes 2, 3 modulo 4.
  GPTQ_INLINE static void sum_pairs(words a, std::int32_t (&pairs)[2]) {
    std::int32_t lane[16];
    std::memcpy(lane, &a, 64);
    pairs[0] = pairs[1] = 0;
    for (int i = 0; i < 16; i += 4) {
      pairs[0] += lane[i] + lane[i + 1];
      pairs[1] += lane[i + 2] + lane[i + 3];
    }
  }
  /// The lower byte of each lane.
  GPTQ_INLINE static void store_bytes(std::int8_t* p, words a) {
    std::int32_t lane[16];
    std::memcpy(lane, &a, 64);
    for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(lane[i]);
  }
  GPTQ_INLINE static words broadcast_words(std::int32_t x) {
    return each<words>([&](int) __attribute__((always_inline)) { return word(x); });
  }
  /// Times 2^-Shift; exact.
  template <int Shift>
  GPTQ_INLINE static words shift_words(words a) {
    return each<words>([&](int i) __attribute__((always_inline)) {
      if constexpr (Shift >= 0) return a.v[i] >> Shift;
      if constexpr (Shift < 0) return a.v[i] << -Shift;
    });
  }

  GPTQ_INLINE static floats broadcast(float x) {
    return each<floats>([&](int) __attribute__((always_inline)) { return real(x); });
  }
  /// |x| as the bits of a float.
  GPTQ_INLINE static words magnitudes(floats a) {
    return each<words>([&](int i) __attribute__((always_inline)) {
      return bits_of<word>(a.v[i]) & word(0x7fffffff);
    });
  }
  /// To the nearest integer, half to even, for |x| < 2^23.
  GPTQ_INLINE static words round(floats a) {
    return each<words>([&](int i) __attribute__((always_inline)) {
      // 2^23 and more have no fraction.
      word const bits = bits_of<word>(a.v[i]);
      real const magnitude = bits_of<real>(bits & word(0x7fffffff)) + real(0x1p23F);
      word const sign = bits >> 31;
      return ((bits_of<word>(magnitude) - word(0x4b000000)) ^ sign) - sign;
    });
  }
  GPTQ_INLINE static floats to_floats(words a) {
    return each<floats>([&](int i) __attribute__((always_inline)) { return xsimd::to_float(a.v[i]); });
  }
  GPTQ_INLINE static floats add(floats a, floats b) {
    return each<floats>([&](int i) __attribute__((always_inline)) { return a.v[i] + b.v[i]; });
  }
  GPTQ_INLINE static floats subtract(floats a, floats b) {
    return each<floats>([&](int i) __attribute__((always_inline)) { return a.v[i] - b.v[i]; });
  }
  GPTQ_INLINE static floats multiply(floats a, floats b) {
    return each<floats>([&](int i) __attribute__((always_inline)) { return a.v[i] * b.v[i]; });
  }
  GPTQ_INLINE static floats multiply_add(floats a, floats b, floats c) {
    return each<floats>([&](int i)
                            __attribute__((always_inline)) { return xsimd::fma(a.v[i], b.v[i], c.v[i]); });
  }
  GPTQ_INLINE static floats load(float const* p) {
    return each<floats>([&](int i)
                            __attribute__((always_inline)) { return real::load_unaligned(p + i * lanes); });
  }
  GPTQ_INLINE static floats load(float16 const* p) { return load_each(p); }
  GPTQ_INLINE static floats load(e8m0 const* p) { return load_each(p); }
  GPTQ_INLINE static floats load(e4m3 const* p) { return load_each(p); }
  template <class Scale>
  GPTQ_INLINE static floats load_each(Scale const* p) {
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(p[i]);
    return load(values);
  }
  GPTQ_INLINE static void store(float* p, floats a) {
    unrolled<registers>([&]<int I>()
                            __attribute__((always_inline)) { a.v[I].store_unaligned(p + I * lanes); });
  }
  /// 16 zero points, an LSB-first stream of codes, less 2^(Bits-1), over zero_weights().
  template <int Bits>
  GPTQ_INLINE static floats load_zeros(std::uint8_t const* p) {
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(stream_code<Bits>(p, i) - (1 << (Bits - 1)));
    return load(values);
  }
  template <int Bits>
  GPTQ_INLINE static floats zero_weights() {
    return broadcast(1.0F);
  }

  GPTQ_INLINE static codes load_codes(std::uint8_t const* p) {
    codes c;
    std::memcpy(&c, p, 64);
    return c;
  }
  GPTQ_INLINE static void store_codes(std::uint8_t* p, codes c) { std::memcpy(p, &c, 64); }
  GPTQ_INLINE static codes bits_and(codes a, int mask) {
    code_pair const m(static_cast<std::uint16_t>(mask * 0x101));
    return each<codes>([&](int i) __attribute__((always_inline)) { return a.v[i] & m; });
  }
  GPTQ_INLINE static codes bits_or(codes a, codes b) {
    return each<codes>([&](int i) __attribute__((always_inline)) { return a.v[i] | b.v[i]; });
  }
  /// The bits of each byte moved down by `Shift`; mask what comes in from its neighbour.
  template <int Shift>
  GPTQ_INLINE static codes shift(codes a) {
    if constexpr (Shift == 0) return a;
    return each<codes>([&](int i) __attribute__((always_inline)) { return a.v[i] >> Shift; });
  }
  /// Byte `Byte` of each lane.
  template <int Byte>
  GPTQ_INLINE static floats byte(codes c) {
    return each<floats>([&](int i) __attribute__((always_inline)) {
      return xsimd::to_float((bits_of<word>(c.v[i]) >> (8 * Byte)) & word(0xff));
    });
  }
  struct table {
    std::uint8_t level[16];
  };
  template <int Offset>
  GPTQ_INLINE static table load_table(std::int8_t const* p) {
    table t;
    for (int i = 0; i < 16; ++i) t.level[i] = static_cast<std::uint8_t>(p[i] + Offset);
    return t;
  }
  /// The levels of codes below 16.
  GPTQ_INLINE static codes look_up(table const& t, codes c) {
    std::uint8_t bytes[64];
    store_codes(bytes, c);
    for (int i = 0; i < 64; ++i) bytes[i] = t.level[bytes[i]];
    return load_codes(bytes);
  }
  /// A broadcast of the four int8 at p.
  GPTQ_INLINE static digits four(void const* p) {
    std::int8_t x[4];
    std::memcpy(x, p, 4);
    auto const pair = [](std::int32_t low, std::int32_t high) __attribute__((always_inline)) {
      return bits_of<half_word>(
          word((low & 0xffff) | static_cast<std::int32_t>(static_cast<std::uint32_t>(high) << 16)));
    };
    return {pair(x[0], x[2]), pair(x[1], x[3])};
  }

  template <int Shift, int Lower>
  GPTQ_INLINE static accumulator start(digit_sums const& sums, int block) {
    std::int32_t pairs;
    std::memcpy(&pairs, sums.of_pairs[block], 4);
    half_word const both = (bits_of<half_word>(word(pairs)) << Shift) - half_word(std::int16_t{Lower});
    return each<accumulator>([&](int) __attribute__((always_inline)) { return both; });
  }
  GPTQ_INLINE static accumulator zero() {
    return each<accumulator>([](int) __attribute__((always_inline)) { return half_word(std::int16_t{0}); });
  }
  GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
    return each<accumulator>([&](int i) __attribute__((always_inline)) {
      half_word const even = bits_of<half_word>(c.v[i] & code_pair(std::uint16_t{0xff}));
      half_word const odd = bits_of<half_word>(c.v[i] >> 8);
      return a.v[i] + even * x.even + odd * x.odd;
    });
  }
  template <int Lower>
  GPTQ_INLINE static words to_words(accumulator a) {
    return each<words>([&](int i) __attribute__((always_inline)) {
      word const pair = bits_of<word>(a.v[i]);
      return ((pair << 16) >> 16) + (pair >> 16) + word(2 * Lower);
    });
  }

  /// Small levels with 16 more: 16 columns of them add up to at most 8 * 31 * 128 < 2^15.
  using small_levels = product_as_codes<operations, 16, true, 16>;

  /// Any levels, up to 127: two products are at most 2 * 127 * 128 < 2^15.
  struct any_levels {
    using accumulator = words;
    static constexpr int offset = 0;
    static constexpr bool offset_in_words = false;
    static constexpr int block_columns = 128;
    GPTQ_INLINE static accumulator start(digit_sums const& /*sums*/) { return broadcast_words(0); }
    GPTQ_INLINE static accumulator dot(accumulator a, codes c, digits x) {
      return each<words>([&](int i) __attribute__((always_inline)) {
        half_word const both = bits_of<half_word>(c.v[i]);
        word const pair = bits_of<word>((both << 8 >> 8) * x.even + (both >> 8) * x.odd);
        return a.v[i] + ((pair << 16) >> 16) + (pair >> 16);
      });
    }
    GPTQ_INLINE static words to_words(accumulator a) { return a; }
  };

  template <bool Small>
  using table_product = std::conditional_t<Small, small_levels, any_levels>;
};

#endif

}  // namespace gptq::detail
