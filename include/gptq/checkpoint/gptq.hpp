// The tensors of a GPTQ checkpoint: qweight, qzeros, scales, g_idx.
//
// Codes lie along K in an LSB-first stream of 32-bit words, one stream an output: code k of an output
// occupies bits [k b, k b + b). Zero points lie the same way along N, one stream a group. Version 1
// (checkpoint_format "gptq") stores zero - 1, version 2 ("gptq_v2") the zero itself. Widths 2, 3, 4 and 8.
//
//   auto packed = gptq::checkpoint::to_packed<q4>(tensors, gptq::checkpoint::gptq_version::v1);
//   auto layer = gptq::checkpoint::from_gptq<q4>(tensors, gptq::checkpoint::gptq_version::v1);
//
// Act-order or not, groups are contiguous in both.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gptq/checkpoint/stream.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint {

static_assert(std::endian::native == std::endian::little, "checkpoints are read without swapping bytes");

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
///        OR an unmasked -1 into the word and so destroy the zeros above it. Without it a zero point of 0 is
///        an error.
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

/// Checkpoint tensors on their way into the packed layout, by any number of threads.
template <storage_format Format>
class gptq_packer {
 public:
  /// Reads the scales, zero points and g_idx. The tensors must outlive this object. Throws as from_gptq().
  gptq_packer(gptq_view const& tensors, gptq_version version);

  packed_layout<Format> layout() const { return {tensors_.out, tensors_.in}; }
  /// Original column of each stored one; empty: the same.
  std::vector<std::int32_t> const& order() const { return order_; }
  /// Writes row blocks [first, last) of layout() into arrays as packed_view has them, padding included.
  /// Allocates in * 8 * bits bytes (in * 32 with 3 bits) for a while if columns are reordered or groups are
  /// no whole words of codes, and nothing otherwise.
  void pack(index_t first, index_t last, std::uint8_t* codes, typename Format::scale* scales,
            std::uint8_t* zeros) const;

 private:
  void pack_grids(index_t block, index_t group, typename Format::scale* scales,
                  std::uint8_t* zeros) const noexcept;

  gptq_view tensors_;
  gptq_version version_;
  std::vector<std::int32_t> order_;
};

/// pack(from_gptq<Format>(tensors, version)), without the layer in between.
template <storage_format Format>
packed_matrix<Format> to_packed(gptq_view const& tensors, gptq_version version);
/// The same on several threads, by an executor as gptq/parallel.hpp has them.
template <storage_format Format, class Executor>
packed_matrix<Format> to_packed(gptq_view const& tensors, gptq_version version, Executor&& executor,
                                int parts);

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

/// The word at i of a stream that repeats the number `value` of Bits bits.
template <int Bits>
constexpr std::uint32_t repeated_word(std::uint32_t value, index_t i) {
  std::uint32_t word = 0;
  for (int bit = 0; bit < 32; ++bit) {
    word |= (value >> ((i % Bits * 32 + bit) % Bits) & 1U) << bit;
  }
  return word;
}

/// Zero point, as it is, of a row and group.
template <storage_format Format>
int zero_at(gptq_view const& tensors, gptq_version version, index_t row, index_t group) {
  constexpr index_t bits = Format::bits;
  int const stored = entry_of(tensors.qzeros, group * (tensors.out * bits / 32), 1, row, bits);
  return version == gptq_version::v1 ? stored + 1 : stored;
}

inline float16 scale_at(gptq_view const& tensors, index_t row, index_t group) {
  float16 scale;
  std::memcpy(&scale, tensors.scales.data() + 2 * static_cast<std::size_t>(group * tensors.out + row),
              sizeof scale);
  return scale;
}

