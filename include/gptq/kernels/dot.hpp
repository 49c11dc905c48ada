// Integer products of a chunk: sums of code * digit over its columns, for 16 rows at once.
//
// A packed matrix gives four columns of 16 rows, half a row block, at a time: 16 lanes of four codes. Every
// ISA multiplies them with four digits of the activations, broadcast to all lanes, and adds up: no lane ever
// meets another, so there is nothing to add across a register in the end.
#pragma once

#include <cstdint>
#include <type_traits>

#include <gptq/activations.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/units.hpp>

namespace gptq::detail {

/// Sums of one half block and one plane of digits of one token.
template <class Ops, int Bits, bool InPlace, int Planes>
struct integer_sums {
  using source = unit<Ops, Bits, InPlace>;
  /// 1 where int16 may get to 2^15: digits of a lower plane go down to -128, and 8 * 128 * 32 columns are
  /// that much. Sums are that much lower until they are words.
  static constexpr int lower = Planes > 1 && Bits >= 4 && !Ops::wide && !Ops::offset_in_words ? 1 : 0;
  /// Columns after which sums move from accumulators to words.
  static constexpr int block_columns = Ops::wide ? 128 : 64;
  static constexpr bool offset_in_words = Ops::offset_in_words;
  /// int16: codes of 8 bits are two halves, each with 8 taken off.
  static constexpr int taken_off = Bits == 8 && !Ops::wide ? 8 + 16 * 8 : 1 << (Bits - 1);

  typename Ops::accumulator a[source::accumulators];

  /// Starts block `block` of a chunk: at -2^(bits-1) times the digits that will come, so that int16 has room.
  GPTQ_INLINE void start(digit_sums const& sums, int block) {
    constexpr int shift = taken_off == 8 + 16 * 8 ? 3 : Bits - 1;
    if constexpr (Bits == 8 && Ops::wide && signed_codes<Ops>) {
      a[0] = Ops::zero();
    } else {
      a[0] = Ops::template start<shift, lower>(sums, block);
    }
    if constexpr (source::accumulators == 2) a[1] = Bits == 8 ? a[0] : Ops::zero();
  }
  template <int Step>
  GPTQ_INLINE void add(typename Ops::codes codes, typename Ops::digits x) {
    auto& sum = a[source::accumulator(Step)];
    sum = Ops::dot(sum, codes, x);
  }
  GPTQ_INLINE typename Ops::words words() const {
    auto const sum = Ops::template to_words<lower>(a[0]);
    if constexpr (source::accumulators == 2) {
      constexpr int lower_of_second = Bits == 8 ? lower : 0;
      auto const second = Ops::template to_words<lower_of_second>(a[1]);
      return Ops::add(sum, Ops::template shift_words<source::weight_shift>(second));
    } else {
      return sum;
    }
  }
};

/// The same of levels of a code book, which is looked up.
/// @tparam Small  none has a magnitude above 15
template <class Ops, int Bits, bool Small>
struct table_sums {
  using source = unit<Ops, Bits, false>;
  using product = typename Ops::template table_product<Small>;
  static constexpr int block_columns = product::block_columns;
  static constexpr bool offset_in_words = product::offset_in_words;
  static constexpr int taken_off = product::offset;

  typename product::accumulator a;

