// Activations as the kernels take them: what a group of columns of x becomes, and what memory that takes.
//
//   std::size_t const bytes = gptq::workspace_bytes(w.layout(), tokens);       // for int8; yours to allocate
//   auto a = gptq::prepare(w, x, tokens, workspace);                           // prepare.hpp
//   gptq::gemm(w, a, y);                                                       // gemm.hpp
//
// A group of the weights is cut into chunks of at most 128 columns. A chunk of a token has a scale of its own
// and is stored as 1, 2 or 3 planes of int8 digits, x = scale * (d0 + 256 d1 + 65536 d2), so that all integer
// kernels are one: products of codes and digits, summed exactly. Digits are the same on every CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include <gptq/config.hpp>
#include <gptq/layout.hpp>

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
GPTQ_INLINE constexpr int digit_planes(precision p) {
  return p == precision::int8 ? 1 : p == precision::int15 ? 2 : p == precision::int23 ? 3 : 0;
}

/// Columns of a chunk, at most.
inline constexpr index_t max_chunk_columns = 128;

/// Activations of several tokens: x[token, column] at data[token * stride + column].
/// @tparam T  float, float16 or bfloat16
template <class T>
struct input {
  T const* data;
  index_t stride;
};

/// The same with tokens from a list: x[token, column] at data[token_ids[token] * stride + column].
template <class T>
struct gathered_input {
  T const* data;
  index_t stride;
  std::int32_t const* token_ids;
};

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
  /// The group that a chunk is part of.
  GPTQ_INLINE constexpr index_t group(index_t chunk) const { return chunk / chunks_a_group(); }
  /// First column of a chunk, counted from the start of its group.
  GPTQ_INLINE constexpr index_t offset_in_group(index_t chunk) const {
    return chunk % chunks_a_group() * columns();
  }
  /// Columns of this chunk.
  GPTQ_INLINE constexpr index_t columns(index_t chunk) const {
    index_t const start = offset_in_group(chunk);
    index_t const left_in_group = group_columns - start;
    index_t const left_in_row = in - group(chunk) * group_columns - start;
    index_t const left = left_in_group < left_in_row ? left_in_group : left_in_row;
    return left < columns() ? left : columns();
  }
};

/// Sums of the digits of one plane of a chunk of a token, negated: what the zero point of the codes is worth.
/// int16 holds 64 columns of two classes: kernels that add up pairs of products in 16 bits start from these.
struct digit_sums {
  std::int32_t all;             ///< -(sum of all digits)
  std::int16_t of_pairs[2][2];  ///< [columns 0..63, 64..127][columns 0, 1 or 2, 3 modulo 4]
};

/// Prepared activations: pointers into the workspace of prepare(), trivially copyable.
template <precision Precision>
struct activations {
  chunk_layout chunks;
  index_t tokens = 0;
  std::int8_t const* digits = nullptr;  ///< [chunk, token, plane, chunks.stride()]
  digit_sums const* sums = nullptr;     ///< [chunk, token, plane]
  float const* scales = nullptr;        ///< [chunk, token]; NaN when an x of the chunk is not finite
  std::int32_t const* order = nullptr;  ///< the column order of the matrix that they are prepared for
};

/// float32 activations, in stored column order.
template <>
struct activations<precision::float32> {
  chunk_layout chunks;
  index_t tokens = 0;
  float const* values = nullptr;        ///< [chunk, token, chunks.stride()], padded with zeros
  std::int32_t const* order = nullptr;  ///< the column order of the matrix that they are prepared for
};

namespace detail {

/// Bytes of a chunk of a token.
template <precision Precision>
GPTQ_INLINE constexpr index_t cell_bytes(chunk_layout chunks) {
  if (Precision == precision::float32) return chunks.stride() * index_t{sizeof(float)};
  return digit_planes(Precision) * (chunks.stride() + index_t{sizeof(digit_sums)}) + index_t{sizeof(float)};
}

/// Where the parts of prepared activations lie in a workspace that holds `count` of the chunks.
template <precision Precision>
GPTQ_INLINE activations<Precision> activations_at(chunk_layout chunks, index_t count, index_t tokens,
                                                  char* workspace) {
  index_t const cells = count * tokens;
  activations<Precision> a{};
  a.chunks = chunks;
  a.tokens = tokens;
  if constexpr (Precision == precision::float32) {
    a.values = reinterpret_cast<float*>(workspace);
  } else {
    constexpr int planes = digit_planes(Precision);
    a.digits = reinterpret_cast<std::int8_t*>(workspace);
    workspace += cells * planes * chunks.stride();
    a.sums = reinterpret_cast<digit_sums*>(workspace);
    workspace += cells * planes * index_t{sizeof(digit_sums)};
    a.scales = reinterpret_cast<float*>(workspace);
  }
  return a;
}

}  // namespace detail

/// Bytes that prepare() needs for activations of `tokens` tokens.
template <precision Precision = precision::int8>
constexpr std::size_t workspace_bytes(chunk_layout chunks, index_t tokens = 1) {
  return static_cast<std::size_t>(chunks.count() * tokens * detail::cell_bytes<Precision>(chunks));
}

/// The same for the columns of a matrix.
template <precision Precision = precision::int8, storage_format Format>
constexpr std::size_t workspace_bytes(packed_layout<Format> layout, index_t tokens = 1) {
  return workspace_bytes<Precision>(chunk_layout{layout.in, layout.group_columns()}, tokens);
}

/// Tokens first..last-1.
struct token_range {
  index_t first = 0;
  index_t last = 0;
};

}  // namespace gptq
