// Layers out of blocks and into them: which type holds a scheme, and how a block's levels become its codes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gptq/checkpoint/ggml/blocks/block.hpp>
#include <gptq/checkpoint/ggml/tensor.hpp>
#include <gptq/checkpoint/ggml/types.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint::detail {

/// Whether a type's levels are enough for a scheme's.
inline bool holds(code_functions const& codes, code_levels const& levels) {
  int const zero = codes.has_minimum ? 0 : static_cast<int>(levels.zero);
  return !levels.is_code_book() && (codes.has_minimum || !(levels.has_zero_point || levels.is_half_step())) &&
         levels.min_code - zero >= codes.lowest && levels.max_code - zero <= codes.highest;
}

inline std::optional<ggml_type> smallest_type(code_levels const& levels) {
  for (ggml_entry const& known : ggml_types) {
    if (known.codes != nullptr && holds(*known.codes, levels)) return known.type;
  }
  return std::nullopt;
}

/// "Q4_0, Q4_1 and Q8_0"
inline std::string types_for_codes() {
  std::vector<std::string> names;
  for (ggml_entry const& known : ggml_types) {
    if (known.codes != nullptr) names.emplace_back(known.name);
  }
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  }
  return text;
}

inline code_functions const& find_codes(ggml_type type) {
  ggml_entry const& known = entry(type);
  if (known.codes == nullptr) {
    throw error(std::string(known.name) + " is not for codes: " + types_for_codes() + " are");
  }
  return *known.codes;
}

inline void check_holds(ggml_type type, code_levels const& levels, int group_size) {
  code_functions const& codes = find_codes(type);
  std::string const name(entry(type).name);
  if (!holds(codes, levels)) {
    std::string reason;
    if (levels.is_code_book()) {
      reason = "its levels are a distance of the scale apart, the scheme's are a table";
    } else if (!codes.has_minimum && levels.has_zero_point) {
      reason = "it has no zero points";
    } else if (!codes.has_minimum && levels.is_half_step()) {
      reason = "its zero is one of the codes, the scheme's lies between two";
    } else {
      reason = "it has " + std::to_string(codes.highest - codes.lowest + 1) + " levels, the scheme " +
               std::to_string(levels.max_code - levels.min_code + 1);
    }
    auto const nearest = smallest_type(levels);
    throw error("GGUF " + name + " cannot hold this scheme: " + reason + "; " +
                (nearest ? std::string(entry(*nearest).name) + " can"
                         : std::string("only its decoded weights can be written, as F16")));
  }
  if (group_size != whole_row && group_size % 32 != 0) {
    throw error("GGUF " + name + " cannot hold groups of " + std::to_string(group_size) +
                " columns: each block of 32 has one scale; multiples of 32 can be held");
  }
}

/// What to add to a block's levels to make them the format's codes, and the group's zero point.
struct code_shift {
  int shift;
  int zero;
};

