// The tensors of a GPTQ checkpoint: qweight, qzeros, scales, g_idx.
//
// Codes lie along K in an LSB-first stream of 32-bit words, one stream an output: code k of an output
// occupies bits [k b, k b + b). Zero points lie the same way along N, one stream a group. Version 1
// (checkpoint_format "gptq") stores zero - 1, version 2 ("gptq_v2") the zero itself. Widths 2, 3, 4 and 8.
//
//   auto layer = gptq::checkpoint::from_gptq<q4>(tensors, gptq::checkpoint::gptq_version::v1);
//   auto packed = gptq::pack(layer);     // act-order or not: its groups are contiguous
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

enum class gptq_version { v1, v2 };

/// The four tensors of a linear layer with K inputs, N outputs and G groups, row-major.
struct gptq_tensors {
  std::vector<std::uint32_t> qweight;  ///< [K bits / 32, N]
  std::vector<std::uint32_t> qzeros;   ///< [G, N bits / 32]
  std::vector<float16> scales;         ///< [G, N]
  std::vector<std::int32_t> g_idx;     ///< [K] group of each input
};

/// The checkpoint tensors of a layer. float32 scales are rounded to float16, which is all the format has.
/// @param published_defects  for version 1 only: write a zero point of 0 as the published writers do, which
/// OR an
///        unmasked -1 into the word and so destroy the zeros above it. Without it a zero point of 0 is an
///        error.
/// @throws gptq::error when K bits or N bits is not a multiple of 32, when the scheme's zero point is not an
///         integer (half step), when a zero point is 0 in version 1, or a scale beyond the range of float16
template <storage_format Format>
gptq_tensors to_gptq(quantized_layer<Format> const& layer, gptq_version version = gptq_version::v1,
                     bool published_defects = false);

/// The same tensors where somebody else has them: in a mapped file, say. Bytes, because there they may lie at
/// any address; in the order that gptq_tensors gives.
struct gptq_view {
  index_t out = 0;
  index_t in = 0;
  std::span<std::byte const> qweight;
  std::span<std::byte const> qzeros;
  std::span<std::byte const> scales;
  std::span<std::byte const> g_idx;  ///< may be empty: groups of columns in their original order
};

/// A view of tensors, for as long as they are there.
inline gptq_view view_of(gptq_tensors const& tensors, index_t out, index_t in) {
  return {out,
          in,
          std::as_bytes(std::span(tensors.qweight)),
          std::as_bytes(std::span(tensors.qzeros)),
          std::as_bytes(std::span(tensors.scales)),
          std::as_bytes(std::span(tensors.g_idx))};
}

/// The layer that checkpoint tensors hold, its columns ordered by group once and for all. A checkpoint with
/// `sym: true` is one of fixed_zero; `symmetric` and half-step layers are not read.
/// @throws gptq::error, naming the row, column or group, when a tensor has not the size that the format gives
///   it; when g_idx does not fill groups of Format::group_size columns (but for the last); when a zero point
///   is not fixed_zero's, or is one that version 1 cannot hold; when a scale is not finite
template <storage_format Format>
quantized_layer<Format> from_gptq(gptq_view const& tensors, gptq_version version);

/// The version that zero points prove, whatever a checkpoint says of itself; nothing where they fit both.
/// A symmetric checkpoint has one zero point, 2^(bits-1). An asymmetric one of version 1 never stores
/// 2^bits - 1, since its writers keep zero points within 1 and 2^bits - 1.
/// @throws gptq::error when qzeros has no whole number of rows of `out` zero points, or bits is not 2, 3, 4
///   or 8
std::optional<gptq_version> proven_version(gptq_view const& tensors, int bits, bool symmetric);

// ---- implementation -------------------------------------------------------------------------------------