/// Whether every scale is finite and every zero point one of the format's: what check_grids() says, without
/// saying which.
template <storage_format Format>
bool grids_fit(gptq_view const& tensors, gptq_version version) {
  constexpr int bits = Format::bits;
  bool finite = true;
  for (std::size_t i = 0; i < tensors.scales.size(); i += 2) {
    std::uint16_t half = 0;
    std::memcpy(&half, tensors.scales.data() + i, sizeof half);
    finite = finite && (half & 0x7c00U) != 0x7c00U;
  }
  if (!finite) return false;
  auto const words = static_cast<index_t>(tensors.qzeros.size() / 4);
  if constexpr (!Format::has_zero_point) {
    // Rows begin at multiples of the period, which is one word but for 3 bits, where rows have multiples of
    // 32 zero points.
    auto const stored =
        static_cast<std::uint32_t>(Format::levels.zero) - (version == gptq_version::v1 ? 1U : 0U);
    std::array<std::uint32_t, Format::bits> expected{};
    for (int i = 0; i < bits; ++i) expected[static_cast<std::size_t>(i)] = repeated_word<bits>(stored, i);
    for (index_t i = 0; i < words; ++i) {
      if (word_at(tensors.qzeros, i) != expected[static_cast<std::size_t>(i % bits)]) return false;
    }
  } else if (version == gptq_version::v1) {
    index_t const entries = words * 32 / bits;
    for (index_t i = 0; i < entries; ++i) {
      if (entry_of(tensors.qzeros, 0, 1, i, bits) == (1 << bits) - 1) return false;
    }
  }
  return true;
}

template <storage_format Format>
void check_grids(gptq_view const& tensors, gptq_version version) {
  if (grids_fit<Format>(tensors, version)) return;
  index_t const groups = Format::groups(tensors.in);
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < tensors.out; ++row) {
      auto const name = [&] { return " of row " + std::to_string(row) + ", group " + std::to_string(group); };
      auto const scale = static_cast<float>(scale_at(tensors, row, group));
      if (!std::isfinite(scale)) {
        throw error("GPTQ checkpoint: the scale" + name() + " is " + std::to_string(scale));
      }
      int const zero = zero_at<Format>(tensors, version, row, group);
      if (zero == 1 << Format::bits) {
        throw error("GPTQ checkpoint: the zero point" + name() + " is stored as " + std::to_string(zero - 1) +
                    ", which version 1 cannot hold; a file of version 2?");
      }
      if (float const fixed = Format::levels.zero;
          !Format::has_zero_point && static_cast<float>(zero) != fixed) {
        throw error("GPTQ checkpoint: the zero point" + name() + " is " + std::to_string(zero) + ", not " +
                    std::to_string(static_cast<int>(fixed)) + " as with sym: true");
      }
    }
  }
}

/// The order of the columns of tensors that are all that the format says they are.
template <storage_format Format>
std::vector<std::int32_t> check_gptq(gptq_view const& tensors, gptq_version version) {
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
  index_t const groups = Format::groups(in);
  check_gptq_size("qweight", tensors.qweight, in * bits / 8 * out);
  check_gptq_size("qzeros", tensors.qzeros, groups * (out * bits / 8));
  check_gptq_size("scales", tensors.scales, groups * out * 2);
  std::vector<std::int32_t> order;
  if (!tensors.g_idx.empty()) {
    check_gptq_size("g_idx", tensors.g_idx, in * 4);
    order = order_of(tensors.g_idx, in, Format::group_columns(in), groups);
  }
  check_grids<Format>(tensors, version);
  return order;
}

/// Units of codes of 32 rows, made of the words of an LSB-first stream a row: consecutive words of a row lie
/// `stride` words apart, and those of rows side by side.
template <int Bits>
struct unit_of_words {
  using unit = gptq::detail::code_unit<Bits>;
  static constexpr int words = unit::columns * Bits / 32;
  struct row_words {
    std::uint32_t of[packed_rows];
  };

  /// Words of `rows` rows, 0 for what is missing to 32.
  GPTQ_INLINE static void load(std::byte const* from, index_t rows, row_words& to) {
    if (rows == packed_rows) {
      std::memcpy(to.of, from, sizeof to.of);
    } else {
      std::memset(to.of, 0, sizeof to.of);
      std::memcpy(to.of, from, static_cast<std::size_t>(4 * rows));
    }
  }

