// The kernels of gemv.hpp and gemm.hpp, once for all architectures, schemes, widths and precisions.
//
// A packed matrix gives four columns of 16 rows, half a row block, at a time: 16 lanes of four codes. Every
// architecture multiplies them with four digits of the activations, broadcast to all lanes, and adds up: no
// lane ever meets another, so there is nothing to add across a register in the end. For a chunk of at most
// 128 columns of a token, in this order on every architecture:
//
//   i_p  = sum over columns of (code - 2^(bits-1)) * digit_p          exact, int32, for each plane p of
//   digits d_p  = i_p - (zero - 2^(bits-1)) * sum of digit_p                 exact in float32: |d_p| < 2^24
//   d    = d_0 + 256 d_1 + 65536 d_2                                  float32, from the top, a fused
//   multiply-add each y    = y + d * (weight scale * activation scale)                  float32, fused, chunk
//   after chunk
//
// so that all architectures with fused multiply-add give the same bits, in gemv and in gemm.
//
// kernels/operations.hpp says what an architecture brings to them.
#pragma once

#include <cstdint>
#include <type_traits>

#include <gptq/activations.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/packed.hpp>

namespace gptq::detail {

// ---- from units of codes to steps -----------------------------------------------------------------------
//
// A unit of the layout is worked off in steps: codes of four columns of 16 rows, and where those columns are.
// Codes may stay where they lie in their bytes, worth `1 << weight_shift` times as much, when they are summed
// apart.
//   InPlace   as much as possible is left in place, for codes that are used once; otherwise each code is
//   moved down,
//             for codes that are kept for many tokens
//   Wide      products are summed in int32; int16 has no room for codes of 8 bits, or of 4 in the upper half

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

// ---- integer products -----------------------------------------------------------------------------------

/// The zero point of a format, as the kernels see it next to 2^(bits-1), which costs nothing.
enum class zero_kind { middle, constant, stored };

template <storage_format Format>
inline constexpr zero_kind zero_kind_of = Format::has_zero_point ? zero_kind::stored
                                          : Format::levels.zero == static_cast<float>(1 << (Format::bits - 1))
                                              ? zero_kind::middle
                                              : zero_kind::constant;

/// Sums of one half block and one plane of digits of one token.
template <class Ops, int Bits, bool InPlace, int Planes>
struct integer_sums {
  using source = unit<Ops, Bits, InPlace>;
  /// 1 where int16 may get to 2^15: digits of a lower plane go down to -128, and 8 * 128 * 32 columns are
  /// that much. Sums are that much lower until they are words.
  static constexpr int lower = Planes > 1 && Bits >= 4 && !Ops::wide && !Ops::offset_in_words ? 1 : 0;
  /// Columns after which sums move from accumulators to words.
  static constexpr int block_columns = Ops::wide ? 128 : 64;
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
    auto sum = Ops::template to_words<lower>(a[0]);
    if constexpr (source::accumulators == 2) {
      sum = Ops::add(sum, Ops::template shift_words<source::weight_shift>(
                              Ops::template to_words < Bits == 8 ? lower : 0 > (a[1])));
    }
    return sum;
  }
};

/// Where the codes of a chunk come from: units of the packed layout.
template <class Ops, int Bits>
struct packed_source {
  template <int Planes>
  using sums = integer_sums<Ops, Bits, true, Planes>;
  using unit_type = unit<Ops, Bits, true>;
  static constexpr index_t unit_columns = detail::unit_columns<Bits>;
  static constexpr index_t unit_bytes = 2 * half_unit_bytes<Bits>;
  GPTQ_INLINE static constexpr index_t units(index_t columns) {
    return (columns + unit_columns - 1) / unit_columns;
  }

  template <int Planes>
  static constexpr bool share_digits = Ops::template shared_digits<Bits, Planes>;

