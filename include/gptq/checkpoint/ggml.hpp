// The element types of GGUF files: what ggml calls them, what their blocks hold, and which of them hold what
// this library quantizes.
//
//   std::vector<float> row(tensor.shape[1]);
//   gptq::checkpoint::to_float(tensor, 0, row);                                   // the first row, decoded
//   auto packed = gptq::checkpoint::to_packed<gptq::format<gptq::fixed_zero, 4, 32>>(tensor);      // Q4_0
//   std::vector<std::byte> blocks = gptq::checkpoint::to_ggml(layer, ggml_type::q4_0);
//
// A row is a whole number of blocks, each with scales of its own (little endian, d and m in float16):
//   Q4_0  32 weights  18 bytes   d, 16 bytes: byte j has element j in its low nibble, j+16 in the high one
//                                d (q - 8)
//   Q4_1  32          20         d, m, the same nibbles; d q + m
//   Q5_0  32          22         d, 32 fifth bits, nibbles as Q4_0; d (q - 16)
//   Q5_1  32          24         d, m, 32 fifth bits, nibbles; d q + m
//   Q8_0  32          34         d, 32 int8; d q
//   Q4_K  256         144        d, dmin, 8 scales and 8 minima of 6 bits in 12 bytes, 128 bytes of nibbles;
//                                d scale q - dmin minimum, for runs of 32
//   Q6_K  256         210        128 bytes of nibbles, 64 of upper bits, 16 int8 scales, d;
//                                d scale (q - 32), for runs of 16
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint {

static_assert(std::endian::native == std::endian::little, "GGUF files are read without swapping bytes");

/// Element types, with their numbers in a file.
enum class ggml_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39
};

/// As ggml writes it: "F32", "Q4_0", ...
std::string_view name_of(ggml_type type);
/// Elements of a block, and its bytes; 1 element for types that are not quantized.
std::size_t block_size(ggml_type type);
std::size_t block_bytes(ggml_type type);
/// Whether to_float() decodes it: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K and Q6_K.
bool is_decodable(ggml_type type);

/// A tensor whose bytes somebody else owns: row-major (the last extent is that of a row, which files name
/// first), aligned to nothing.
struct ggml_tensor {
  ggml_type type = ggml_type::f32;
  std::vector<std::size_t> shape;
  std::span<std::byte const> bytes;
};

/// "Q4_0 [768, 288]"
std::string to_string(ggml_tensor const& tensor);

/// Decodes elements [first, first + out.size()), both multiples of block_size(). Exact, but for the sum of
/// Q4_1, Q5_1 and Q4_K and the product of Q6_K, which are rounded to float once. Throws gptq::error for
/// types that are not decodable and for elements that the tensor does not have.
void to_float(ggml_tensor const& tensor, std::size_t first, std::span<float> out);
/// All elements.
std::vector<float> to_float(ggml_tensor const& tensor);

/// Encodes a whole number of blocks as F32, F16, BF16 or Q8_0, rounded to nearest; Q8_0 as ggml does it:
/// scale amax / 127, halves away from zero. Throws gptq::error for other types, and for a value beyond the
/// type's range, naming its position.
std::vector<std::byte> from_float(ggml_type type, std::span<float const> values);

/// A tensor of whole rows of Q4_0, Q4_1 or Q8_0 blocks as a packed matrix of a format with groups of 32: the
/// same levels, scales and zero points, so the same weights (for Q4_1 to the float16 rounding of m).
/// @throws gptq::error, naming row and block, for a level that the format does not have, a minimum that
///   belongs to none of its zero points, and a scale that is not finite
template <storage_format Format>
packed_matrix<Format> to_packed(ggml_tensor const& tensor);

/// The smallest of Q4_0, Q4_1 and Q8_0 whose blocks hold these levels; nothing when none does.
std::optional<ggml_type> type_for(code_levels const& levels);

/// Throws gptq::error, with the reason and the nearest type that can, unless blocks of `type` (Q4_0, Q4_1 or
/// Q8_0) hold levels in groups of `group_size` columns, or of whole rows.
void check_type(ggml_type type, code_levels const& levels, int group_size);