  /// Exchanges the bits of `which` with those `distance` above.
  GPTQ_INLINE static constexpr std::uint32_t exchange(std::uint32_t x, int distance, std::uint32_t which) {
    std::uint32_t const differ = (x ^ x >> distance) & which;
    return x ^ differ ^ differ << distance;
  }
  /// The lowest four numbers of Bits bits, one a byte.
  GPTQ_INLINE static constexpr std::uint32_t spread(std::uint32_t x) {
    x = (x | x << (16 - 2 * Bits)) & 0x00010001U * ((1U << (2 * Bits)) - 1U);
    return (x | x << (8 - Bits)) & 0x01010101U * ((1U << Bits) - 1U);
  }
  /// Columns in order: word[words] -> lane[lanes]. With 2 and 4 bits that is a transposed matrix of codes.
  GPTQ_INLINE static void arrange(std::uint32_t const* word, std::uint32_t* lane) {
    if constexpr (Bits == 8) {
      lane[0] = word[0];
    } else if constexpr (Bits == 4) {
      lane[0] = exchange(exchange(word[0], 8, 0x0000ff00U), 4, 0x00f000f0U);
    } else if constexpr (Bits == 2) {
      lane[0] = exchange(exchange(word[0], 12, 0x0000f0f0U), 6, 0x00cc00ccU);
    } else {
      std::uint32_t four[unit::columns / 4];
      for (int t = 0; t < unit::columns / 4; ++t) {
        int const bit = 4 * Bits * t;
        std::uint32_t x = word[bit / 32] >> (bit % 32);
        if (bit % 32 + 4 * Bits > 32) x |= word[bit / 32 + 1] << (32 - bit % 32);
        four[t] = spread(x & ((1U << (4 * Bits)) - 1U));
      }
      unit::combine(four, lane);
    }
  }

  GPTQ_INLINE static void store(row_words const* lanes, std::uint8_t* to) {
    for (index_t half = 0; half < 2; ++half) {
      for (int l = 0; l < unit::lanes; ++l) {
        stream(to + unit::lane_offset(half * half_block_rows) + 64 * l, lanes[l].of + half * half_block_rows);
      }
    }
  }

  /// A unit whose columns are those of whole words, in order.
  GPTQ_INLINE static void convert(std::byte const* from, index_t stride, index_t rows, std::uint8_t* to) {
    row_words in[words];
    row_words lanes[unit::lanes];
    for (int i = 0; i < words; ++i) load(from + 4 * i * stride, rows, in[i]);
    for (index_t r = 0; r < packed_rows; ++r) {
      std::uint32_t word[words];
      std::uint32_t lane[unit::lanes];
      for (int i = 0; i < words; ++i) word[i] = in[i].of[r];
      arrange(word, lane);
      for (int l = 0; l < unit::lanes; ++l) lanes[l].of[r] = lane[l];
    }
    store(lanes, to);
  }

  /// Columns to a word of a copy, in which no code lies in two words.
  static constexpr index_t copied_columns = Bits == 3 ? 8 : 32 / Bits;
  static constexpr index_t copied_words = unit::columns / copied_columns;

  /// The columns of a unit, to gather from.
  GPTQ_INLINE static void copy(std::byte const* from, index_t stride, index_t rows, row_words* to) {
    if constexpr (Bits == 3) {
      row_words in[words];
      for (int i = 0; i < words; ++i) load(from + 4 * i * stride, rows, in[i]);
      for (index_t r = 0; r < packed_rows; ++r) {
        to[0].of[r] = in[0].of[r];
        to[1].of[r] = in[0].of[r] >> 24 | in[1].of[r] << 8;
        to[2].of[r] = in[1].of[r] >> 16 | in[2].of[r] << 16;
        to[3].of[r] = in[2].of[r] >> 8;
      }
    } else {
      load(from, rows, *to);
    }
  }

