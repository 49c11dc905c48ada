// Where a code lies: packed weights, made for broadcast-and-dot-product kernels and the same on every CPU.
//
//   auto packed = gptq::pack(layer);                 // owner: aligned memory
//   gptq::packed_view<q4> w = packed.view();         // pointers and a shape: what kernels take
//
// Layout of a matrix of `out` rows and `in` columns (little endian). Rows are cut into blocks of 32, the last
// one padded; columns, in stored order, into the format's groups. A (row block, group) pair owns
//   - codes: units of 32 rows x U columns, the group's last unit padded with code 0. The first half of a unit
//     has the rows 0..15 of the block, the second half the rows 16..31. U and the bytes of a half:
//       4 bits   8 columns    64 bytes   byte 4r+j: column j in the low nibble, column 4+j in the high one
//       2 bits  16 columns    64 bytes   byte 4r+j: column 4t+j in bits 2t..2t+1
//       3 bits  32 columns   192 bytes   three parts of 64 bytes. Byte 4r+j holds, of columns 4t+j,
//                                        part 0: t = 0 in bits 0..2, t = 1 in bits 3..5, the lower
//                                                bits of t = 6 in bits 6..7
//                                        part 1: t = 2, t = 3 and the lower bits of t = 7 likewise
//                                        part 2: t = 4 in bits 0..2, t = 5 in bits 4..6, the top bit
//                                                of t = 6 in bit 3 and of t = 7 in bit 7
//       8 bits   4 columns    64 bytes   byte 4r+j: column j
//     where r is the row in its half and j in 0..3: every 32-bit lane belongs to one row, and each mask of
//     it gives four consecutive columns, as maddubs, vpdpbusd, sdot and AMX tiles want them;
//   - 32 scales, and, with a stored zero point, 32 zeros as an LSB-first stream of codes (4 * bits bytes).
// Codes, scales and zeros are three separate arrays, each ordered by row block, then group, so that codes
// stay aligned to 64 bytes whatever the scales are, and a kernel that works on the rows of a block reads each
// from its first byte to its last. Padding decodes to 0 * scale when its inputs are taken as 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include <gptq/config.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq {

/// Rows that share a block of the packed layout, and those of half a block.
inline constexpr index_t packed_rows = 32;
inline constexpr index_t half_block_rows = 16;

namespace detail {

/// Columns of a unit of codes, and the bytes of one half of its rows.
template <int Bits>
inline constexpr index_t unit_columns = Bits == 3 ? 32 : 32 / Bits;
template <int Bits>
inline constexpr index_t half_unit_bytes = Bits == 3 ? 192 : 64;

}  // namespace detail

/// Sizes and offsets of a packed matrix; see the head of this file. All constexpr, for callers that allocate.
template <storage_format Format>
struct packed_layout {
  index_t out = 0;
  index_t in = 0;

  /// Columns and bytes of a unit of codes.
  static constexpr index_t unit_columns = detail::unit_columns<Format::bits>;
  static constexpr index_t unit_bytes = 2 * detail::half_unit_bytes<Format::bits>;
  /// Bytes of the 32 zeros of a (row block, group) pair.
  static constexpr index_t zero_tile_bytes = Format::has_zero_point ? 4 * Format::bits : 0;

  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t row_blocks() const {
    return (out + packed_rows - 1) / packed_rows;
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t groups() const { return Format::groups(in); }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t group_columns() const { return Format::group_columns(in); }
  /// Columns of one group: group_columns(), or what is left for the last one.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t columns_of(index_t group) const {
    index_t const left = in - group * group_columns();
    return left < group_columns() ? left : group_columns();
  }
  /// Bytes of the codes of a (row block, group) pair of `columns` columns.
  GPTQ_INLINE GPTQ_HOST_DEVICE static constexpr index_t tile_bytes(index_t columns) {
    return (columns + unit_columns - 1) / unit_columns * unit_bytes;
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t row_block_bytes() const {
    return in == 0 ? 0 : (groups() - 1) * tile_bytes(group_columns()) + tile_bytes(columns_of(groups() - 1));
  }

  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t code_bytes() const {
    return row_blocks() * row_block_bytes();
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t scale_count() const {
    return row_blocks() * groups() * packed_rows;
  }
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t zero_bytes() const {
    return row_blocks() * groups() * zero_tile_bytes;
  }

  /// Byte offset of the codes of a (row block, group) pair.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t code_offset(index_t row_block, index_t group) const {
    return row_block * row_block_bytes() + group * tile_bytes(group_columns());
  }
  /// Index of the first of the 32 scales of a (row block, group) pair.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t scale_offset(index_t row_block, index_t group) const {
    return (row_block * groups() + group) * packed_rows;
  }
  /// Byte offset of the zeros of a (row block, group) pair.
  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr index_t zero_offset(index_t row_block, index_t group) const {
    return (row_block * groups() + group) * zero_tile_bytes;
  }
};