  std::uint8_t const* tile;
  bool fetches;  ///< ahead, from memory
  GPTQ_INLINE unit_type at(index_t unit) const { return unit_type(tile + unit * unit_bytes); }
  /// Fetches what comes later.
  GPTQ_INLINE void prefetch(index_t unit) const {
    if constexpr (Ops::prefetch_bytes != 0) {
      if (!fetches) return;
      for (index_t line = 0; line < half_unit_bytes<Bits>; line += 64) {
        __builtin_prefetch(tile + unit * unit_bytes + Ops::prefetch_bytes + line, 0, 2);
      }
    }
  }
  template <int Step>
  GPTQ_INLINE static typename Ops::codes codes(unit_type const& u) {
    return u.template codes<Step>();
  }
};

/// The same from a panel: one code a byte, 64 bytes a step, as unpack_panel() leaves them.
template <class Ops, int Bits>
struct panel_source {
  template <int Planes>
  using sums = integer_sums<Ops, Bits, false, Planes>;
  using unit_type = std::uint8_t const*;
  static constexpr index_t unit_columns = detail::unit_columns<Bits>;
  static constexpr index_t unit_bytes = 64 * unit<Ops, Bits, false>::steps;

  template <int Planes>
  static constexpr bool share_digits = true;

  std::uint8_t const* tile;
  GPTQ_INLINE unit_type at(index_t unit) const { return tile + unit * unit_bytes; }
  GPTQ_INLINE void prefetch(index_t /*unit*/) const {}  // in the first-level cache
  template <int Step>
  GPTQ_INLINE static typename Ops::codes codes(unit_type const& u) {
    return Ops::load_codes(u + 64 * Step);
  }
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
        } else if constexpr (Ops::offset_in_words) {
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
    if constexpr (all > first_block) {
      static_assert(all == 2 * first_block);
      block(first_block, std::integral_constant<int, first_block>{}, std::false_type{});
    }
  } else {
    index_t const first_block = units < block_units ? units : block_units;
    block(0, first_block, std::true_type{});
    if (units > first_block) block(first_block, index_t{units - first_block}, std::false_type{});
  }
}

// ---- one chunk: from integers to y ----------------------------------------------------------------------

/// A packed matrix without its types: the same code serves all schemes and group sizes.
template <class Scale>
struct weights {
  std::uint8_t const* codes;
  Scale const* scales;
  std::uint8_t const* zeros;
  index_t row_block_bytes;
  index_t groups;
  float zero_offset;  ///< zero - 2^(bits-1) of a constant zero point
  chunk_layout chunks;
};

template <storage_format Format>
GPTQ_INLINE weights<typename Format::scale> weights_of(packed_view<Format> const& w) {
  auto const layout = w.layout();
  constexpr float zero_offset = Format::levels.zero - static_cast<float>(1 << (Format::bits - 1));
  return {w.codes,
          w.scales,
          w.zeros,
          layout.row_block_bytes(),
          layout.groups(),
          zero_offset,
          {w.in, layout.group_columns()}};
}

/// Scales and zero points of one half of a row block in a group.
template <class Ops>
struct group_values {
  typename Ops::floats scale;
  typename Ops::floats zero_offset;  ///< over Ops::zero_weights
};

template <class Ops, int Bits, zero_kind Zero, class Scale>
GPTQ_INLINE group_values<Ops> load_group(weights<Scale> const& w, index_t row_block, int half,
                                         index_t group) {
  index_t const at = (row_block * w.groups + group) * 2 + half;
  group_values<Ops> values;
  values.scale = Ops::load(w.scales + at * half_block_rows);
  if constexpr (Zero == zero_kind::stored) {
    values.zero_offset = Ops::template load_zeros<Bits>(w.zeros + at * (2 * Bits));
  }
  return values;
}

