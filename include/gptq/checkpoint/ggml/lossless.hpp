// Layers into blocks and out of them without touching a weight: what is decoded is the same, bit for bit, or it is
// refused.
//
// A block has levels and a scale, so it holds every scheme whose weights are small whole multiples of a number:
//   - codes and zero points: scale (code - zero), whatever the zero point is;
//   - half steps: scale / 2 (2 code - 2 zero).
// Types with a minimum store the codes, and need -zero scale to be a float16.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gptq/checkpoint/ggml/blocks/block.hpp>
#include <gptq/checkpoint/ggml/layers.hpp>
#include <gptq/checkpoint/ggml/tensor.hpp>
#include <gptq/checkpoint/ggml/types.hpp>
#include <gptq/checkpoint/ggml/values.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint::detail {

/// Columns `first` and on of a row as a block of a type, or why not.
struct block_or_reason {
  code_block block;
  std::string reason;  ///< empty: there is none
};

template <storage_format Format>
block_or_reason make_block(quantized_layer<Format> const& layer, code_functions const& functions, index_t row,
                           index_t first) {
  constexpr code_levels levels = Format::levels;
  static_assert(!Format::is_code_book, "repack: blocks of these types hold no code books");
  grid const g = layer.grid(row, layer.group(first));
  float const zero = levels.zero_point(g);
  int const steps = levels.is_half_step() && !functions.has_minimum ? 2 : 1;  // to a unit of the scale
  auto const offset = functions.has_minimum ? 0 : static_cast<int>(static_cast<float>(steps) * zero);
  block_or_reason made;
  made.block.scale = g.scale / static_cast<float>(steps);
  made.block.minimum = functions.has_minimum ? 0.0F - zero * g.scale : 0.0F;
  if (static_cast<float>(float16(made.block.scale)) != made.block.scale) {
    made.reason = "its scale " + exact_number(made.block.scale) + " is no float16";
  } else if (static_cast<float>(float16(made.block.minimum)) != made.block.minimum) {
    made.reason = "its minimum " + exact_number(made.block.minimum) + " is no float16";
  }
  for (std::size_t j = 0; j < code_block_size; ++j) {
    int const level = steps * layer.code(row, first + static_cast<index_t>(j)) - offset;
    if ((level < functions.lowest || level > functions.highest) && made.reason.empty()) {
      made.reason = "its level " + std::to_string(level) + " is not between " +
                    std::to_string(functions.lowest) + " and " + std::to_string(functions.highest);
    }
    made.block.levels[j] = level;
  }
  return made;
}

/// Calls visit(row, first column) for each block of a layer, until it says no.
template <storage_format Format, class Visit>
bool for_each_block(quantized_layer<Format> const& layer, Visit&& visit) {
  constexpr auto columns = static_cast<index_t>(code_block_size);
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t first = 0; first < layer.in; first += columns) {
      if (!visit(row, first)) return false;
    }
  }
  return true;
}

/// Why no type holds a layer; empty when that depends on the type.
template <storage_format Format>
std::string why_not_in_blocks(quantized_layer<Format> const& layer) {
  if (!layer.order.empty()) return "its columns are reordered, for which there is no place";
  if (layer.in % 32 != 0) {
    return "rows of " + std::to_string(layer.in) + " weights are no whole blocks of 32";
  }
  if (Format::group_size != whole_row && Format::group_size % 32 != 0) {
    return "groups of " + std::to_string(Format::group_size) +
           " columns share blocks of 32, which have one scale";
  }
  return "";
}

template <storage_format Format>
std::optional<ggml_type> find_lossless_type(quantized_layer<Format> const& layer) {
  check(layer);
  if (!why_not_in_blocks(layer).empty()) return std::nullopt;
  for (ggml_entry const& known : ggml_types) {
    if (known.codes == nullptr) continue;
    bool const holds_all = for_each_block(layer, [&](index_t row, index_t first) {
      return make_block(layer, *known.codes, row, first).reason.empty();
    });
    if (holds_all) return known.type;
  }
  return std::nullopt;
}

template <storage_format Format>
std::vector<std::byte> lossless_blocks(quantized_layer<Format> const& layer, ggml_type type) {
  check(layer);
  code_functions const& functions = find_codes(type);
  std::string const name =
      "GGUF " + std::string(entry(type).name) + " cannot hold this layer without rounding: ";
  if (auto const reason = why_not_in_blocks(layer); !reason.empty()) throw error(name + reason);
  std::size_t const bytes = entry(type).block_bytes;
  std::vector<std::byte> blocks(static_cast<std::size_t>(layer.out * (layer.in / 32)) * bytes);
  std::byte* p = blocks.data();
  for_each_block(layer, [&](index_t row, index_t first) {
    auto const made = make_block(layer, functions, row, first);
    if (!made.reason.empty()) {
      auto const nearest = find_lossless_type(layer);
      throw error(name + "row " + std::to_string(row) + ", columns " + std::to_string(first) +
                  " and on: " + made.reason + "; " +
                  (nearest ? std::string(entry(*nearest).name) + " can"
                           : std::string("only its decoded weights can be written, as F32")));
    }
    functions.write(made.block, p);
    p += bytes;
    return true;
  });
  return blocks;
}

template <storage_format Format>
quantized_layer<Format> read_blocks(ggml_tensor const& tensor) {
  auto const packed = pack_blocks<Format>(tensor);
  auto layer = gptq::unpack(packed.view());
  // The zero point of a minimum is found to the rounding of float16: here it has to be exact.
  std::vector<float> row(tensor.shape[1]);
  for (index_t r = 0; r < layer.out; ++r) {
    convert_to_float(tensor, static_cast<std::size_t>(r) * row.size(), row);
    for (index_t c = 0; c < layer.in; ++c) {
      float const weight = Format::levels.decode(layer.code(r, c), layer.grid(r, layer.group(c)));
      if (weight == row[static_cast<std::size_t>(c)]) continue;
      throw error("tensor " + describe(tensor) + ", row " + std::to_string(r) + ", column " +
                  std::to_string(c) + ": " + gptq::to_string(to_spec<Format>()) + " has " +
                  exact_number(weight) + " for " + exact_number(row[static_cast<std::size_t>(c)]) +
                  ": its minimum is no multiple of its scale");
    }
  }
  return layer;
}

/// A format that holds whatever blocks of a type do (those with a minimum: when it is a multiple of the scale).
inline format_spec spec_for(ggml_type type) {
  code_functions const& codes = find_codes(type);
  int const bits = codes.highest - codes.lowest < 16 ? 4 : 8;
  return {codes.has_minimum ? "asymmetric" : "fixed_zero", bits, 32, scale_type::float16};
}

}  // namespace gptq::checkpoint::detail
