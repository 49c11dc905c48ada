// Activations made ready for the kernels, once for all matrices with the same columns, groups and column
// order (q, k and v; gate and up).
//
//   std::size_t bytes = gptq::workspace_bytes(w.layout(), tokens);              // constexpr; yours to
//   allocate auto a = gptq::prepare(w, x, tokens, workspace);                            // x[tokens, in],
//   float or 16 bits gptq::gemv(w, a, y);   gptq::gemv(w2, a, y2);                               // gemv.hpp,
//   gemm.hpp
//
// A group of the weights is cut into chunks of at most 128 columns. A chunk of a token has a scale of its own
// and is stored as 1, 2 or 3 planes of int8 digits, x = scale * (d0 + 256 d1 + 65536 d2), so that all integer
// kernels are one: products of codes and digits, summed exactly. Digits are the same on every CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <gptq/isa/all.hpp>
#include <gptq/packed.hpp>

namespace gptq {

/// How precisely activations take part in a product. For x of a chunk with largest magnitude a, what a kernel
/// computes with is x' with |x' - x| at most
///   int8      a / 253        one plane of digits
///   int15     a / 64000      two
///   int23     a / 4000000    three: as exact as float32 arithmetic
///   float32   0              float32 arithmetic, weight by weight: the slowest
/// plus 2^-100, for the first three: a chunk whose magnitudes are all below that counts as zeros. They give
/// NaN in every y if any x is infinite or NaN; float32 propagates them as IEEE 754 does.
enum class precision { int8, int15, int23, float32 };

/// Digit planes of a precision; 0 for float32.
GPTQ_INLINE constexpr int planes_of(precision p) {
  return p == precision::int8 ? 1 : p == precision::int15 ? 2 : p == precision::int23 ? 3 : 0;
}

/// Columns of a chunk, at most.
inline constexpr index_t max_chunk_columns = 128;

/// How `in` columns in groups of `group_columns` are cut into chunks.
struct chunk_layout {
  index_t in = 0;
  index_t group_columns = 0;

  /// Columns of a full chunk.
  GPTQ_INLINE constexpr index_t columns() const {
    return group_columns < max_chunk_columns ? group_columns : max_chunk_columns;
  }
  /// Digits that a chunk takes: columns(), padded to what the widest unit of codes wants.
  GPTQ_INLINE constexpr index_t stride() const { return (columns() + 31) / 32 * 32; }
  GPTQ_INLINE constexpr index_t chunks_a_group() const {
    return in == 0 ? 1 : (group_columns + columns() - 1) / columns();
  }
  /// Chunks of all columns; the last group may have fewer than the others.
  GPTQ_INLINE constexpr index_t count() const {
    if (in == 0) return 0;
    index_t const whole = in / group_columns;
    return whole * chunks_a_group() + (in - whole * group_columns + columns() - 1) / columns();
  }
  GPTQ_INLINE constexpr index_t group_of(index_t chunk) const { return chunk / chunks_a_group(); }
  /// First column of a chunk, counted from the start of its group.
  GPTQ_INLINE constexpr index_t offset_in_group(index_t chunk) const {
    return chunk % chunks_a_group() * columns();
  }
  /// Columns of this chunk.
  GPTQ_INLINE constexpr index_t columns_of(index_t chunk) const {
    index_t const start = offset_in_group(chunk);
    index_t const first = group_of(chunk) * group_columns + start;
    index_t const of_group = group_columns - start;
    index_t const of_row = in - first;
    index_t const left = of_group < of_row ? of_group : of_row;
    return left < columns() ? left : columns();
  }
};

/// Prepared activations: pointers into the workspace of prepare(), trivially copyable.
template <precision Precision>
struct activations {
  chunk_layout chunks;
  index_t tokens = 0;
  std::int8_t const* digits = nullptr;  ///< [chunk, token, plane, chunks.stride()]
  digit_sums const* sums = nullptr;     ///< [chunk, token, plane]
  float const* scales = nullptr;        ///< [chunk, token]; NaN when an x of the chunk is not finite
};

/// float32 activations, in stored column order.
template <>
struct activations<precision::float32> {
  chunk_layout chunks;
  index_t tokens = 0;
  float const* values = nullptr;  ///< [chunk, token, chunks.stride()], padded with zeros
};

/// Bytes that prepare() needs for activations of `tokens` tokens.
template <precision Precision = precision::int8>
constexpr std::size_t workspace_bytes(chunk_layout chunks, index_t tokens = 1);

template <precision Precision = precision::int8, storage_format Format>
constexpr std::size_t workspace_bytes(packed_layout<Format> layout, index_t tokens = 1);

/// Prepares x[tokens, in] (float, float16 or bfloat16; row-major; any alignment) for `w` and every matrix of
/// the same columns, group size and order. `workspace` has workspace_bytes() bytes, best aligned to 64, at
/// least to 4.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, T const* x, index_t tokens,
                               void* workspace) noexcept;