/// y += d * (weight scale * activation scale): what a token adds to a half block in a chunk.
template <class Ops, int Bits, bool InPlace, zero_kind Zero, int Planes, class Scale>
GPTQ_INLINE typename Ops::floats add_chunk(typename Ops::floats y, typename Ops::words const* planes,
                                           group_values<Ops> const& group, weights<Scale> const& w,
                                           digit_sums const* sums, float scale) {
  constexpr int more_taken_off = integer_sums<Ops, Bits, InPlace, Planes>::taken_off - (1 << (Bits - 1));
  typename Ops::floats d;
  unrolled<Planes>([&]<int I>() __attribute__((always_inline)) {
    constexpr int p = Planes - 1 - I;
    auto i = planes[p];
    if constexpr (more_taken_off != 0) i = Ops::add(i, Ops::broadcast_words(-more_taken_off * sums[p].all));
    auto plane = Ops::to_floats(i);
    if constexpr (Zero == zero_kind::stored) {
      plane = Ops::multiply_add(
          group.zero_offset,
          Ops::multiply(Ops::template zero_weights<Bits>(), Ops::broadcast(static_cast<float>(sums[p].all))),
          plane);
    } else if constexpr (Zero == zero_kind::constant) {
      plane = Ops::add(plane, Ops::broadcast(w.zero_offset * static_cast<float>(sums[p].all)));
    }
    d = I == 0 ? plane : Ops::multiply_add(d, Ops::broadcast(256.0F), plane);
  });
  return Ops::multiply_add(d, Ops::multiply(group.scale, Ops::broadcast(scale)), y);
}

/// The codes of a row block in a chunk.
template <class Ops, int Bits, class Scale>
GPTQ_INLINE std::uint8_t const* tile_of(weights<Scale> const& w, index_t row_block, index_t chunk) {
  using source = packed_source<Ops, Bits>;
  index_t const units = source::units(w.chunks.group_columns) * w.chunks.group_of(chunk) +
                        source::units(w.chunks.offset_in_group(chunk));
  return w.codes + row_block * w.row_block_bytes + units * source::unit_bytes;
}

/// Chunks first_chunk..last_chunk-1 of `Tokens` tokens and a row block, added to y[token][half]. The
/// activations hold these chunks as 0, 1, ...
template <class Ops, int Bits, zero_kind Zero, int Columns, int Tokens, class Scale, precision Precision>
GPTQ_INLINE void direct(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                        index_t token, index_t first_chunk, index_t last_chunk,
                        typename Ops::floats (&y)[Tokens][2]) {
  constexpr int planes = planes_of(Precision);
  // One token takes the codes in the order of memory. More have no registers for both halves, and time to
  // wait.
  constexpr int at_once = Tokens == 1 ? Ops::halves_at_once : 1;
  using source_type = packed_source<Ops, Bits>;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_of<Ops, Bits>(w, row_block, first_chunk);
  std::int8_t const* x = a.digits + token * planes * stride;
  digit_sums const* sums = a.sums + token * planes;
  float const* scales = a.scales + token;
  bool const fetches = Ops::prefetch_bytes != 0 && isa::detail::wants_prefetches();
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    auto const work = [&](int first_half) __attribute__((always_inline)) {
      source_type source[at_once];
      unrolled<at_once>([&]<int B>() __attribute__((always_inline)) {
        source[B] = {tile + (first_half + B) * half_unit_bytes<Bits>, fetches};
      });
      typename Ops::words total[Tokens * planes][at_once];
      if (Columns != 0 && columns == Columns) {
        dot_chunk<Ops, source_type, Columns, planes>(source, x, stride, sums, Columns, total);
      } else {
        dot_chunk<Ops, source_type, 0, planes>(source, x, stride, sums, columns, total);
      }
      unrolled<at_once>([&]<int B>() __attribute__((always_inline)) {
        int const half = first_half + B;
        auto const values = load_group<Ops, Bits, Zero>(w, row_block, half, walk.group);
        unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
          typename Ops::words of_token[planes];
          unrolled<planes>([&]<int P>()
                               __attribute__((always_inline)) { of_token[P] = total[T * planes + P][B]; });
          y[T][half] = add_chunk<Ops, Bits, true, Zero, planes>(y[T][half], of_token, values, w,
                                                                sums + T * planes, scales[T]);
        });
      });
    };
    if constexpr (Ops::halves_at_once == 1) {
#pragma GCC unroll 1
      for (int half = 0; half < 2; ++half) work(half);
    } else {
      unrolled<2 / at_once>([&]<int I>() __attribute__((always_inline)) { work(I * at_once); });
    }
    tile += source_type::units(columns) * source_type::unit_bytes;
    x += a.tokens * planes * stride;
    sums += a.tokens * planes;
    scales += a.tokens;
    walk.next(columns);
  }
}