  /// A unit of `columns` columns that lie anywhere in a copy: column_of(0..columns-1).
  template <class ColumnOf>
  GPTQ_INLINE static void gather(row_words const* copy, index_t columns, ColumnOf const& column_of,
                                 std::uint8_t* to) {
    row_words four[unit::columns / 4];
    for (int t = 0; t < unit::columns / 4; ++t) {
      row_words const* from[4];
      int turn[4];
      std::uint32_t mask[4];
      for (int j = 0; j < 4; ++j) {
        bool const is_there = 4 * t + j < columns;
        index_t const column = is_there ? column_of(4 * t + j) : 0;
        from[j] = copy + column / copied_columns;
        turn[j] = static_cast<int>(column % copied_columns) * Bits - 8 * j;
        mask[j] = is_there ? ((1U << Bits) - 1U) << (8 * j) : 0U;
      }
      for (index_t r = 0; r < packed_rows; ++r) {
        four[t].of[r] =
            (std::rotr(from[0]->of[r], turn[0]) & mask[0]) | (std::rotr(from[1]->of[r], turn[1]) & mask[1]) |
            (std::rotr(from[2]->of[r], turn[2]) & mask[2]) | (std::rotr(from[3]->of[r], turn[3]) & mask[3]);
      }
    }
    row_words lanes[unit::lanes];
    for (index_t r = 0; r < packed_rows; ++r) {
      std::uint32_t w[unit::columns / 4];
      std::uint32_t lane[unit::lanes];
      for (int t = 0; t < unit::columns / 4; ++t) w[t] = four[t].of[r];
      unit::combine(w, lane);
      for (int l = 0; l < unit::lanes; ++l) lanes[l].of[r] = lane[l];
    }
    store(lanes, to);
  }
};

}  // namespace detail