/// The blocks of a layer, row after row, one scale for each 32 columns. Codes and scales are stored as they
/// are (float32 scales rounded to float16); the minimum of Q4_1 is -zero scale in float16, so that a group's
/// weights move by at most half a unit in its last place.
/// @throws gptq::error as check_type(); when columns are reordered, for which GGUF has no place; when rows
///   are not whole blocks; and when a scale or minimum is beyond float16
template <storage_format Format>
std::vector<std::byte> to_ggml(quantized_layer<Format> const& layer, ggml_type type);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

inline float half_at(std::byte const* p) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, p, 2);
  return float16::from_bits(bits);
}
inline int byte_at(std::byte const* p) { return std::to_integer<int>(*p); }
inline int signed_byte_at(std::byte const* p) { return static_cast<std::int8_t>(byte_at(p)); }

// A block of each decodable type: its size, its bytes, and how it is decoded.

template <class Stored>
struct plain_block {
  static constexpr std::size_t size = 1;
  static constexpr std::size_t bytes = sizeof(Stored);
  static void decode(std::byte const* p, float* y) {
    Stored value;
    std::memcpy(&value, p, bytes);
    *y = static_cast<float>(value);
  }
};

/// 32 codes of 4 or 5 bits; with a minimum, or around the middle code.
template <int Bits, bool HasMinimum>
struct nibble_block {
  static constexpr std::size_t size = 32;
  static constexpr std::size_t fifth_bits_at = HasMinimum ? 4 : 2;
  static constexpr std::size_t nibbles_at = fifth_bits_at + (Bits == 5 ? 4 : 0);
  static constexpr std::size_t bytes = nibbles_at + 16;

  static float scale(std::byte const* p) { return half_at(p); }
  static float minimum(std::byte const* p) { return HasMinimum ? half_at(p + 2) : 0.0F; }
  /// codes[32], in the order of the weights
  static void codes(std::byte const* p, std::uint8_t* q) {
    std::uint32_t fifth = 0;
    if constexpr (Bits == 5) std::memcpy(&fifth, p + fifth_bits_at, 4);
    for (std::size_t j = 0; j < 16; ++j) {
      int const pair = byte_at(p + nibbles_at + j);
      q[j] = static_cast<std::uint8_t>((pair & 15) | static_cast<int>(fifth >> j & 1U) << 4);
      q[j + 16] = static_cast<std::uint8_t>(pair >> 4 | static_cast<int>(fifth >> (j + 16) & 1U) << 4);
    }
  }
  static void decode(std::byte const* p, float* y) {
    std::uint8_t q[size];
    codes(p, q);
    float const d = scale(p);
    float const m = minimum(p);
    constexpr int middle = HasMinimum ? 0 : 1 << (Bits - 1);
    for (std::size_t j = 0; j < size; ++j) {
      float const product = d * static_cast<float>(int{q[j]} - middle);
      y[j] = HasMinimum ? product + m : product;
    }
  }
};

struct q8_0_block {
  static constexpr std::size_t size = 32;
  static constexpr std::size_t bytes = 34;
  static void decode(std::byte const* p, float* y) {
    float const d = half_at(p);
    for (std::size_t j = 0; j < size; ++j) y[j] = d * static_cast<float>(signed_byte_at(p + 2 + j));
  }
};

struct q4_k_block {
  static constexpr std::size_t size = 256;
  static constexpr std::size_t bytes = 144;
  static void decode(std::byte const* p, float* y) {
    float const d = half_at(p);
    float const d_min = half_at(p + 2);
    std::byte const* const packed = p + 4;
    // Runs 0..3 have their 6 bits together; the upper two of runs 4..7 lie above those.
    auto const six_bits = [&](std::size_t run, std::size_t which) {
      if (run < 4) return byte_at(packed + run + 4 * which) & 63;
      int const low = byte_at(packed + run + 4) >> (4 * which) & 15;
      return low | byte_at(packed + run - 4 + 4 * which) >> 6 << 4;
    };
    for (std::size_t run = 0; run < 8; ++run) {
      float const scale = d * static_cast<float>(six_bits(run, 0));
      float const minimum = d_min * static_cast<float>(six_bits(run, 1));
      std::byte const* const nibbles = p + 16 + run / 2 * 32;
      for (std::size_t j = 0; j < 32; ++j) {
        int const q = byte_at(nibbles + j) >> (run % 2 * 4) & 15;
        y[32 * run + j] = scale * static_cast<float>(q) - minimum;
      }
    }
  }
};