/// A packed matrix that somebody else owns. Codes best start at a multiple of 64 bytes, and may start
/// anywhere.
template <storage_format Format>
struct packed_view {
  using format = Format;
  using scale = typename Format::scale;

  std::uint8_t const* codes = nullptr;  ///< layout().code_bytes() bytes
  scale const* scales = nullptr;        ///< layout().scale_count() entries
  std::uint8_t const* zeros = nullptr;  ///< layout().zero_bytes() bytes; null without a stored zero point
  std::int32_t const* order = nullptr;  ///< [in] original column of each stored one; null: the same
  index_t out = 0;                      ///< rows
  index_t in = 0;                       ///< columns

  GPTQ_INLINE GPTQ_HOST_DEVICE constexpr packed_layout<Format> layout() const { return {out, in}; }
  /// The code at (row, stored column).
  GPTQ_HOST_DEVICE int code(index_t row, index_t stored_column) const;
  /// The scale and zero point of (row, group).
  GPTQ_HOST_DEVICE gptq::grid grid(index_t row, index_t group) const;
};

/// Throws gptq::error, naming the first thing wrong, unless kernels can be given this view of memory that
/// comes from elsewhere: pointers where there have to be, scales aligned to their type and finite, order null
/// or a permutation. That the memory is as large as layout() says is the caller's to know.
template <storage_format Format>
void check(packed_view<Format> const& view);

namespace detail {

/// std::allocator with 64-byte alignment: a cache line, and the widest vector.
template <class T>
struct aligned_allocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{64};

  aligned_allocator() = default;
  template <class U>
  constexpr explicit aligned_allocator(aligned_allocator<U> const&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), alignment)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, alignment); }
  bool operator==(aligned_allocator const&) const = default;
};

template <class T>
using aligned_vector = std::vector<T, aligned_allocator<T>>;

}  // namespace detail

/// A packed matrix that owns its memory, aligned to 64 bytes.
template <storage_format Format>
class packed_matrix {
 public:
  packed_matrix() = default;
  /// All codes, scales and zeros 0, columns in their original order. Throws gptq::error on a negative shape.
  packed_matrix(index_t out, index_t in);

  index_t out() const { return out_; }
  index_t in() const { return in_; }
  packed_layout<Format> layout() const { return {out_, in_}; }
  packed_view<Format> view() const;
  /// Bytes of codes, scales, zeros and column order, padding included.
  index_t bytes() const;
  /// Bits a weight, padding included: 8 * bytes() / (out * in).
  double bits_per_weight() const;

  std::uint8_t* codes() { return codes_.data(); }
  typename Format::scale* scales() { return scales_.data(); }
  std::uint8_t* zeros() { return zeros_.data(); }
  /// Empty, or in() entries: a permutation of the columns.
  std::vector<std::int32_t>& order() { return order_; }

 private:
  index_t out_ = 0;
  index_t in_ = 0;
  detail::aligned_vector<std::uint8_t> codes_;
  detail::aligned_vector<typename Format::scale> scales_;
  detail::aligned_vector<std::uint8_t> zeros_;
  std::vector<std::int32_t> order_;
};

/// Packs a layer; check(layer) first, with its errors. unpack(pack(layer).view()) has the same codes, scales,
/// zeros and order.
template <storage_format Format>
packed_matrix<Format> pack(quantized_layer<Format> const& layer);

/// The codes, scales, zeros and order of a packed matrix; the report is empty.
template <storage_format Format>
quantized_layer<Format> unpack(packed_view<Format> const& view);