  GPTQ_INLINE void start(digit_sums const& sums, int /*block*/) { a = product::start(sums); }
  template <int /*Step*/>
  GPTQ_INLINE void add(typename Ops::codes levels, typename Ops::digits x) {
    a = product::dot(a, levels, x);
  }
  GPTQ_INLINE typename Ops::words words() const { return product::to_words(a); }
};

/// i_p of `Rows` rows of digits (planes of tokens) and `Blocks` half blocks over one chunk.
/// @tparam Columns  of the chunk, when the compiler knows them; otherwise 0
template <class Ops, class Source, int Columns, int Planes, int Rows, int Blocks>
GPTQ_INLINE void dot_chunk(Source const (&source)[Blocks], std::int8_t const* x, index_t x_stride,
                           digit_sums const* sums, index_t columns,
                           typename Ops::words (&total)[Rows][Blocks]) {
  using sums_type = typename Source::template sums<Planes>;
  using codes_of = typename sums_type::source;
  constexpr index_t block_units = sums_type::block_columns / Source::unit_columns;
  index_t const units = (columns + Source::unit_columns - 1) / Source::unit_columns;

  // One block of columns: from start to words. `count` units, all or, in the last block, fewer.
  auto const block = [&](index_t first, auto count, auto is_first) __attribute__((always_inline)) {
    sums_type a[Rows][Blocks];
    unrolled<Rows>([&]<int R>() __attribute__((always_inline)) {
      unrolled<Blocks>([&]<int B>() __attribute__((always_inline)) {
        a[R][B].start(sums[R], static_cast<int>(first / block_units));
      });
    });
    auto const work = [&](index_t u) __attribute__((always_inline)) {
      // Half blocks First..First+Count-1 share each broadcast of digits.
      auto const half_blocks = [&]<int First, int Count>(std::int8_t const* here)
          __attribute__((always_inline)) {
        typename Source::unit_type unit[Count];
        unrolled<Count>([&]<int B>() __attribute__((always_inline)) {
          source[First + B].prefetch(u);
          unit[B] = source[First + B].at(u);
        });
        unrolled<codes_of::steps>([&]<int S>() __attribute__((always_inline)) {
          typename Ops::codes codes[Count];
          unrolled<Count>([&]<int B>() __attribute__((always_inline)) {
            codes[B] = Source::template codes<S>(unit[B]);
          });
          unrolled<Rows>([&]<int R>() __attribute__((always_inline)) {
            auto const digits = Ops::four(here + R * x_stride + codes_of::column(S));
            unrolled<Count>([&]<int B>() __attribute__((always_inline)) {
              a[R][First + B].template add<S>(codes[B], digits);
            });
          });
        });
      };
      std::int8_t const* here = x + u * Source::unit_columns;
      if constexpr (Blocks == 1 || Source::template share_digits<Planes>) {
        half_blocks.template operator()<0, Blocks>(here);
      } else {
        static_assert(Blocks == 2);
        half_blocks.template operator()<0, 1>(here);
        asm("" : "+r"(here));  // or compilers would share them, in more registers than there are
        half_blocks.template operator()<1, 1>(here);
      }
    };
    if constexpr (std::is_same_v<decltype(count), index_t>) {
#pragma GCC unroll 1
      for (index_t u = 0; u < count; ++u) work(first + u);
    } else {
      constexpr int enough = Rows >= 4 ? 1 : 4 / Rows;
      constexpr int at_once = decltype(count)::value < enough ? decltype(count)::value : enough;
#pragma GCC unroll 1
      for (index_t u = 0; u < decltype(count)::value; u += at_once) {
        unrolled<at_once>([&]<int I>() __attribute__((always_inline)) { work(first + u + I); });
      }
    }
    unrolled<Rows>([&]<int R>() __attribute__((always_inline)) {
      unrolled<Blocks>([&]<int B>() __attribute__((always_inline)) {
        if constexpr (!decltype(is_first)::value) {
          total[R][B] = Ops::add(total[R][B], a[R][B].words());
        } else if constexpr (sums_type::offset_in_words) {
          total[R][B] = Ops::add(Ops::broadcast_words(sums[R].all * sums_type::taken_off), a[R][B].words());
        } else {
          total[R][B] = a[R][B].words();
        }
      });
    });
  };

  if constexpr (Columns != 0) {
    constexpr index_t all = Columns / Source::unit_columns;
    constexpr index_t first_block = all < block_units ? all : block_units;
    block(0, std::integral_constant<int, first_block>{}, std::true_type{});
    if constexpr (all > 2 * first_block) {
#pragma GCC unroll 1
      for (index_t first = first_block; first < all; first += first_block) {
        block(first, std::integral_constant<int, first_block>{}, std::false_type{});
      }
    } else if constexpr (all > first_block) {
      static_assert(all == 2 * first_block);
      block(first_block, std::integral_constant<int, first_block>{}, std::false_type{});
    }
  } else {
    index_t const first_block = units < block_units ? units : block_units;
    block(0, first_block, std::true_type{});
    if constexpr (sums_type::block_columns < 64) {
      for (index_t first = first_block; first < units; first += block_units) {
        block(first, first + block_units < units ? block_units : units - first, std::false_type{});
      }
    } else if (units > first_block) {
      block(first_block, index_t{units - first_block}, std::false_type{});
    }
  }
}

}  // namespace gptq::detail