// ---- many tokens ----------------------------------------------------------------------------------------

/// Tokens that share an unpacked panel; the y of half a row block for all of them stays in the first-level
/// cache.
inline constexpr index_t panel_tokens = 128;

/// Moves the codes of a chunk to a byte each, as panel_source reads them.
template <class Ops, int Bits, class F>
GPTQ_INLINE void unpack_panel(std::uint8_t const* tile, index_t units, std::uint8_t* panel, F&& change) {
  using unit_type = unit<Ops, Bits, false>;
#pragma GCC unroll 1
  for (index_t u = 0; u < units; ++u) {
    unit_type const from(tile + u * packed_source<Ops, Bits>::unit_bytes);
    std::uint8_t* const to = panel + u * panel_source<Ops, Bits>::unit_bytes;
    unrolled<unit_type::steps>([&]<int S>() __attribute__((always_inline)) {
      Ops::store_codes(to + 64 * S, change(from.template codes<S>()));
    });
  }
}

/// Bytes of a panel: one for each code of a chunk, two where a code is worked on in halves.
template <class Ops, int Bits>
inline constexpr index_t panel_bytes =
    max_chunk_columns / panel_source<Ops, Bits>::unit_columns* panel_source<Ops, Bits>::unit_bytes;

/// One chunk of `Tokens` tokens and `Blocks` half blocks, from panels, added to sums[token][Blocks * 16].
template <class Ops, int Bits, zero_kind Zero, int Columns, int Tokens, int Blocks, int Planes, class Scale>
GPTQ_INLINE void panel_chunk(panel_source<Ops, Bits> const (&source)[Blocks], std::int8_t const* x,
                             index_t stride, digit_sums const* sums, float const* scales, index_t columns,
                             group_values<Ops> const (&values)[Blocks], weights<Scale> const& w, float* y) {
  typename Ops::words total[Tokens * Planes][Blocks];
  dot_chunk<Ops, panel_source<Ops, Bits>, Columns, Planes>(source, x, stride, sums, columns, total);
  unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
    unrolled<Blocks>([&]<int B>() __attribute__((always_inline)) {
      typename Ops::words of_token[Planes];
      unrolled<Planes>([&]<int P>()
                           __attribute__((always_inline)) { of_token[P] = total[T * Planes + P][B]; });
      float* const here = y + (T * Blocks + B) * half_block_rows;
      Ops::store(here, add_chunk<Ops, Bits, false, Zero, Planes>(Ops::load(here), of_token, values[B], w,
                                                                 sums + T * Planes, scales[T]));
    });
  });
}

/// An architecture with matrix tiles offers what isa/amx_int8.hpp has.
template <class Ops>
inline constexpr bool has_tiles = requires {
  typename Ops::template tiles<1, 128>;
};

/// Where panels add up what panel_tokens tokens get from a row block: the halves of `Blocks` at a time side
/// by side.
template <int Blocks>
GPTQ_INLINE constexpr index_t panel_sum(index_t token, int half) {
  return ((half / Blocks * panel_tokens + token) * Blocks + half % Blocks) * half_block_rows;
}