template <storage_format Format>
gptq_tensors to_gptq(quantized_layer<Format> const& layer, gptq_version version, bool published_defects) {
  constexpr index_t bits = Format::bits;
  static_assert(!Format::levels.is_half_step(),
                "GPTQ checkpoints hold integer zero points: a half-step scheme does not fit (GGUF Q4_1 can)");
  check(layer);
  index_t const in = layer.in;
  index_t const out = layer.out;
  index_t const groups = layer.groups();
  if (in * bits % 32 != 0 || out * bits % 32 != 0) {
    throw error("GPTQ checkpoint: " + std::to_string(out) + " x " + std::to_string(in) + " codes of " +
                std::to_string(bits) +
                " bits do not fill whole 32-bit words; both extents must be multiples of " +
                std::to_string(bits == 3 ? 32 : 32 / bits));
  }
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  // ORs `value` into a stream at entry i; `stride` is the distance of two words of the stream.
  auto const put = [&](std::vector<std::uint32_t>& words, index_t start, index_t stride, index_t i,
                       std::uint32_t value) {
    index_t const bit = i * bits;
    words[at(start + bit / 32 * stride)] |= value << (bit % 32);
    if (bit % 32 + bits > 32) words[at(start + (bit / 32 + 1) * stride)] |= value >> (32 - bit % 32);
  };

  gptq_tensors tensors;
  tensors.qweight.resize(at(in * bits / 32 * out));
  tensors.qzeros.resize(at(groups * (out * bits / 32)));
  tensors.scales.resize(at(groups * out));
  tensors.g_idx.resize(at(in));
  for (index_t p = 0; p < in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
    tensors.g_idx[at(column)] = static_cast<std::int32_t>(layer.group_of(p));
    for (index_t row = 0; row < out; ++row) {
      put(tensors.qweight, row, out, column, static_cast<std::uint32_t>(layer.code(row, p)));
    }
  }
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < out; ++row) {
      grid const g = layer.grid(row, group);
      float16 const scale(g.scale);
      if (!std::isfinite(static_cast<float>(scale))) {
        throw error("GPTQ checkpoint: the scale of row " + std::to_string(row) + ", group " +
                    std::to_string(group) + " is " + std::to_string(g.scale) + ", beyond float16");
      }
      tensors.scales[at(group * out + row)] = scale;
      auto stored = static_cast<std::uint32_t>(static_cast<int>(Format::levels.zero_of(g)));
      if (version == gptq_version::v1) {
        if (stored == 0 && !published_defects) {
          throw error("GPTQ checkpoint: the zero point of row " + std::to_string(row) + ", group " +
                      std::to_string(group) + " is 0, which version 1 cannot hold; write version 2");
        }
        --stored;
      }
      put(tensors.qzeros, group * (out * bits / 32), 1, row, stored);
    }
  }
  return tensors;
}

namespace detail {

inline std::uint32_t word_at(std::span<std::byte const> words, index_t i) {
  std::uint32_t word = 0;
  std::memcpy(&word, words.data() + 4 * static_cast<std::size_t>(i), sizeof word);
  return word;
}

/// Entry i of a stream of numbers of `bits` bits whose words lie `stride` apart from `start` on.
inline int entry_of(std::span<std::byte const> words, index_t start, index_t stride, index_t i, int bits) {
  index_t const bit = i * bits;
  auto const shift = static_cast<int>(bit % 32);
  std::uint64_t both = word_at(words, start + bit / 32 * stride);
  if (shift + bits > 32) both |= std::uint64_t{word_at(words, start + (bit / 32 + 1) * stride)} << 32;
  return static_cast<int>(both >> shift & ((1U << bits) - 1U));
}

inline void check_bytes(std::string const& what, std::span<std::byte const> bytes, index_t expected) {
  if (bytes.size() != static_cast<std::size_t>(expected)) {
    throw error(what + " has " + std::to_string(bytes.size()) + " bytes, not " + std::to_string(expected));
  }
}

inline void check_gptq_size(char const* what, std::span<std::byte const> bytes, index_t expected) {
  check_bytes(std::string("GPTQ checkpoint: ") + what, bytes, expected);
}

/// Positions of the columns, group by group; empty where that is their own order.
inline std::vector<std::int32_t> order_of(std::span<std::byte const> g_idx, index_t in, index_t group_columns,
                                          index_t groups,
                                          std::string const& name = "GPTQ checkpoint: g_idx") {
  std::vector<std::int32_t> group(static_cast<std::size_t>(in));
  std::memcpy(group.data(), g_idx.data(), g_idx.size());
  std::vector<index_t> count(static_cast<std::size_t>(groups));
  for (index_t column = 0; column < in; ++column) {
    std::int32_t const g = group[static_cast<std::size_t>(column)];
    if (g < 0 || g >= groups) {
      throw error(name + " of column " + std::to_string(column) + " is " + std::to_string(g) +
                  ", but there are " + std::to_string(groups) + " groups");
    }
    ++count[static_cast<std::size_t>(g)];
  }
  for (index_t g = 0; g < groups; ++g) {
    index_t const expected = std::min(group_columns, in - g * group_columns);
    if (count[static_cast<std::size_t>(g)] != expected) {
      throw error(name + " gives group " + std::to_string(g) + " " +
                  std::to_string(count[static_cast<std::size_t>(g)]) + " columns, not " +
                  std::to_string(expected));
    }
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(in));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return group[static_cast<std::size_t>(a)] < group[static_cast<std::size_t>(b)];
  });
  if (std::is_sorted(order.begin(), order.end())) order.clear();
  return order;
}

}  // namespace detail