/// Decodes to float, columns in their original order: weights[out, in]. Exact with float16 scales.
template <storage_format Format>
void dequantize(packed_view<Format> const& view, float* weights);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// The lanes of one row of a unit of codes. Four columns are handled at once, one a byte of a word: shifts
/// never cross bytes because codes are narrower than them, so the byte order of the machine does not matter.
template <int Bits>
struct code_unit {
  static constexpr int lanes = Bits == 3 ? 3 : 1;
  static constexpr int columns = static_cast<int>(unit_columns<Bits>);
  static constexpr index_t bytes = 2 * half_unit_bytes<Bits>;

  /// From the start of a unit to the first lane of a row of its block; the others follow 64 bytes apart.
  GPTQ_HOST_DEVICE static constexpr index_t lane_offset(index_t row) {
    return row / half_block_rows * half_unit_bytes<Bits> + row % half_block_rows * 4;
  }

  static std::uint32_t four(std::uint8_t const* codes) {
    std::uint32_t word;
    std::memcpy(&word, codes, 4);
    return word;
  }

  /// Columns 4t..4t+3 in the bytes of w[t] -> lane[lanes]
  GPTQ_INLINE static void combine(std::uint32_t const* w, std::uint32_t* lane) {
    if constexpr (Bits == 3) {
      lane[0] = w[0] | w[1] << 3 | (w[6] & 0x03030303u) << 6;
      lane[1] = w[2] | w[3] << 3 | (w[7] & 0x03030303u) << 6;
      lane[2] = w[4] | w[5] << 4 | (w[6] & 0x04040404u) << 1 | (w[7] & 0x04040404u) << 5;
    } else {
      lane[0] = 0;
      for (int t = 0; t < 8 / Bits; ++t) lane[0] |= w[t] << (Bits * t);
    }
  }

  /// codes[columns] -> lane[lanes]
  static void pack(std::uint8_t const* codes, std::uint32_t* lane) {
    std::uint32_t w[columns / 4];
    for (int t = 0; t < columns / 4; ++t) w[t] = four(codes + 4 * t);
    combine(w, lane);
  }

  /// The codes of columns 4t..4t+3, one a byte.
  GPTQ_HOST_DEVICE static std::uint32_t four(std::uint32_t const* lane, int t) {
    constexpr std::uint32_t mask = 0x01010101u * ((1u << Bits) - 1u);
    if constexpr (Bits != 3) return (lane[0] >> (Bits * t)) & mask;
    switch (t) {
      case 6:
        return ((lane[0] >> 6) & 0x03030303u) | ((lane[2] >> 1) & 0x04040404u);
      case 7:
        return ((lane[1] >> 6) & 0x03030303u) | ((lane[2] >> 5) & 0x04040404u);
      default:
        return (lane[t / 2] >> (t % 2 * (t == 5 ? 4 : 3))) & mask;
    }
  }

  /// lane[lanes] -> codes[columns]
  static void unpack(std::uint32_t const* lane, std::uint8_t* codes) {
    for (int t = 0; t < columns / 4; ++t) {
      std::uint32_t const word = four(lane, t);
      std::memcpy(codes + 4 * t, &word, 4);
    }
  }
};

/// The codes of one row of a (row block, group) pair: tile[row of the block] -> codes[columns].
template <int Bits>
void unpack_row(std::uint8_t const* tile, index_t row, index_t columns, std::uint8_t* codes) {
  using unit = code_unit<Bits>;
  tile += unit::lane_offset(row);
  for (index_t first = 0; first < columns; first += unit::columns, tile += unit::bytes) {
    std::uint32_t lane[unit::lanes];
    for (int l = 0; l < unit::lanes; ++l) std::memcpy(&lane[l], tile + 64 * l, 4);
    if (first + unit::columns <= columns) {
      unit::unpack(lane, codes + first);
    } else {
      std::uint8_t padded[unit::columns];
      unit::unpack(lane, padded);
      std::memcpy(codes + first, padded, static_cast<std::size_t>(columns - first));
    }
  }
}

template <int Bits>
void pack_row(std::uint8_t const* codes, index_t columns, index_t row, std::uint8_t* tile) {
  using unit = code_unit<Bits>;
  tile += unit::lane_offset(row);
  for (index_t first = 0; first < columns; first += unit::columns, tile += unit::bytes) {
    std::uint32_t lane[unit::lanes];
    if (first + unit::columns <= columns) {
      unit::pack(codes + first, lane);
    } else {
      std::uint8_t padded[unit::columns] = {};
      std::memcpy(padded, codes + first, static_cast<std::size_t>(columns - first));
      unit::pack(padded, lane);
    }
    for (int l = 0; l < unit::lanes; ++l) std::memcpy(tile + 64 * l, &lane[l], 4);
  }
}

