// What an ISA brings to the kernels: `operations<Isa>`, defined in isa/*.hpp, and checked against the concept
// isa_operations below.
//
//   words, floats     16 int32 or float32, one for each row of half a row block, and arithmetic on them
//   codes             64 bytes: four codes of 16 rows
//   digits            four digits, broadcast to all rows
//   accumulator       sums of code * digit: int32 (`wide`), or int16 modulo 2^16
//   offset_in_words   what is taken off the codes is taken off at the end, not at the start of a sum
//   fixed_chunks      whether full chunks of 32, 64 and 128 columns get a kernel of their own (of 16, code books)
//   halves_at_once    half blocks that gemv works on at once: 2, or 1 where there are few registers, or where
//                     compilers would take too long
//   shared_digits     whether a broadcast of digits serves both halves of a row block, or each has its own,
//                     in fewer registers
//   direct_rows       rows of digits (planes of tokens) that codes are multiplied with as soon as they are
//                     unpacked, at once: enough to keep the multipliers busy
//   direct_tokens     tokens up to which codes are unpacked again for each few of them, not once for all
//   panel_rows,       rows of digits and half blocks at once where codes come from a panel, unpacked once for
//   panel_blocks      all tokens
//   prefetch_bytes    how far ahead codes are fetched from memory on CPUs that want it; 0: never
//   table             16 levels of a code book, which look_up() puts in the place of codes
//   table_product     sums of level * digit: of any levels, or of small ones, at most 15, where these are less work.
//                     `offset` is what levels are raised by to be multiplied; taken off at the end where
//                     `offset_in_words`, else at the start. A sum takes `block_columns` columns
//
// Three things are only there where an ISA has use for them: `signed_codes` (dot() takes codes as int8, and
// less_128() makes them so), `shifts_bytes` (shift() moves each byte by itself), and `tiles` with what
// isa/amx_int8.hpp says of them.
#pragma once

#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <gptq/activations.hpp>
#include <gptq/float16.hpp>
#include <gptq/float8.hpp>
#include <gptq/isa.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

template <class Isa>
struct operations;

/// The constants of operations<Isa>.
template <class Ops>
concept isa_constants = requires {
  requires std::same_as<decltype(Ops::wide), bool const>;
  requires std::same_as<decltype(Ops::offset_in_words), bool const>;
  requires std::same_as<decltype(Ops::fixed_chunks), bool const>;
  requires std::same_as<decltype(Ops::template shared_digits<4, 1>), bool const>;
  requires Ops::halves_at_once == 1 || Ops::halves_at_once == 2;
  requires Ops::direct_rows >= 1 && Ops::direct_tokens >= 1 && Ops::panel_rows >= 1;
  requires Ops::panel_blocks == 1 || Ops::panel_blocks == 2;
  requires Ops::prefetch_bytes >= 0;
};

/// Arithmetic on 16 rows.
template <class Ops>
concept isa_rows = requires(typename Ops::words w, typename Ops::floats f, float const* from, float* to,
                            float16 const* from16, std::int8_t* bytes, std::uint8_t const* stream,
                            std::int32_t (&pairs)[2]) {
  { Ops::broadcast_words(1) } -> std::same_as<typename Ops::words>;
  { Ops::add(w, w) } -> std::same_as<typename Ops::words>;
  { Ops::subtract(w, w) } -> std::same_as<typename Ops::words>;
  { Ops::max(w, w) } -> std::same_as<typename Ops::words>;
  { Ops::template shift_words<8>(w) } -> std::same_as<typename Ops::words>;    // down
  { Ops::template shift_words<-24>(w) } -> std::same_as<typename Ops::words>;  // up
  { Ops::largest(w) } -> std::same_as<std::int32_t>;
  Ops::sum_pairs(w, pairs);
  Ops::store_bytes(bytes, w);

  { Ops::broadcast(1.0F) } -> std::same_as<typename Ops::floats>;
  { Ops::load(from) } -> std::same_as<typename Ops::floats>;
  { Ops::load(from16) } -> std::same_as<typename Ops::floats>;
  Ops::store(to, f);
  { Ops::add(f, f) } -> std::same_as<typename Ops::floats>;
  { Ops::subtract(f, f) } -> std::same_as<typename Ops::floats>;
  { Ops::multiply(f, f) } -> std::same_as<typename Ops::floats>;
  { Ops::multiply_add(f, f, f) } -> std::same_as<typename Ops::floats>;  // f * f + f

  { Ops::magnitudes(f) } -> std::same_as<typename Ops::words>;  // |f|, as bits
  { Ops::round(f) } -> std::same_as<typename Ops::words>;       // half to even
  { Ops::to_floats(w) } -> std::same_as<typename Ops::floats>;

  // Zero points of 16 rows, less 2^(bits-1), each over its weight: their product is what is meant.
  { Ops::template load_zeros<4>(stream) } -> std::same_as<typename Ops::floats>;
  { Ops::template zero_weights<4>() } -> std::same_as<typename Ops::floats>;
};