struct q6_k_block {
  static constexpr std::size_t size = 256;
  static constexpr std::size_t bytes = 210;
  static void decode(std::byte const* p, float* y) {
    float const d = half_at(p + 208);
    // Each half of 128: quarters of 32 share 64 bytes of nibbles and 32 bytes of two upper bits.
    for (std::size_t i = 0; i < size; ++i) {
      std::size_t const half = i / 128;
      std::size_t const quarter = i % 128 / 32;
      std::size_t const j = i % 32;
      int const low = byte_at(p + 64 * half + 32 * (quarter % 2) + j) >> (quarter / 2 * 4) & 15;
      int const high = byte_at(p + 128 + 32 * half + j) >> (2 * quarter) & 3;
      float const scale = d * static_cast<float>(signed_byte_at(p + 192 + i / 16));
      y[i] = scale * static_cast<float>((low | high << 4) - 32);
    }
  }
};

template <class Block>
void decode_blocks(std::span<std::byte const> blocks, float* y) {
  for (; !blocks.empty(); blocks = blocks.subspan(Block::bytes), y += Block::size) {
    Block::decode(blocks.data(), y);
  }
}

using q4_0_block = nibble_block<4, false>;
using q4_1_block = nibble_block<4, true>;

struct ggml_entry {
  ggml_type type;
  std::string_view name;
  std::size_t block_size;
  std::size_t block_bytes;
  void (*decode)(std::span<std::byte const>, float*) = nullptr;
};

template <class Block>
constexpr ggml_entry decodable(ggml_type type, std::string_view name) {
  return {type, name, Block::size, Block::bytes, decode_blocks<Block>};
}

// Sizes of the types that are only listed are those of ggml's own table.
inline constexpr std::array ggml_types{decodable<plain_block<float>>(ggml_type::f32, "F32"),
                                       decodable<plain_block<float16>>(ggml_type::f16, "F16"),
                                       decodable<q4_0_block>(ggml_type::q4_0, "Q4_0"),
                                       decodable<q4_1_block>(ggml_type::q4_1, "Q4_1"),
                                       decodable<nibble_block<5, false>>(ggml_type::q5_0, "Q5_0"),
                                       decodable<nibble_block<5, true>>(ggml_type::q5_1, "Q5_1"),
                                       decodable<q8_0_block>(ggml_type::q8_0, "Q8_0"),
                                       decodable<q4_k_block>(ggml_type::q4_k, "Q4_K"),
                                       decodable<q6_k_block>(ggml_type::q6_k, "Q6_K"),
                                       decodable<plain_block<bfloat16>>(ggml_type::bf16, "BF16"),
                                       ggml_entry{ggml_type::q8_1, "Q8_1", 32, 36},
                                       ggml_entry{ggml_type::q2_k, "Q2_K", 256, 84},
                                       ggml_entry{ggml_type::q3_k, "Q3_K", 256, 110},
                                       ggml_entry{ggml_type::q5_k, "Q5_K", 256, 176},
                                       ggml_entry{ggml_type::q8_k, "Q8_K", 256, 292},
                                       ggml_entry{ggml_type::iq2_xxs, "IQ2_XXS", 256, 66},
                                       ggml_entry{ggml_type::iq2_xs, "IQ2_XS", 256, 74},
                                       ggml_entry{ggml_type::iq3_xxs, "IQ3_XXS", 256, 98},
                                       ggml_entry{ggml_type::iq1_s, "IQ1_S", 256, 50},
                                       ggml_entry{ggml_type::iq4_nl, "IQ4_NL", 32, 18},
                                       ggml_entry{ggml_type::iq3_s, "IQ3_S", 256, 110},
                                       ggml_entry{ggml_type::iq2_s, "IQ2_S", 256, 82},
                                       ggml_entry{ggml_type::iq4_xs, "IQ4_XS", 256, 136},
                                       ggml_entry{ggml_type::i8, "I8", 1, 1},
                                       ggml_entry{ggml_type::i16, "I16", 1, 2},
                                       ggml_entry{ggml_type::i32, "I32", 1, 4},
                                       ggml_entry{ggml_type::i64, "I64", 1, 8},
                                       ggml_entry{ggml_type::f64, "F64", 1, 8},
                                       ggml_entry{ggml_type::iq1_m, "IQ1_M", 256, 56},
                                       ggml_entry{ggml_type::tq1_0, "TQ1_0", 256, 54},
                                       ggml_entry{ggml_type::tq2_0, "TQ2_0", 256, 66},
                                       ggml_entry{ggml_type::mxfp4, "MXFP4", 32, 17}};