/// Chunks first_chunk..last_chunk-1 of tokens first_token..last_token-1, at most panel_tokens, of a row
/// block, added to y[panel_sum(token, half)].
template <class Ops, int Bits, zero_kind Zero, int Columns, int Blocks, class Scale, precision Precision>
GPTQ_INLINE void panel(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                       index_t first_token, index_t last_token, index_t first_chunk, index_t last_chunk,
                       float* y) {
  constexpr int planes = planes_of(Precision);
  constexpr int at_once = Ops::panel_rows / planes > 1 ? Ops::panel_rows / planes : 1;
  using source_type = packed_source<Ops, Bits>;
  alignas(64) std::uint8_t panels[Blocks][panel_bytes<Ops, Bits>];
  index_t const stride = w.chunks.stride();
  index_t const tokens = last_token - first_token;
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_of<Ops, Bits>(w, row_block, first_chunk);
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    index_t const units = source_type::units(columns);
    index_t const cell = chunk * a.tokens + first_token;
    for (int half = 0; half < 2; half += Blocks) {
      panel_source<Ops, Bits> source[Blocks];
      group_values<Ops> values[Blocks];
      unrolled<Blocks>([&]<int B>() __attribute__((always_inline)) {
        unpack_panel<Ops, Bits>(tile + (half + B) * half_unit_bytes<Bits>, units, panels[B],
                                [](typename Ops::codes c) { return c; });
        source[B].tile = panels[B];
        values[B] = load_group<Ops, Bits, Zero>(w, row_block, half + B, walk.group);
      });
      auto const work = [&]<int Tokens>(index_t t) __attribute__((always_inline)) {
        std::int8_t const* const x = a.digits + (cell + t) * planes * stride;
        digit_sums const* const sums = a.sums + (cell + t) * planes;
        float* const of_token = y + panel_sum<Blocks>(t, half);
        if (Columns != 0 && columns == Columns) {
          panel_chunk<Ops, Bits, Zero, Columns, Tokens, Blocks, planes>(
              source, x, stride, sums, a.scales + cell + t, Columns, values, w, of_token);
        } else {
          panel_chunk<Ops, Bits, Zero, 0, Tokens, Blocks, planes>(
              source, x, stride, sums, a.scales + cell + t, columns, values, w, of_token);
        }
      };
      index_t t = 0;
      for (; t + at_once <= tokens; t += at_once) work.template operator()<at_once>(t);
      for (; t < tokens; ++t) work.template operator()<1>(t);
    }
    tile += units * source_type::unit_bytes;
    walk.next(columns);
  }
}

/// One chunk of a row block and `tokens` tokens through tiles, added to y[token][32].
template <class Ops, int Bits, zero_kind Zero, int Columns, int Planes, class Scale>
GPTQ_INLINE void tile_chunk(std::uint8_t const* tile, index_t columns, std::int8_t const* x, index_t stride,
                            digit_sums const* sums, float const* scales, index_t tokens,
                            group_values<Ops> const (&values)[2], weights<Scale> const& w, float* y) {
  using source_type = packed_source<Ops, Bits>;
  constexpr index_t step = Ops::template tile_columns<Columns>;
  alignas(64) std::uint8_t panels[2][16 * max_chunk_columns];
  index_t const units = source_type::units(columns);
  index_t const padded = (columns + step - 1) / step * step;
  for (int half = 0; half < 2; ++half) {
    unpack_panel<Ops, Bits>(tile + half * half_unit_bytes<Bits>, units, panels[half],
                            [](typename Ops::codes c) { return Ops::centred(c, 1 << (Bits - 1)); });
    for (index_t i = 16 * units * source_type::unit_columns; i < 16 * padded; ++i) panels[half][i] = 0;
  }
  Ops::template multiply_tiles<Planes, Columns>(
      panels[0], panels[1], x, stride, padded, tokens * Planes,
      [&](index_t row, index_t rows, std::int32_t const(&words)[2][16 * 16]) __attribute__((always_inline)) {
        for (index_t r = 0; r < rows; r += Planes) {
          index_t const t = (row + r) / Planes;
          unrolled<2>([&]<int B>() __attribute__((always_inline)) {
            typename Ops::words of_token[Planes];
            unrolled<Planes>([&]<int P>() __attribute__((always_inline)) {
              of_token[P] = Ops::load_words(words[B] + (r + P) * 16);
            });
            float* const here = y + (t * 2 + B) * half_block_rows;
            Ops::store(here, add_chunk<Ops, Bits, false, Zero, Planes>(Ops::load(here), of_token, values[B],
                                                                       w, sums + t * Planes, scales[t]));
          });
        }
      });
}