/// Codes of 16 rows, and their products with digits.
template <class Ops>
concept isa_codes = requires(typename Ops::codes c, typename Ops::digits d, typename Ops::accumulator a,
                             std::uint8_t const* from, std::uint8_t* to, digit_sums const& sums) {
  { Ops::load_codes(from) } -> std::same_as<typename Ops::codes>;
  Ops::store_codes(to, c);
  { Ops::bits_and(c, 0x0f) } -> std::same_as<typename Ops::codes>;
  { Ops::bits_or(c, c) } -> std::same_as<typename Ops::codes>;
  { Ops::template shift<4>(c) } -> std::same_as<typename Ops::codes>;
  { Ops::template byte<0>(c) } -> std::same_as<typename Ops::floats>;  // of each row's four
  { Ops::four(from) } -> std::same_as<typename Ops::digits>;
  { Ops::template start<3, 0>(sums, 0) } -> std::same_as<typename Ops::accumulator>;
  { Ops::zero() } -> std::same_as<typename Ops::accumulator>;
  { Ops::dot(a, c, d) } -> std::same_as<typename Ops::accumulator>;
  { Ops::template to_words<0>(a) } -> std::same_as<typename Ops::words>;
};

/// A table_product whose levels, raised by `Offset`, are multiplied and added up as codes are.
/// @tparam Ops  operations<Isa>
template <class Ops, int Offset, bool OffsetInWords, int BlockColumns>
struct product_as_codes {
  static_assert(OffsetInWords || Offset == 0 || Offset == 128);
  using accumulator = typename Ops::accumulator;
  static constexpr int offset = Offset;
  static constexpr bool offset_in_words = OffsetInWords;
  static constexpr int block_columns = BlockColumns;
  GPTQ_INLINE static accumulator start(digit_sums const& sums) {
    if constexpr (Offset == 128) {
      return Ops::template start<7, 0>(sums, 0);
    } else {
      return Ops::zero();
    }
  }
  GPTQ_INLINE static accumulator dot(accumulator a, typename Ops::codes c, typename Ops::digits x) {
    return Ops::dot(a, c, x);
  }
  GPTQ_INLINE static auto to_words(accumulator a) { return Ops::template to_words<0>(a); }
};

/// Code books: codes become levels, and their products with digits.
template <class Ops, class Product = typename Ops::template table_product<false>>
concept isa_tables = requires(std::int8_t const* levels, typename Ops::table t, typename Ops::codes c,
                              typename Product::accumulator a, typename Ops::digits d, digit_sums const& sums,
                              e8m0 const* powers, e4m3 const* scales) {
  { Ops::template load_table<Product::offset>(levels) } -> std::same_as<typename Ops::table>;
  { Ops::look_up(t, c) } -> std::same_as<typename Ops::codes>;
  requires std::same_as<decltype(Product::offset_in_words), bool const>;
  requires Product::block_columns == 128 || Product::block_columns == 64 || Product::block_columns == 16;
  { Product::start(sums) } -> std::same_as<typename Product::accumulator>;
  { Product::dot(a, c, d) } -> std::same_as<typename Product::accumulator>;
  { Product::to_words(a) } -> std::same_as<typename Ops::words>;
  { Ops::load(powers) } -> std::same_as<typename Ops::floats>;
  { Ops::load(scales) } -> std::same_as<typename Ops::floats>;
};

/// What kernels ask of operations<Isa>.
template <class Ops>
concept isa_operations = isa_constants<Ops> && isa_rows<Ops> && isa_codes<Ops> && isa_tables<Ops> &&
    isa_tables<Ops, typename Ops::template table_product<true>>;

/// operations<Isa>, or an error that says why there are none.
template <class Isa>
struct checked_operations {
  static_assert(
      requires { sizeof(operations<Isa>); },
      "gptq: this ISA is not compiled in. Its compiler flags are missing (cmake/isa.cmake), or, for "
      "isa::generic, xsimd's headers are not on the include path");
  static_assert(isa_operations<operations<Isa>>, "gptq: operations<Isa> lacks what the concept asks for");
  using type = operations<Isa>;
};
template <class Isa>
using operations_for = typename checked_operations<Isa>::type;

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

}  // namespace gptq::detail