/// Null for a number that is no type.
inline ggml_entry const* find_type(ggml_type type) {
  auto const* const found = std::find_if(ggml_types.begin(), ggml_types.end(),
                                         [&](ggml_entry const& entry) { return entry.type == type; });
  return found == ggml_types.end() ? nullptr : found;
}

inline ggml_entry const& entry_of(ggml_type type) {
  auto const* const entry = find_type(type);
  if (entry == nullptr) {
    throw error("ggml type " + std::to_string(static_cast<std::uint32_t>(type)) + " is not known");
  }
  return *entry;
}

/// Bytes of a tensor, or why there is no such tensor.
inline std::size_t byte_count(ggml_type type, std::span<std::size_t const> shape, std::string const& where) {
  ggml_entry const& entry = entry_of(type);
  std::size_t const row = shape.empty() ? 1 : shape.back();
  if (row % entry.block_size != 0) {
    throw error(where + ": rows of " + std::to_string(row) + " elements are no whole blocks of " +
                std::to_string(entry.block_size) + ", as " + std::string(entry.name) + " has them");
  }
  if (std::find(shape.begin(), shape.end(), std::size_t{0}) != shape.end()) return 0;
  std::size_t bytes = row / entry.block_size;
  if (__builtin_mul_overflow(bytes, entry.block_bytes, &bytes)) throw error(where + ": its shape overflows");
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) {
    if (__builtin_mul_overflow(bytes, shape[i], &bytes)) throw error(where + ": its shape overflows");
  }
  return bytes;
}

inline void put_half(std::byte* p, float value) {
  auto const bits = float16(value).bits;
  std::memcpy(p, &bits, 2);
}

template <class Stored>
void encode_plain(std::span<float const> values, std::byte* out) {
  for (std::size_t i = 0; i < values.size(); ++i, out += sizeof(Stored)) {
    auto const stored = static_cast<Stored>(values[i]);
    if (std::isfinite(values[i]) && !std::isfinite(static_cast<float>(stored))) {
      throw error("value " + std::to_string(i) + " is " + std::to_string(values[i]) +
                  ", beyond its new type's range");
    }
    std::memcpy(out, &stored, sizeof(Stored));
  }
}

inline void encode_q8_0(std::span<float const> values, std::byte* out) {
  for (std::size_t first = 0; first < values.size(); first += q8_0_block::size, out += q8_0_block::bytes) {
    auto const block = values.subspan(first, q8_0_block::size);
    float amax = 0.0F;
    for (float const x : block) {
      if (!std::isfinite(x)) throw error("value " + std::to_string(first) + " and on: not finite");
      amax = std::max(amax, std::abs(x));
    }
    float const d = amax / 127.0F;
    if (!std::isfinite(static_cast<float>(float16(d)))) {
      throw error("value " + std::to_string(first) + " and on: a scale of " + std::to_string(d) +
                  " is beyond float16");
    }
    float const inverse = d != 0.0F ? 1.0F / d : 0.0F;
    put_half(out, d);
    for (std::size_t j = 0; j < block.size(); ++j) {
      auto const q = static_cast<int>(std::clamp(std::round(block[j] * inverse), -127.0F, 127.0F));
      out[2 + j] = static_cast<std::byte>(q & 0xff);
    }
  }
}