/// The same for tokens first_token..last_token-1 only: a thread's share of the work. All shares get the whole
/// x and the same workspace, and return the same.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, T const* x, index_t tokens, void* workspace,
                               index_t first_token, index_t last_token) noexcept;

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// Walks over chunks, without a division a chunk.
struct chunk_walk {
  index_t group_columns;
  index_t row_left;    ///< columns of the row from this chunk on
  index_t group_left;  ///< columns of the group from this chunk on
  index_t group;

  GPTQ_INLINE chunk_walk(chunk_layout const& chunks, index_t chunk) : group_columns(chunks.group_columns) {
    group = chunks.group_of(chunk);
    group_left = group_columns - chunks.offset_in_group(chunk);
    row_left = chunks.in - group * group_columns - chunks.offset_in_group(chunk);
  }
  /// Columns of this chunk.
  GPTQ_INLINE index_t columns() const {
    index_t const left = group_left < row_left ? group_left : row_left;
    return left < max_chunk_columns ? left : max_chunk_columns;
  }
  GPTQ_INLINE void next(index_t columns) {
    row_left -= columns;
    group_left -= columns;
    if (group_left == 0) {
      group_left = group_columns;
      ++group;
    }
  }
};

/// Bytes of a chunk of a token.
template <precision Precision>
GPTQ_INLINE constexpr index_t cell_bytes(chunk_layout chunks) {
  if (Precision == precision::float32) return chunks.stride() * index_t{sizeof(float)};
  return planes_of(Precision) * (chunks.stride() + index_t{sizeof(digit_sums)}) + index_t{sizeof(float)};
}

/// Where the parts of prepared activations lie in a workspace that holds `count` of the chunks.
template <precision Precision>
GPTQ_INLINE activations<Precision> activations_in(chunk_layout chunks, index_t count, index_t tokens,
                                                  char* workspace) {
  index_t const cells = count * tokens;
  activations<Precision> a{};
  a.chunks = chunks;
  a.tokens = tokens;
  if constexpr (Precision == precision::float32) {
    a.values = reinterpret_cast<float*>(workspace);
  } else {
    constexpr int planes = planes_of(Precision);
    a.digits = reinterpret_cast<std::int8_t*>(workspace);
    workspace += cells * planes * chunks.stride();
    a.sums = reinterpret_cast<digit_sums*>(workspace);
    workspace += cells * planes * index_t{sizeof(digit_sums)};
    a.scales = reinterpret_cast<float*>(workspace);
  }
  return a;
}

/// The largest digit sum d0 + 256 d1 + 65536 d2 in use: no digit leaves -128..127, however the product with
/// the reciprocal of the scale rounds.
template <int Planes>
inline constexpr float largest_digits = Planes == 1   ? 127.0F
                                        : Planes == 2 ? 127.0F * 256.0F
                                                      : 127.0F * 65536.0F;

/// Digits, sums and scale of one chunk. values[stride], the ones beyond the chunk 0.
template <class Ops, int Planes>
GPTQ_INLINE void prepare_chunk(float const* values, index_t stride, std::int8_t* digits, digit_sums* sums,
                               float* scale) {
  // Magnitudes compare as the integers they look like, infinity and NaN above all others.
  auto top = Ops::magnitudes(Ops::load(values));
  for (index_t c = 16; c < stride; c += 16) top = Ops::max(top, Ops::magnitudes(Ops::load(values + c)));
  std::int32_t const amax_bits = Ops::largest(top);
  bool const finite = amax_bits < 0x7f800000;
  float const amax = bit_cast<float>(amax_bits);
  bool const counts = finite && amax >= 0x1p-100F;
  *scale = counts ? amax / largest_digits<Planes> : finite ? 0.0F : bit_cast<float>(0x7fc00000u);
  for (int p = 0; p < Planes; ++p) sums[p] = {};
  if (!counts) {
    std::memset(digits, 0, static_cast<std::size_t>(Planes * stride));
    return;
  }
  auto const steps = Ops::broadcast(largest_digits<Planes> / amax);
  for (index_t first = 0; first < stride; first += 64) {
    typename Ops::words sum[Planes];  // of the columns that are the same modulo 16
    unrolled<Planes>([&]<int P>() __attribute__((always_inline)) { sum[P] = Ops::broadcast_words(0); });
    for (index_t c = first; c < stride && c < first + 64; c += 16) {
      auto whole = Ops::round(Ops::multiply(Ops::load(values + c), steps));
      unrolled<Planes>([&]<int P>() __attribute__((always_inline)) {
        auto digit = whole;
        if constexpr (P + 1 < Planes) {
          digit = Ops::template shift_words<24>(Ops::template shift_words<-24>(whole));
          whole = Ops::template shift_words<8>(Ops::subtract(whole, digit));
        }
        sum[P] = Ops::add(sum[P], digit);
        Ops::store_bytes(digits + P * stride + c, digit);
      });
    }
    unrolled<Planes>([&]<int P>() __attribute__((always_inline)) {
      std::int32_t pairs[2];
      Ops::sum_pairs(sum[P], pairs);
      for (int s = 0; s < 2; ++s) {
        sums[P].of_pairs[first / 64][s] = static_cast<std::int16_t>(-pairs[s]);
        sums[P].all -= pairs[s];
      }
    });
  }
}