/// As panel(), through tiles.
template <class Ops, int Bits, zero_kind Zero, int Columns, class Scale, precision Precision>
GPTQ_INLINE void tiled(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                       index_t first_token, index_t last_token, index_t first_chunk, index_t last_chunk,
                       float* y) {
  constexpr int planes = planes_of(Precision);
  using source_type = packed_source<Ops, Bits>;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_of<Ops, Bits>(w, row_block, first_chunk);
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    index_t const columns = walk.columns();
    group_values<Ops> const values[2] = {load_group<Ops, Bits, Zero>(w, row_block, 0, walk.group),
                                         load_group<Ops, Bits, Zero>(w, row_block, 1, walk.group)};
    index_t const cell = chunk * a.tokens + first_token;
    tile_chunk<Ops, Bits, Zero, Columns, planes>(tile, columns, a.digits + cell * planes * stride, stride,
                                                 a.sums + cell * planes, a.scales + cell,
                                                 last_token - first_token, values, w, y);
    tile += source_type::units(columns) * source_type::unit_bytes;
    walk.next(columns);
  }
}

/// tiled() or panel().
template <class Ops, int Bits, zero_kind Zero, int Columns, int Blocks, class Scale, precision Precision>
GPTQ_INLINE void many_tokens(weights<Scale> const& w, activations<Precision> const& a, index_t row_block,
                             index_t first_token, index_t last_token, index_t first_chunk, index_t last_chunk,
                             float* y) {
  if constexpr (has_tiles<Ops> && Columns != 0) {
    static_assert(Blocks == 2);
    // Rows shorter than a full chunk may not fill the tiles made for it.
    if (w.chunks.stride() % Ops::template tile_columns<Columns> == 0) {
      return tiled<Ops, Bits, Zero, Columns>(w, a, row_block, first_token, last_token, first_chunk,
                                             last_chunk, y);
    }
  }
  panel<Ops, Bits, Zero, Columns, Blocks>(w, a, row_block, first_token, last_token, first_chunk, last_chunk,
                                          y);
}

// ---- float32 activations --------------------------------------------------------------------------------

/// The same as above in float32, weight by weight: for each chunk y = y + scale * (e + o), where e and o are
/// the sums of (code - zero) * x over its even and its odd columns. For one half of a row block.
template <class Ops, int Bits, zero_kind Zero, int Tokens, int Half, class Scale>
GPTQ_INLINE void direct_float(weights<Scale> const& w, activations<precision::float32> const& a,
                              index_t row_block, index_t token, index_t first_chunk, index_t last_chunk,
                              typename Ops::floats (&y)[Tokens][2]) {
  using source_type = packed_source<Ops, Bits>;
  using unit_type = unit<Ops, Bits, false>;
  constexpr int steps = source_type::unit_columns / 4;
  index_t const stride = w.chunks.stride();
  chunk_walk walk(w.chunks, first_chunk);
  std::uint8_t const* tile = tile_of<Ops, Bits>(w, row_block, first_chunk) + Half * half_unit_bytes<Bits>;
  float const* x = a.values + token * stride;
  for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    auto const values = load_group<Ops, Bits, Zero>(w, row_block, Half, walk.group);
    auto zero = Ops::broadcast(static_cast<float>(1 << (Bits - 1)));
    if constexpr (Zero == zero_kind::stored) {
      zero = Ops::multiply_add(values.zero_offset, Ops::template zero_weights<Bits>(), zero);
    }
    if constexpr (Zero == zero_kind::constant) zero = Ops::add(zero, Ops::broadcast(w.zero_offset));
    typename Ops::floats sum[Tokens][2];
    unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
      sum[T][0] = Ops::broadcast(0.0F);
      sum[T][1] = Ops::broadcast(0.0F);
    });
    index_t const columns = walk.columns();
    index_t const units = source_type::units(columns);