/// The level of code 0 and that of the last code of a type to be written; d (q + first) or, with a minimum,
/// d q + m.
struct written_type {
  ggml_type type;
  int lowest;
  int highest;
  bool has_minimum;

  bool holds(code_levels const& levels) const {
    int const zero = has_minimum ? 0 : static_cast<int>(levels.zero);
    return (has_minimum || !(levels.has_zero_point || levels.is_half_step())) &&
           levels.min_code - zero >= lowest && levels.max_code - zero <= highest;
  }
};
inline constexpr std::array<written_type, 3> written_types{
    {{ggml_type::q4_0, -8, 7, false}, {ggml_type::q4_1, 0, 15, true}, {ggml_type::q8_0, -128, 127, false}}};

inline written_type const& find_written(ggml_type type) {
  auto const* const found = std::find_if(written_types.begin(), written_types.end(),
                                         [&](written_type const& t) { return t.type == type; });
  if (found == written_types.end()) {
    throw error(std::string(name_of(type)) + " is not for codes: Q4_0, Q4_1 and Q8_0 are");
  }
  return *found;
}

/// A block of codes that are packed into `Format`.
struct block_grid {
  float scale = 0.0F;
  float minimum = 0.0F;
  std::array<int, 32> codes{};  ///< weight = scale * code + minimum
};

inline block_grid block_of(ggml_type type, std::byte const* p) {
  block_grid block{half_at(p), 0.0F, {}};
  if (type == ggml_type::q8_0) {
    for (std::size_t j = 0; j < 32; ++j) block.codes[j] = signed_byte_at(p + 2 + j);
    return block;
  }
  std::array<std::uint8_t, 32> q{};
  if (type == ggml_type::q4_0) {
    q4_0_block::codes(p, q.data());
  } else {
    q4_1_block::codes(p, q.data());
    block.minimum = q4_1_block::minimum(p);
  }
  int const middle = type == ggml_type::q4_0 ? 8 : 0;
  for (std::size_t j = 0; j < 32; ++j) block.codes[j] = q[j] - middle;
  return block;
}

/// What to add to a block's codes to make them the format's, and the group's zero point.
struct code_shift {
  int shift;
  int zero;
};

/// Nothing when the format has no such zero point.
template <storage_format Format>
std::optional<code_shift> shift_of(ggml_type type, block_grid const& block) {
  constexpr code_levels levels = Format::levels;
  if (type != ggml_type::q4_1) {
    if constexpr (Format::levels.is_half_step()) return std::nullopt;
    constexpr int zero =
        Format::has_zero_point ? 1 << (Format::bits - 1) : static_cast<int>(Format::levels.zero);
    return code_shift{zero, zero};
  }
  float zero = levels.zero;
  if constexpr (Format::has_zero_point) {
    zero = block.scale == 0.0F ? 0.0F : std::round(-block.minimum / block.scale);
    if (!(zero >= 0.0F && zero < static_cast<float>(1 << Format::bits))) return std::nullopt;
  }
  if (static_cast<float>(float16(-zero * block.scale)) != block.minimum) return std::nullopt;
  return code_shift{0, Format::has_zero_point ? static_cast<int>(zero) : 0};
}

}  // namespace detail

inline std::string_view name_of(ggml_type type) { return detail::entry_of(type).name; }
inline std::size_t block_size(ggml_type type) { return detail::entry_of(type).block_size; }
inline std::size_t block_bytes(ggml_type type) { return detail::entry_of(type).block_bytes; }
inline bool is_decodable(ggml_type type) { return detail::entry_of(type).decode != nullptr; }

inline std::string to_string(ggml_tensor const& tensor) {
  std::string text(name_of(tensor.type));
  text += " [";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(tensor.shape[i]);
  }
  return text + "]";
}