template <storage_format Format>
quantized_layer<Format> from_gptq(gptq_view const& tensors, gptq_version version) {
  constexpr index_t bits = Format::bits;
  static_assert(Format::has_zero_point || Format::levels.min_code == 0,
                "sym: true is fixed_zero: symmetric has no lowest level, which checkpoints may use");
  static_assert(!Format::levels.is_half_step(), "GPTQ checkpoints hold integer zero points");
  index_t const in = tensors.in;
  index_t const out = tensors.out;
  if (in <= 0 || out <= 0 || in > (index_t{1} << 31) || out > (index_t{1} << 31) || in * bits % 32 != 0 ||
      out * bits % 32 != 0) {
    throw error("GPTQ checkpoint: " + std::to_string(out) + " x " + std::to_string(in) + " codes of " +
                std::to_string(bits) + " bits do not fill whole 32-bit words");
  }
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  index_t const groups = layer.groups();
  detail::check_gptq_size("qweight", tensors.qweight, in * bits / 8 * out);
  detail::check_gptq_size("qzeros", tensors.qzeros, groups * (out * bits / 8));
  detail::check_gptq_size("scales", tensors.scales, groups * out * 2);
  if (!tensors.g_idx.empty()) {
    detail::check_gptq_size("g_idx", tensors.g_idx, in * 4);
    layer.order = detail::order_of(tensors.g_idx, in, Format::group_columns(in), groups);
  }

  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  layer.scales.resize(at(out * groups));
  if constexpr (Format::has_zero_point) layer.zeros.resize(layer.scales.size());
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < out; ++row) {
      auto const name = [&] { return " of row " + std::to_string(row) + ", group " + std::to_string(group); };
      float16 half;
      std::memcpy(&half, tensors.scales.data() + 2 * at(group * out + row), sizeof half);
      auto const scale = static_cast<float>(half);
      if (!std::isfinite(scale)) {
        throw error("GPTQ checkpoint: the scale" + name() + " is " + std::to_string(scale));
      }
      layer.scales[at(row * groups + group)] = scale;
      int const stored = detail::entry_of(tensors.qzeros, group * (out * bits / 32), 1, row, bits);
      int const zero = version == gptq_version::v1 ? stored + 1 : stored;
      if (zero == 1 << bits) {
        throw error("GPTQ checkpoint: the zero point" + name() + " is stored as " + std::to_string(stored) +
                    ", which version 1 cannot hold; a file of version 2?");
      }
      if constexpr (Format::has_zero_point) {
        layer.zeros[at(row * groups + group)] = static_cast<std::uint8_t>(zero);
      } else if (float const fixed = Format::levels.zero_of({scale, 0}); static_cast<float>(zero) != fixed) {
        throw error("GPTQ checkpoint: the zero point" + name() + " is " + std::to_string(zero) + ", not " +
                    std::to_string(static_cast<int>(fixed)) + " as with sym: true");
      }
    }
  }
  layer.codes.resize(at(out * in));
  for (index_t p = 0; p < in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
    for (index_t row = 0; row < out; ++row) {
      layer.codes[at(row * in + p)] =
          static_cast<std::uint8_t>(detail::entry_of(tensors.qweight, row, out, column, bits));
    }
  }
  return layer;
}

inline std::optional<gptq_version> proven_version(gptq_view const& tensors, int bits, bool symmetric) {
  index_t const row_bytes = tensors.out * bits / 8;
  if ((bits != 2 && bits != 3 && bits != 4 && bits != 8) || tensors.out <= 0 ||
      tensors.out * bits % 32 != 0 || tensors.qzeros.size() % static_cast<std::size_t>(row_bytes) != 0) {
    throw error("GPTQ checkpoint: qzeros of " + std::to_string(tensors.qzeros.size()) +
                " bytes are not rows of " + std::to_string(tensors.out) + " zero points of " +
                std::to_string(bits) + " bits");
  }
  auto const rows = static_cast<index_t>(tensors.qzeros.size()) / row_bytes;
  int const middle = 1 << (bits - 1);
  bool all_v1 = rows > 0;
  bool all_v2 = rows > 0;
  for (index_t group = 0; group < rows; ++group) {
    for (index_t row = 0; row < tensors.out; ++row) {
      int const stored = detail::entry_of(tensors.qzeros, group * (row_bytes / 4), 1, row, bits);
      if (!symmetric && stored == (1 << bits) - 1) return gptq_version::v2;
      all_v1 = all_v1 && stored + 1 == middle;
      all_v2 = all_v2 && stored == middle;
    }
  }
  if (symmetric && all_v1) return gptq_version::v1;
  if (symmetric && all_v2) return gptq_version::v2;
  return std::nullopt;
}

}  // namespace gptq::checkpoint
