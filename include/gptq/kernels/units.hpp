// From units of the packed layout to steps. A unit is worked off in steps: codes of four columns of 16 rows,
// and where those columns are. Codes may stay where they lie in their bytes, worth `1 << weight_shift` times as
// much, when they are summed apart.
//
//   InPlace   as much as possible is left in place, for codes that are used once; otherwise each code is moved
//             down, for codes that are kept for many tokens
//   Wide      products are summed in int32; int16 has no room for codes of 8 bits, or of 4 in the upper half
#pragma once

#include <cstdint>

#include <gptq/config.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

/// Whether dot() takes codes as int8: then none stays in the upper half, and those of 8 bits come less 128.
template <class Ops>
inline constexpr bool signed_codes = requires {
  requires Ops::signed_codes;
};

/// The bits `Mask` of each byte moved down by `Shift`.
template <class Ops, int Shift, int Mask>
GPTQ_INLINE typename Ops::codes field(typename Ops::codes raw) {
  auto const moved = Ops::template shift<Shift>(raw);
  if constexpr (Mask == 0xff >> Shift && requires { requires Ops::shifts_bytes; }) {
    return moved;  // zeros came in, not bits of a neighbour
  } else {
    return Ops::bits_and(moved, Mask);
  }
}

template <class Ops, int Bits, bool InPlace>
struct unit;

template <class Ops, bool InPlace>
struct unit<Ops, 4, InPlace> {
  static constexpr int steps = 2;
  static constexpr bool keeps = InPlace && Ops::wide && !signed_codes<Ops>;
  static constexpr int accumulators = keeps ? 2 : 1;
  static constexpr int weight_shift = 4;
  GPTQ_INLINE static constexpr int column(int step) { return 4 * step; }
  GPTQ_INLINE static constexpr int accumulator(int step) { return keeps ? step : 0; }

  typename Ops::codes raw;
  unit() = default;
  GPTQ_INLINE explicit unit(std::uint8_t const* p) : raw(Ops::load_codes(p)) {}
  template <int Step>
  GPTQ_INLINE typename Ops::codes codes() const {
    if constexpr (Step == 0) return Ops::bits_and(raw, 0x0f);
    if constexpr (keeps) return Ops::bits_and(raw, 0xf0);
    return field<Ops, 4, 0x0f>(raw);
  }
};

template <class Ops, bool InPlace>
struct unit<Ops, 2, InPlace> {
  static constexpr int steps = 4;
  static constexpr int accumulators = InPlace ? 2 : 1;
  static constexpr int weight_shift = 2;
  GPTQ_INLINE static constexpr int column(int step) { return 4 * step; }
  GPTQ_INLINE static constexpr int accumulator(int step) { return InPlace ? step % 2 : 0; }

  typename Ops::codes raw;
  unit() = default;
  GPTQ_INLINE explicit unit(std::uint8_t const* p) : raw(Ops::load_codes(p)) {}
  template <int Step>
  GPTQ_INLINE typename Ops::codes codes() const {
    if constexpr (InPlace) {
      return Ops::bits_and(Ops::template shift<Step / 2 * 4>(raw), Step % 2 == 0 ? 0x03 : 0x0c);
    } else {
      return field<Ops, 2 * Step, 0x03>(raw);
    }
  }
};

// Six codes in two halves of three bytes; the bits that are left make two more, worth twice as much in place.
template <class Ops, bool InPlace>
struct unit<Ops, 3, InPlace> {
  static constexpr int steps = 8;
  static constexpr int accumulators = InPlace ? 2 : 1;
  static constexpr int weight_shift = 1;
  GPTQ_INLINE static constexpr int column(int step) { return 4 * step; }
  GPTQ_INLINE static constexpr int accumulator(int step) { return InPlace && step >= 6 ? 1 : 0; }

  typename Ops::codes part[3];
  unit() = default;
  GPTQ_INLINE explicit unit(std::uint8_t const* p)
      : part{Ops::load_codes(p), Ops::load_codes(p + 64), Ops::load_codes(p + 128)} {}
  template <int Step>
  GPTQ_INLINE typename Ops::codes codes() const {
    if constexpr (Step < 6) {
      constexpr int shift = Step == 5 ? 4 : Step % 2 * 3;
      return Ops::bits_and(Ops::template shift<shift>(part[Step / 2]), 0x07);
    } else {
      auto const twice = Ops::bits_or(Ops::bits_and(Ops::template shift<5>(part[Step - 6]), 0x06),
                                      Ops::bits_and(Ops::template shift<(Step - 6) * 4>(part[2]), 0x08));
      if constexpr (InPlace) return twice;
      return Ops::template shift<1>(twice);
    }
  }
};

template <class Ops, bool InPlace>
struct unit<Ops, 8, InPlace> {
  static constexpr int steps = Ops::wide ? 1 : 2;  // int16: the lower and the upper half of each code
  static constexpr int accumulators = steps;
  static constexpr int weight_shift = -4;
  GPTQ_INLINE static constexpr int column(int /*step*/) { return 0; }
  GPTQ_INLINE static constexpr int accumulator(int step) { return step; }

  typename Ops::codes raw;
  unit() = default;
  GPTQ_INLINE explicit unit(std::uint8_t const* p) : raw(Ops::load_codes(p)) {}
  template <int Step>
  GPTQ_INLINE typename Ops::codes codes() const {
    if constexpr (Ops::wide && signed_codes<Ops>) {
      return Ops::less_128(raw);
    } else if constexpr (Ops::wide) {
      return raw;
    } else if constexpr (Step == 0) {
      return Ops::bits_and(raw, 0x0f);
    } else {
      return field<Ops, 4, 0x0f>(raw);
    }
  }
};

}  // namespace gptq::detail