#pragma GCC unroll 1
    for (index_t u = 0; u < units; ++u, tile += source_type::unit_bytes) {
      unit_type const codes(tile);
      float const* const here = x + u * source_type::unit_columns;
      unrolled<steps>([&]<int S>() __attribute__((always_inline)) {
        typename Ops::codes four;
        if constexpr (Bits == 8) {
          four = codes.raw;
        } else {
          four = codes.template codes<S>();
        }
        unrolled<4>([&]<int J>() __attribute__((always_inline)) {
          auto const level = Ops::subtract(Ops::template byte<J>(four), zero);
          unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
            auto const of_column = Ops::broadcast(here[T * stride + 4 * S + J]);
            sum[T][J % 2] = Ops::multiply_add(level, of_column, sum[T][J % 2]);
          });
        });
      });
    }
    unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
      y[T][Half] = Ops::multiply_add(values.scale, Ops::add(sum[T][0], sum[T][1]), y[T][Half]);
    });
    x += a.tokens * stride;
    walk.next(columns);
  }
}

// ---- rows -----------------------------------------------------------------------------------------------

/// The columns of a full chunk, where the format says so and the architecture has a kernel for them.
template <class Ops, storage_format Format>
inline constexpr int static_columns = [] {
  constexpr int size = Format::group_size;
  if (!Ops::fixed_chunks) return 0;
  if (size == whole_row || size >= 128) return 128;
  return size == 32 || size == 64 ? size : 0;
}();

/// y of rows without columns.
GPTQ_INLINE void zero_rows(float* y, index_t first, index_t last) {
  for (index_t row = first; row < last; ++row) y[row] = 0.0F;
}

/// Stores the rows of half a row block, `row` and up, that lie in first..last-1.
template <class Ops>
GPTQ_INLINE void store_rows(float* y, index_t row, index_t first, index_t last, typename Ops::floats values) {
  if (first <= row && row + half_block_rows <= last) {
    Ops::store(y + row, values);
  } else {
    alignas(64) float rows[half_block_rows];
    Ops::store(rows, values);
    for (index_t r = 0; r < half_block_rows; ++r) {
      if (first <= row + r && row + r < last) y[row + r] = rows[r];
    }
  }
}

/// What store_rows() has stored.
template <class Ops>
GPTQ_INLINE typename Ops::floats load_rows(float const* y, index_t row, index_t first, index_t last) {
  if (first <= row && row + half_block_rows <= last) return Ops::load(y + row);
  alignas(64) float rows[half_block_rows] = {};
  for (index_t r = 0; r < half_block_rows; ++r) {
    if (first <= row + r && row + r < last) rows[r] = y[row + r];
  }
  return Ops::load(rows);
}

/// How many tokens direct() works on at once, within what the architecture has registers for.
template <class Ops, precision Precision>
inline constexpr int direct_tokens = Precision == precision::float32 ? 2
                                     : Ops::direct_rows / planes_of(Precision) > 1
                                         ? Ops::direct_rows / planes_of(Precision)
                                         : 1;

