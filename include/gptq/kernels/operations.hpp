// What an architecture brings to the kernels: `operations<Isa>`, defined in isa/*.hpp.
//
//   words, floats     16 int32 or float32, one a row, and arithmetic on them
//   codes             64 bytes: four codes of 16 rows
//   digits            four digits, broadcast
//   accumulator       sums of code * digit: int32 (`wide`), or int16 modulo 2^16
//   offset_in_words   what is taken off the codes is taken off at the end, not at the start of a sum
//   fixed_chunks      whether full chunks of 32, 64 and 128 columns get a kernel of their own
//   halves_at_once    of a row block, for one token: 2, or 1 where registers or patience of compilers are few
//   shared_digits     whether a broadcast of digits serves both halves of a row block, or each has its own,
//                     in fewer registers
//   direct_rows ...   how many rows of digits (planes of tokens) and half blocks are worked on at once, to
//                     keep registers busy
//   direct_tokens     up to how many tokens codes are unpacked again for each few of them, not once for all
//   prefetch_bytes    how far ahead codes are fetched from memory on CPUs that want it; 0: never
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include <gptq/isa.hpp>
#include <gptq/packed.hpp>

namespace gptq {

/// Sums of the digits of one plane of a chunk of a token, negated: what the zero point of the codes is worth.
/// int16 holds 64 columns of two classes: kernels that add up pairs of products in 16 bits start from these.
struct digit_sums {
  std::int32_t all;             ///< -(sum of all digits)
  std::int16_t of_pairs[2][2];  ///< [columns 0..63, 64..127][columns 0, 1 or 2, 3 modulo 4]
};

namespace detail {

template <class Isa>
struct operations;

/// operations<Isa>, or an error that says why there are none.
template <class Isa>
struct checked_operations {
  static_assert(
      requires { sizeof(operations<Isa>); },
      "gptq: this architecture is not compiled in. Its compiler flags are missing (isa.hpp), or, for "
      "isa::generic, xsimd's headers are not on the include path");
  using type = operations<Isa>;
};
template <class Isa>
using operations_of = typename checked_operations<Isa>::type;

/// Where zero point `i` of 16 lies: eight are in the first 32 bits of their stream, eight in the last. Left
/// there, less 2^(Bits-1) there, it is an int32 that is too large by a power of two, 1 / weight.
template <int Bits>
struct zero_lane {
  GPTQ_INLINE static constexpr int bit(int i) { return i < 8 ? i * Bits : 32 - 8 * Bits + (i - 8) * Bits; }
  GPTQ_INLINE static constexpr int mask(int i) { return static_cast<int>(((1u << Bits) - 1u) << bit(i)); }
  GPTQ_INLINE static constexpr int middle(int i) { return static_cast<int>(1u << (bit(i) + Bits - 1)); }
  GPTQ_INLINE static constexpr float weight(int i) { return 1.0F / static_cast<float>(1u << bit(i)); }
};

/// Calls f.operator()<0>() ... f.operator()<N-1>(): a loop over registers, which have no address to index.
template <int N, class F>
GPTQ_INLINE constexpr void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f.template operator()<I>(), ...);
  }
  (std::make_integer_sequence<int, N>{});
}

}  // namespace detail
}  // namespace gptq