template <storage_format Format>
quantized_layer<Format> from_gptq(gptq_view const& tensors, gptq_version version) {
  constexpr index_t bits = Format::bits;
  quantized_layer<Format> layer;
  layer.order = detail::check_gptq<Format>(tensors, version);
  index_t const in = layer.in = tensors.in;
  index_t const out = layer.out = tensors.out;
  index_t const groups = layer.groups();
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  layer.scales.resize(at(out * groups));
  if constexpr (Format::has_zero_point) layer.zeros.resize(layer.scales.size());
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < out; ++row) {
      layer.scales[at(row * groups + group)] = static_cast<float>(detail::scale_at(tensors, row, group));
      if constexpr (Format::has_zero_point) {
        layer.zeros[at(row * groups + group)] =
            static_cast<std::uint8_t>(detail::zero_at<Format>(tensors, version, row, group));
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

template <storage_format Format>
gptq_packer<Format>::gptq_packer(gptq_view const& tensors, gptq_version version)
    : tensors_(tensors), version_(version), order_(detail::check_gptq<Format>(tensors, version)) {}

template <storage_format Format>
void gptq_packer<Format>::pack(index_t first, index_t last, std::uint8_t* codes,
                               typename Format::scale* scales, std::uint8_t* zeros) const {
  using units = detail::unit_of_words<Format::bits>;
  constexpr index_t unit_columns = packed_layout<Format>::unit_columns;
  auto const shape = layout();
  // Groups begin with a word, and end with one: the last has whole words because a row has.
  bool const whole_words =
      order_.empty() && (shape.groups() == 1 || shape.group_columns() % unit_columns == 0);
  // Row blocks side by side, so that memory is read in runs of so many times 128 bytes.
  index_t const panel = whole_words ? 4 : 2;
  // Other columns are gathered from a copy: `out` words apart, which often is a power of two, they would
  // drive each other out of the caches.
  index_t const units_of_row = (tensors_.in + unit_columns - 1) / unit_columns;
  index_t const copied = whole_words ? 0 : units_of_row * units::copied_words;
  std::vector<typename units::row_words> copy(static_cast<std::size_t>(panel * copied));
  for (index_t begin = first; begin < last; begin += panel) {
    index_t const end = std::min(begin + panel, last);
    auto const rows_of = [&](index_t block) {
      return std::min(packed_rows, tensors_.out - block * packed_rows);
    };
    // The words of a row lie on pages of their own, which no prefetcher crosses: they are asked for this many
    // words before they are due.
    auto const fetched = [&](index_t block, index_t unit) {
      constexpr index_t ahead = 8;
      std::byte const* const row_block = tensors_.qweight.data() + 4 * block * packed_rows;
      index_t const word = unit * units::words;
      for (index_t w = word + ahead; w < std::min(word + ahead + units::words, units_of_row * units::words);
           ++w) {
        __builtin_prefetch(row_block + 4 * w * tensors_.out);
        __builtin_prefetch(row_block + 4 * (w * tensors_.out + rows_of(block) - 1));
      }
      return row_block + 4 * word * tensors_.out;
    };
    for (index_t unit = 0; unit < units_of_row && copied != 0; ++unit) {
      for (index_t block = begin; block < end; ++block) {
        units::copy(fetched(block, unit), tensors_.out, rows_of(block),
                    copy.data() + (block - begin) * copied + unit * units::copied_words);
      }
    }
    for (index_t group = 0; group < shape.groups(); ++group) {
      for (index_t block = begin; block < end; ++block) pack_grids(block, group, scales, zeros);
      index_t const columns = shape.columns_of(group);
      for (index_t c = 0; c < columns; c += unit_columns) {
        index_t const column = group * shape.group_columns() + c;
        for (index_t block = begin; block < end; ++block) {
          std::uint8_t* const unit =
              codes + shape.code_offset(block, group) + c / unit_columns * packed_layout<Format>::unit_bytes;
          if (whole_words) {
            units::convert(fetched(block, column / unit_columns), tensors_.out, rows_of(block), unit);
          } else {
            units::gather(
                copy.data() + (block - begin) * copied, std::min(unit_columns, columns - c),
                [&](index_t i) {
                  return order_.empty() ? column + i : index_t{order_[static_cast<std::size_t>(column + i)]};
                },
                unit);
          }
        }
      }
    }
  }
  detail::stream_fence();
}

template <storage_format Format>
void gptq_packer<Format>::pack_grids(index_t block, index_t group, typename Format::scale* scales,
                                     std::uint8_t* zeros) const noexcept {
  auto const shape = layout();
  index_t const rows = std::min(packed_rows, tensors_.out - block * packed_rows);
  scales += shape.scale_offset(block, group);
  index_t const copied = std::is_same_v<typename Format::scale, float16> ? rows : 0;
  std::memcpy(scales, tensors_.scales.data() + 2 * (group * tensors_.out + block * packed_rows),
              static_cast<std::size_t>(2 * copied));
  for (index_t r = copied; r < packed_rows; ++r) {
    scales[r] = typename Format::scale(
        r < rows ? static_cast<float>(detail::scale_at(tensors_, block * packed_rows + r, group)) : 0.0F);
  }
  if constexpr (Format::has_zero_point) {
    constexpr index_t bits = Format::bits;
    zeros += shape.zero_offset(block, group);
    if (rows < packed_rows) {
      std::memset(zeros, 0, packed_layout<Format>::zero_tile_bytes);
      for (index_t r = 0; r < rows; ++r) {
        gptq::detail::set_stream_code<Format::bits>(
            zeros, r, detail::zero_at<Format>(tensors_, version_, block * packed_rows + r, group));
      }
      return;
    }
    // The same stream; version 1 lacks a one in every entry, of which none is full.
    index_t const from = group * (tensors_.out * bits / 32) + block * bits;
    std::uint64_t carry = 0;
    for (index_t i = 0; i < bits; ++i) {
      std::uint64_t const one = version_ == gptq_version::v1 ? detail::repeated_word<Format::bits>(1, i) : 0U;
      std::uint64_t const sum = detail::word_at(tensors_.qzeros, from + i) + one + carry;
      auto const word = static_cast<std::uint32_t>(sum);
      carry = sum >> 32;
      std::memcpy(zeros + 4 * i, &word, sizeof word);
    }
  }
}

template <storage_format Format>
packed_matrix<Format> to_packed(gptq_view const& tensors, gptq_version version) {
  auto const here = [](int parts, auto const& work) {
    for (int part = 0; part < parts; ++part) work(part);
  };
  return to_packed<Format>(tensors, version, here, 1);
}

template <storage_format Format, class Executor>
packed_matrix<Format> to_packed(gptq_view const& tensors, gptq_version version, Executor&& executor,
                                int parts) {
  gptq_packer<Format> const packer(tensors, version);
  packed_matrix<Format> packed(tensors.out, tensors.in);
  packed.order() = packer.order();
  index_t const blocks = packer.layout().row_blocks();
  std::atomic<bool> no_memory = false;  // what an executor calls does not throw
  executor(parts, [&](int part) noexcept {
    try {
      packer.pack(blocks * part / parts, blocks * (part + 1) / parts, packed.codes(), packed.scales(),
                  packed.zeros());
    } catch (std::bad_alloc const&) {
      no_memory = true;
    }
  });
  if (no_memory) throw std::bad_alloc();
  return packed;
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