/// Entry r of an LSB-first stream of codes. A 3-bit entry may straddle two bytes.
template <int Bits>
GPTQ_INLINE GPTQ_HOST_DEVICE int stream_code(std::uint8_t const* stream, index_t r) {
  index_t const bit = r * Bits;
  int word = stream[bit / 8];
  if (bit % 8 + Bits > 8) word |= stream[bit / 8 + 1] << 8;
  return (word >> (bit % 8)) & ((1 << Bits) - 1);
}

/// Sets entry r of a zeroed LSB-first stream of codes.
template <int Bits>
void set_stream_code(std::uint8_t* stream, index_t r, int code) {
  index_t const bit = r * Bits;
  int const word = code << (bit % 8);
  stream[bit / 8] = static_cast<std::uint8_t>(stream[bit / 8] | (word & 0xff));
  if (bit % 8 + Bits > 8) stream[bit / 8 + 1] = static_cast<std::uint8_t>(stream[bit / 8 + 1] | (word >> 8));
}

}  // namespace detail

template <storage_format Format>
GPTQ_HOST_DEVICE int packed_view<Format>::code(index_t row, index_t stored_column) const {
  using unit = detail::code_unit<Format::bits>;
  auto const shape = layout();
  index_t const group = stored_column / shape.group_columns();
  index_t const column = stored_column % shape.group_columns();
  std::uint8_t const* const tile = codes + shape.code_offset(row / packed_rows, group) +
                                   column / unit::columns * unit::bytes +
                                   unit::lane_offset(row % packed_rows);
  std::uint32_t lane[unit::lanes];
  for (int l = 0; l < unit::lanes; ++l) std::memcpy(&lane[l], tile + 64 * l, 4);
  std::uint32_t const word = unit::four(lane, static_cast<int>(column % unit::columns / 4));
  std::uint8_t of_columns[4];
  std::memcpy(of_columns, &word, 4);
  return of_columns[column % 4];
}

template <storage_format Format>
GPTQ_HOST_DEVICE grid packed_view<Format>::grid(index_t row, index_t group) const {
  auto const shape = layout();
  index_t const block = row / packed_rows;
  float const value = scales[shape.scale_offset(block, group) + row % packed_rows];
  if constexpr (Format::has_zero_point) {
    return {value,
            detail::stream_code<Format::bits>(zeros + shape.zero_offset(block, group), row % packed_rows)};
  } else {
    return {value, 0};
  }
}

template <storage_format Format>
packed_matrix<Format>::packed_matrix(index_t out, index_t in) : out_(out), in_(in) {
  if (out < 0 || in < 0) {
    throw error("packed matrix: shape " + std::to_string(out) + " x " + std::to_string(in) + " is negative");
  }
  codes_.resize(static_cast<std::size_t>(layout().code_bytes()));
  scales_.resize(static_cast<std::size_t>(layout().scale_count()), typename Format::scale(0.0F));
  zeros_.resize(static_cast<std::size_t>(layout().zero_bytes()));
}

template <storage_format Format>
packed_view<Format> packed_matrix<Format>::view() const {
  return {codes_.data(),
          scales_.data(),
          Format::has_zero_point ? zeros_.data() : nullptr,
          order_.empty() ? nullptr : order_.data(),
          out_,
          in_};
}

template <storage_format Format>
index_t packed_matrix<Format>::bytes() const {
  return static_cast<index_t>(codes_.size() + scales_.size() * sizeof(typename Format::scale) +
                              zeros_.size() + order_.size() * sizeof(std::int32_t));
}

template <storage_format Format>
double packed_matrix<Format>::bits_per_weight() const {
  return out_ * in_ == 0 ? 0.0 : 8.0 * static_cast<double>(bytes()) / static_cast<double>(out_ * in_);
}