/// Rows first..last-1 of all tokens, from registers, `AtOnce` tokens at once. With `more`, adds to what y
/// holds.
template <class Ops, storage_format Format, int AtOnce, precision Precision>
void direct_rows(packed_view<Format> const& view, activations<Precision> const& a, index_t first_chunk,
                 index_t last_chunk, float* y, index_t first, index_t last, bool more) noexcept {
  constexpr int bits = Format::bits;
  constexpr auto zero = zero_kind_of<Format>;
  auto const w = weights_of(view);
  auto const work = [&]<int Tokens>(index_t block, index_t token) __attribute__((always_inline)) {
    typename Ops::floats values[Tokens][2];
    auto const halves = [&](auto&& half) __attribute__((always_inline)) {
      unrolled<Tokens>([&]<int T>() __attribute__((always_inline)) {
        unrolled<2>([&]<int B>() __attribute__((always_inline)) {
          half(values[T][B], y + (token + T) * view.out, block * packed_rows + B * half_block_rows);
        });
      });
    };
    halves([&](auto& v, float const* of_token, index_t row) __attribute__((always_inline)) {
      v = more ? load_rows<Ops>(of_token, row, first, last) : Ops::broadcast(0.0F);
    });
    if constexpr (Precision == precision::float32) {
      direct_float<Ops, bits, zero, Tokens, 0>(w, a, block, token, first_chunk, last_chunk, values);
      direct_float<Ops, bits, zero, Tokens, 1>(w, a, block, token, first_chunk, last_chunk, values);
    } else {
      direct<Ops, bits, zero, static_columns<Ops, Format>, Tokens>(w, a, block, token, first_chunk,
                                                                   last_chunk, values);
    }
    halves([&](auto const& v, float* of_token, index_t row)
               __attribute__((always_inline)) { store_rows<Ops>(of_token, row, first, last, v); });
  };
  for (index_t block = first / packed_rows; block * packed_rows < last; ++block) {
    index_t token = 0;
    if constexpr (AtOnce > 1) {
      for (; token + AtOnce <= a.tokens; token += AtOnce) work.template operator()<AtOnce>(block, token);
    }
    for (; token < a.tokens; ++token) work.template operator()<1>(block, token);
  }
}

/// What has to live while tiles are used; nothing where there are none.
template <class Ops, int Planes, int Columns>
struct tiles_of {
  struct type {};
};
template <class Ops, int Planes, int Columns>
requires(has_tiles<Ops>&& Columns != 0) struct tiles_of<Ops, Planes, Columns> {
  using type = typename Ops::template tiles<Planes, Columns>;
};

/// Rows first..last-1 of all tokens, through panels.
template <class Ops, storage_format Format, precision Precision>
void panel_rows(packed_view<Format> const& view, activations<Precision> const& a, float* y, index_t first,
                index_t last) noexcept {
  auto const w = weights_of(view);
  constexpr int blocks = Ops::panel_blocks;
  [[maybe_unused]]
  typename tiles_of<Ops, planes_of(Precision), static_columns<Ops, Format>>::type const tiles;
  alignas(64) float sums[panel_tokens * packed_rows];
  // As many chunks of the tokens as the second-level cache has room for, again and again for all rows.
  index_t const chunks = w.chunks.count();
  index_t const fit = 524288 / (panel_tokens * planes_of(Precision) * w.chunks.stride());
  index_t const at_once = fit > 1 ? fit : 1;
  for (index_t token = 0; token < a.tokens; token += panel_tokens) {
    index_t const left = a.tokens - token;
    index_t const tokens = left < panel_tokens ? left : panel_tokens;
    for (index_t chunk = 0; chunk < chunks; chunk += at_once) {
      index_t const last_chunk = chunk + at_once < chunks ? chunk + at_once : chunks;
      for (index_t block = first / packed_rows; block * packed_rows < last; ++block) {
        auto const halves = [&](auto&& half) __attribute__((always_inline)) {
          for (index_t t = 0; t < tokens; ++t) {
            unrolled<2>([&]<int B>() __attribute__((always_inline)) {
              half(sums + panel_sum<blocks>(t, B), y + (token + t) * view.out,
                   block * packed_rows + B * half_block_rows);
            });
          }
        };
        halves([&](float* sum, float const* of_token, index_t row) __attribute__((always_inline)) {
          Ops::store(sum, chunk == 0 ? Ops::broadcast(0.0F) : load_rows<Ops>(of_token, row, first, last));
        });
        many_tokens<Ops, Format::bits, zero_kind_of<Format>, static_columns<Ops, Format>, blocks>(
            w, a, block, token, token + tokens, chunk, last_chunk, sums);
        halves([&](float const* sum, float* of_token, index_t row) __attribute__((always_inline)) {
          store_rows<Ops>(of_token, row, first, last, Ops::load(sum));
        });
      }
    }
  }
}

}  // namespace gptq::detail