/// Chunks first_chunk..last_chunk-1 of tokens first_token..last_token-1, laid out as chunk 0, 1, ... of `a`,
/// whose other parts are what activations_in() made of the workspace.
template <class Isa, precision Precision, class T>
GPTQ_INLINE void prepare_chunks(activations<Precision> const& a, T const* x, index_t in,
                                std::int32_t const* order, index_t first_chunk, index_t last_chunk,
                                index_t first_token, index_t last_token) {
  index_t const stride = a.chunks.stride();
  for (index_t token = first_token; token < last_token; ++token) {
    T const* const row = x + token * in;
    chunk_walk walk(a.chunks, first_chunk);
    for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
      index_t const cell = (chunk - first_chunk) * a.tokens + token;
      index_t const first = in - walk.row_left;
      index_t const columns = walk.columns();
      walk.next(columns);
      alignas(64) float buffer[max_chunk_columns] = {};
      float* values = buffer;
      if constexpr (Precision == precision::float32) values = const_cast<float*>(a.values) + cell * stride;
      if (order != nullptr) {
        for (index_t c = 0; c < columns; ++c) {
          T element;
          std::memcpy(&element, row + order[first + c], sizeof(T));
          values[c] = static_cast<float>(element);
        }
      } else if constexpr (std::is_same_v<T, float>) {
        std::memcpy(values, row + first, static_cast<std::size_t>(columns) * sizeof(float));
      } else {
        for (index_t c = 0; c < columns; ++c) {
          T element;
          std::memcpy(&element, row + first + c, sizeof(T));
          values[c] = static_cast<float>(element);
        }
      }
      if constexpr (Precision == precision::float32) {
        for (index_t c = columns; c < stride; ++c) values[c] = 0.0F;
      } else {
        constexpr int planes = planes_of(Precision);
        prepare_chunk<operations_of<Isa>, planes>(
            values, stride, const_cast<std::int8_t*>(a.digits) + cell * planes * stride,
            const_cast<digit_sums*>(a.sums) + cell * planes, const_cast<float*>(a.scales) + cell);
      }
    }
  }
}

}  // namespace detail

template <precision Precision>
constexpr std::size_t workspace_bytes(chunk_layout chunks, index_t tokens) {
  return static_cast<std::size_t>(chunks.count() * tokens * detail::cell_bytes<Precision>(chunks));
}

template <precision Precision, storage_format Format>
constexpr std::size_t workspace_bytes(packed_layout<Format> layout, index_t tokens) {
  return workspace_bytes<Precision>(chunk_layout{layout.in, layout.group_columns()}, tokens);
}

template <precision Precision, class Isa, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, T const* x, index_t tokens, void* workspace,
                               index_t first_token, index_t last_token) noexcept {
  chunk_layout const chunks{w.in, Format::group_columns(w.in)};
  auto const a =
      detail::activations_in<Precision>(chunks, chunks.count(), tokens, static_cast<char*>(workspace));
  detail::prepare_chunks<Isa>(a, x, w.in, w.order, 0, chunks.count(), first_token, last_token);
  return a;
}

template <precision Precision, class Isa, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, T const* x, index_t tokens,
                               void* workspace) noexcept {
  return prepare<Precision, Isa>(w, x, tokens, workspace, 0, tokens);
}

}  // namespace gptq