inline void to_float(ggml_tensor const& tensor, std::size_t first, std::span<float> out) {
  auto const& [type, name, size, bytes, decode] = detail::entry_of(tensor.type);
  if (decode == nullptr) throw error("tensor " + to_string(tensor) + " cannot be read as numbers");
  if (first % size != 0 || out.size() % size != 0) {
    throw error("tensor " + to_string(tensor) + " is decoded in whole blocks of " + std::to_string(size));
  }
  std::size_t const blocks = tensor.bytes.size() / bytes;
  if (first / size > blocks || out.size() / size > blocks - first / size) {
    throw error("tensor " + to_string(tensor) + " has no elements " + std::to_string(first) + " to " +
                std::to_string(first + out.size()));
  }
  decode(tensor.bytes.subspan(first / size * bytes, out.size() / size * bytes), out.data());
}

inline std::vector<float> to_float(ggml_tensor const& tensor) {
  detail::ggml_entry const& entry = detail::entry_of(tensor.type);
  std::vector<float> values(tensor.bytes.size() / entry.block_bytes * entry.block_size);
  to_float(tensor, 0, values);
  return values;
}

inline std::vector<std::byte> from_float(ggml_type type, std::span<float const> values) {
  detail::ggml_entry const& entry = detail::entry_of(type);
  if (values.size() % entry.block_size != 0) {
    throw error(std::to_string(values.size()) + " values are no whole blocks of " + std::string(entry.name));
  }
  std::vector<std::byte> bytes(values.size() / entry.block_size * entry.block_bytes);
  switch (type) {
    case ggml_type::f32:
      detail::encode_plain<float>(values, bytes.data());
      break;
    case ggml_type::f16:
      detail::encode_plain<float16>(values, bytes.data());
      break;
    case ggml_type::bf16:
      detail::encode_plain<bfloat16>(values, bytes.data());
      break;
    case ggml_type::q8_0:
      detail::encode_q8_0(values, bytes.data());
      break;
    default:
      throw error("values cannot be written as " + std::string(entry.name) +
                  ": only as F32, F16, BF16 and Q8_0");
  }
  return bytes;
}

inline std::optional<ggml_type> type_for(code_levels const& levels) {
  for (detail::written_type const& t : detail::written_types) {
    if (t.holds(levels)) return t.type;
  }
  return std::nullopt;
}

inline void check_type(ggml_type type, code_levels const& levels, int group_size) {
  detail::written_type const& written = detail::find_written(type);
  std::string const name(name_of(type));
  if (!written.holds(levels)) {
    std::string reason;
    if (!written.has_minimum && levels.has_zero_point) {
      reason = "it has no zero points";
    } else if (!written.has_minimum && levels.is_half_step()) {
      reason = "its zero is one of the codes, the scheme's lies between two";
    } else {
      reason = "it has " + std::to_string(written.highest - written.lowest + 1) + " levels, the scheme " +
               std::to_string(levels.max_code - levels.min_code + 1);
    }
    auto const nearest = type_for(levels);
    throw error("GGUF " + name + " cannot hold this scheme: " + reason + "; " +
                (nearest ? std::string(name_of(*nearest)) + " can"
                         : std::string("only its decoded weights can be written, as F16")));
  }
  if (group_size != whole_row && group_size % 32 != 0) {
    throw error("GGUF " + name + " cannot hold groups of " + std::to_string(group_size) +
                " columns: each block of 32 has one scale; multiples of 32 can be held");
  }
}