/// Nothing when the format has no such zero point.
template <storage_format Format>
std::optional<code_shift> find_shift(bool has_minimum, code_block const& block) {
  constexpr code_levels levels = Format::levels;
  if (!has_minimum) {
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

/// Throws unless the tensor is a matrix of whole blocks with codes, and all of its bytes are there.
inline void check_code_matrix(ggml_tensor const& tensor) {
  find_codes(tensor.type);
  if (tensor.shape.size() != 2) throw error("tensor " + describe(tensor) + " is not a matrix");
  if (tensor.bytes.empty()) throw error("tensor " + describe(tensor) + " has no weights");
  if (tensor.bytes.size() != tensor_bytes(tensor.type, tensor.shape, "tensor " + describe(tensor))) {
    throw error("tensor " + describe(tensor) + " has " + std::to_string(tensor.bytes.size()) + " bytes");
  }
}

template <storage_format Format>
void pack_blocks(ggml_tensor const& tensor, packed_memory<Format> const& packed) {
  static_assert(Format::group_size == 32, "to_packed: each block of 32 weights has a scale of its own");
  static_assert(!Format::is_code_book, "to_packed: blocks of these types hold no code books");
  check_code_matrix(tensor);
  code_functions const& functions = find_codes(tensor.type);
  constexpr code_levels levels = Format::levels;
  auto const out = static_cast<index_t>(tensor.shape[0]);
  auto const in = static_cast<index_t>(tensor.shape[1]);
  std::size_t const bytes = entry(tensor.type).block_bytes;
  if (packed.out != out || packed.in != in || packed.order != nullptr) {
    throw error("tensor " + describe(tensor) + " does not fit into memory for a matrix of " +
                std::to_string(packed.out) + " x " + std::to_string(packed.in) +
                (packed.order == nullptr ? "" : " with a column order"));
  }
  auto const shape = packed.layout();
  // Padding is 0, and streams of zero points are written bit by bit.
  if (out % packed_rows != 0) {
    index_t const last = out / packed_rows;
    std::fill(packed.codes + shape.code_offset(last, 0), packed.codes + shape.code_bytes(), std::uint8_t{0});
    std::fill(packed.scales + shape.scale_offset(last, 0), packed.scales + shape.scale_count(),
              typename Format::scale(0.0F));
  }
  std::fill(packed.zeros, packed.zeros + shape.zero_bytes(), std::uint8_t{0});
  std::byte const* p = tensor.bytes.data();
  for (index_t row = 0; row < out; ++row) {
    for (index_t group = 0; group < shape.groups(); ++group, p += bytes) {
      auto const fail = [&](std::string const& reason) {
        throw error("tensor " + describe(tensor) + ", row " + std::to_string(row) + ", block " +
                    std::to_string(group) + ": " + reason + " in " + gptq::to_string(to_spec<Format>()));
      };
      code_block const block = functions.read(p);
      if (!std::isfinite(block.scale)) fail("a scale of " + std::to_string(block.scale) + " has no place");
      auto const shift = find_shift<Format>(functions.has_minimum, block);
      if (!shift) {
        fail("scale " + std::to_string(block.scale) + " with minimum " + std::to_string(block.minimum) +
             " has no zero point");
      }
      std::array<std::uint8_t, code_block_size> codes{};
      for (std::size_t j = 0; j < codes.size(); ++j) {
        int const code = block.levels[j] + shift->shift;
        if (code < levels.min_code || code > levels.max_code) {
          fail("level " + std::to_string(block.levels[j]) + " does not exist");
        }
        codes[j] = static_cast<std::uint8_t>(code);
      }
      index_t const row_block = row / packed_rows;
      index_t const row_in_block = row % packed_rows;
      gptq::detail::pack_row<Format::bits>(codes.data(), 32, row_in_block,
                                           packed.codes + shape.code_offset(row_block, group));
      packed.scales[shape.scale_offset(row_block, group) + row_in_block] =
          typename Format::scale(block.scale);
      if constexpr (Format::has_zero_point) {
        gptq::detail::set_stream_code<Format::bits>(packed.zeros + shape.zero_offset(row_block, group),
                                                    row_in_block, shift->zero);
      }
    }
  }
}

template <storage_format Format>
packed_matrix<Format> pack_blocks(ggml_tensor const& tensor) {
  check_code_matrix(tensor);  // before memory is asked for
  packed_matrix<Format> packed(static_cast<index_t>(tensor.shape[0]), static_cast<index_t>(tensor.shape[1]));
  pack_blocks(tensor, packed.memory());
  return packed;
}

template <storage_format Format>
std::vector<std::byte> layer_blocks(quantized_layer<Format> const& layer, ggml_type type) {
  constexpr code_levels levels = Format::levels;
  constexpr auto block_columns = static_cast<index_t>(code_block_size);
  check_holds(type, levels, Format::group_size);
  check(layer);
  std::string const name = "GGUF " + std::string(entry(type).name);
  if (!layer.order.empty()) {
    throw error(name + " keeps columns in their order: quantize with static groups");
  }
  if (layer.in % block_columns != 0) {
    throw error(name + ": rows of " + std::to_string(layer.in) + " weights are no whole blocks of 32");
  }
  code_functions const& functions = find_codes(type);
  std::size_t const bytes = entry(type).block_bytes;
  int const zero = functions.has_minimum ? 0 : static_cast<int>(levels.zero);
  std::vector<std::byte> blocks(static_cast<std::size_t>(layer.out * (layer.in / block_columns)) * bytes);
  std::byte* p = blocks.data();
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t first = 0; first < layer.in; first += block_columns, p += bytes) {
      grid const g = layer.grid(row, layer.group(first));
      code_block block;
      block.scale = float16(g.scale);
      if (functions.has_minimum) block.minimum = float16(0.0F - levels.zero_point(g) * block.scale);
      if (!std::isfinite(block.scale) || !std::isfinite(block.minimum)) {
        throw error(name + ": scale " + std::to_string(g.scale) + " of row " + std::to_string(row) +
                    ", columns " + std::to_string(first) + " and on is beyond float16");
      }
      for (index_t j = 0; j < block_columns; ++j) {
        block.levels[static_cast<std::size_t>(j)] = layer.code(row, first + j) - zero;
      }
      functions.write(block, p);
    }
  }
  return blocks;
}

}  // namespace gptq::checkpoint::detail