template <storage_format Format>
void check(packed_view<Format> const& view) {
  auto const fail = [](std::string const& what) { throw error("packed matrix: " + what); };
  if (view.out < 0 || view.in < 0) {
    fail("a shape of " + std::to_string(view.out) + " x " + std::to_string(view.in));
  }
  if (view.out == 0 || view.in == 0) return;
  if (view.codes == nullptr) fail("no codes");
  if (view.scales == nullptr) fail("no scales");
  if (Format::has_zero_point && view.zeros == nullptr) fail("no zero points");
  if (reinterpret_cast<std::uintptr_t>(view.scales) % alignof(typename Format::scale) != 0) {
    fail("scales at an address that is no multiple of " + std::to_string(alignof(typename Format::scale)));
  }
  if (view.order != nullptr) {
    if (reinterpret_cast<std::uintptr_t>(view.order) % alignof(std::int32_t) != 0) {
      fail("a column order at an address that is no multiple of 4");
    }
    detail::check_permutation(view.order, view.in);
  }
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t group = 0; group < view.layout().groups(); ++group) {
      float const scale = view.grid(row, group).scale;
      if (!std::isfinite(scale)) {
        fail("the scale of row " + std::to_string(row) + ", group " + std::to_string(group) + " is " +
             std::to_string(scale));
      }
    }
  }
}

template <storage_format Format>
packed_matrix<Format> pack(quantized_layer<Format> const& layer) {
  check(layer);
  packed_matrix<Format> packed(layer.out, layer.in);
  packed.order() = layer.order;
  auto const shape = packed.layout();
  for (index_t row = 0; row < layer.out; ++row) {
    index_t const block = row / packed_rows;
    index_t const row_in_block = row % packed_rows;
    for (index_t group = 0; group < shape.groups(); ++group) {
      detail::pack_row<Format::bits>(layer.codes.data() + row * layer.in + group * shape.group_columns(),
                                     shape.columns_of(group), row_in_block,
                                     packed.codes() + shape.code_offset(block, group));
      gptq::grid const g = layer.grid(row, group);
      packed.scales()[shape.scale_offset(block, group) + row_in_block] = typename Format::scale(g.scale);
      if constexpr (Format::has_zero_point) {
        detail::set_stream_code<Format::bits>(packed.zeros() + shape.zero_offset(block, group), row_in_block,
                                              g.zero);
      }
    }
  }
  return packed;
}

template <storage_format Format>
quantized_layer<Format> unpack(packed_view<Format> const& view) {
  auto const shape = view.layout();
  quantized_layer<Format> layer;
  layer.out = view.out;
  layer.in = view.in;
  layer.codes.resize(static_cast<std::size_t>(view.out * view.in));
  layer.scales.resize(static_cast<std::size_t>(view.out * shape.groups()));
  layer.zeros.resize(Format::has_zero_point ? layer.scales.size() : 0);
  if (view.order != nullptr) layer.order.assign(view.order, view.order + view.in);
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t group = 0; group < shape.groups(); ++group) {
      detail::unpack_row<Format::bits>(view.codes + shape.code_offset(row / packed_rows, group),
                                       row % packed_rows, shape.columns_of(group),
                                       layer.codes.data() + row * view.in + group * shape.group_columns());
      gptq::grid const g = view.grid(row, group);
      auto const at = static_cast<std::size_t>(row * shape.groups() + group);
      layer.scales[at] = g.scale;
      if (Format::has_zero_point) layer.zeros[at] = static_cast<std::uint8_t>(g.zero);
    }
  }
  return layer;
}

template <storage_format Format>
void dequantize(packed_view<Format> const& view, float* weights) {
  auto const shape = view.layout();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(shape.group_columns()));
  for (index_t row = 0; row < view.out; ++row) {
    float* const target = weights + row * view.in;
    for (index_t group = 0; group < shape.groups(); ++group) {
      index_t const first = group * shape.group_columns();
      index_t const columns = shape.columns_of(group);
      detail::unpack_row<Format::bits>(view.codes + shape.code_offset(row / packed_rows, group),
                                       row % packed_rows, columns, codes.data());
      gptq::grid const g = view.grid(row, group);
      for (index_t c = 0; c < columns; ++c) {
        index_t const column = view.order == nullptr ? first + c : view.order[first + c];
        target[column] = Format::levels.decode(codes[static_cast<std::size_t>(c)], g);
      }
    }
  }
}

}  // namespace gptq