template <storage_format Format>
packed_matrix<Format> to_packed(ggml_tensor const& tensor) {
  static_assert(Format::group_size == 32, "to_packed: each block of 32 weights has a scale of its own");
  detail::find_written(tensor.type);
  if (tensor.shape.size() != 2) throw error("tensor " + to_string(tensor) + " is not a matrix");
  if (tensor.bytes.empty()) throw error("tensor " + to_string(tensor) + " has no weights");
  constexpr code_levels levels = Format::levels;
  auto const out = static_cast<index_t>(tensor.shape[0]);
  auto const in = static_cast<index_t>(tensor.shape[1]);
  std::size_t const bytes = block_bytes(tensor.type);
  if (tensor.bytes.size() != detail::byte_count(tensor.type, tensor.shape, "tensor " + to_string(tensor))) {
    throw error("tensor " + to_string(tensor) + " has " + std::to_string(tensor.bytes.size()) + " bytes");
  }
  packed_matrix<Format> packed(out, in);
  auto const shape = packed.layout();
  std::byte const* p = tensor.bytes.data();
  for (index_t row = 0; row < out; ++row) {
    for (index_t group = 0; group < shape.groups(); ++group, p += bytes) {
      auto const fail = [&](std::string const& what) {
        throw error("tensor " + to_string(tensor) + ", row " + std::to_string(row) + ", block " +
                    std::to_string(group) + ": " + what + " in " + gptq::to_string(spec_of<Format>()));
      };
      auto const block = detail::block_of(tensor.type, p);
      if (!std::isfinite(block.scale)) fail("a scale of " + std::to_string(block.scale) + " has no place");
      auto const shift = detail::shift_of<Format>(tensor.type, block);
      if (!shift) {
        fail("scale " + std::to_string(block.scale) + " with minimum " + std::to_string(block.minimum) +
             " has no zero point");
      }
      std::array<std::uint8_t, 32> codes{};
      for (std::size_t j = 0; j < codes.size(); ++j) {
        int const code = block.codes[j] + shift->shift;
        if (code < levels.min_code || code > levels.max_code) {
          fail("level " + std::to_string(block.codes[j]) + " does not exist");
        }
        codes[j] = static_cast<std::uint8_t>(code);
      }
      index_t const row_block = row / packed_rows;
      index_t const row_in_block = row % packed_rows;
      gptq::detail::pack_row<Format::bits>(codes.data(), 32, row_in_block,
                                           packed.codes() + shape.code_offset(row_block, group));
      packed.scales()[shape.scale_offset(row_block, group) + row_in_block] =
          typename Format::scale(block.scale);
      if constexpr (Format::has_zero_point) {
        gptq::detail::set_stream_code<Format::bits>(packed.zeros() + shape.zero_offset(row_block, group),
                                                    row_in_block, shift->zero);
      }
    }
  }
  return packed;
}

template <storage_format Format>
std::vector<std::byte> to_ggml(quantized_layer<Format> const& layer, ggml_type type) {
  constexpr code_levels levels = Format::levels;
  constexpr index_t block = 32;
  check_type(type, levels, Format::group_size);
  check(layer);
  std::string const name = "GGUF " + std::string(name_of(type));
  if (!layer.order.empty()) {
    throw error(name + " keeps columns in their order: quantize with static groups");
  }
  if (layer.in % block != 0) {
    throw error(name + ": rows of " + std::to_string(layer.in) + " weights are no whole blocks of 32");
  }
  detail::written_type const& written = detail::find_written(type);
  std::size_t const bytes = block_bytes(type);
  std::vector<std::byte> blocks(static_cast<std::size_t>(layer.out * (layer.in / block)) * bytes);
  std::byte* p = blocks.data();
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t first = 0; first < layer.in; first += block, p += bytes) {
      grid const g = layer.grid(row, layer.group_of(first));
      float const scale = float16(g.scale);
      float const minimum = written.has_minimum ? float16(0.0F - levels.zero_of(g) * scale) : float16(0.0F);
      if (!std::isfinite(scale) || !std::isfinite(minimum)) {
        throw error(name + ": scale " + std::to_string(g.scale) + " of row " + std::to_string(row) +
                    ", columns " + std::to_string(first) + " and on is beyond float16");
      }
      detail::put_half(p, scale);
      if (written.has_minimum) detail::put_half(p + 2, minimum);
      std::uint8_t const* const codes = layer.codes.data() + row * layer.in + first;
      int const zero = written.has_minimum ? 0 : static_cast<int>(levels.zero);
      if (type == ggml_type::q8_0) {
        for (index_t j = 0; j < block; ++j) p[2 + j] = static_cast<std::byte>((codes[j] - zero) & 0xff);
      } else {
        std::byte* const nibbles = p + bytes - 16;
        int const middle = written.has_minimum ? 0 : 8;
        for (index_t j = 0; j < 16; ++j) {
          nibbles[j] =
              static_cast<std::byte>((codes[j] - zero + middle) | (codes[j + 16] - zero + middle) << 4);
        }
      }
    }
  }
  return blocks;
}

}  // namespace gptq::checkpoint
