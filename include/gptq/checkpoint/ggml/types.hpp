// The list of ggml's types. A new type is a line here, with the struct of its block (ggml/blocks/) when it is
// more than a name and a size.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <gptq/checkpoint/ggml/blocks/block.hpp>
#include <gptq/checkpoint/ggml/blocks/iq4_nl.hpp>
#include <gptq/checkpoint/ggml/blocks/nibbles.hpp>
#include <gptq/checkpoint/ggml/blocks/plain.hpp>
#include <gptq/checkpoint/ggml/blocks/q4_k.hpp>
#include <gptq/checkpoint/ggml/blocks/q6_k.hpp>
#include <gptq/checkpoint/ggml/blocks/q8_0.hpp>
#include <gptq/checkpoint/ggml/tensor.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint::detail {

/// What a type that layers are stored in has to do with codes; see ggml/blocks/block.hpp.
struct code_functions {
  int lowest;
  int highest;
  bool has_minimum;
  code_block (*read)(std::byte const*);
  void (*write)(code_block const&, std::byte*);
};

struct ggml_entry {
  ggml_type type;
  std::string_view name;
  std::size_t block_size;
  std::size_t block_bytes;
  void (*decode)(std::span<std::byte const>, float*) = nullptr;  ///< null: not decoded
  code_functions const* codes = nullptr;                         ///< null: not for layers
};

template <class Block>
void decode_blocks(std::span<std::byte const> blocks, float* y) {
  for (; !blocks.empty(); blocks = blocks.subspan(Block::bytes), y += Block::size) {
    Block::decode(blocks.data(), y);
  }
}
template <class Block>
constexpr ggml_entry decodable(ggml_type type, std::string_view name) {
  return {type, name, Block::size, Block::bytes, decode_blocks<Block>};
}

template <class Block>
inline constexpr code_functions functions_for_codes{Block::lowest, Block::highest, Block::has_minimum,
                                                    Block::read, Block::write};
template <class Block>
constexpr ggml_entry for_codes(ggml_type type, std::string_view name) {
  return {type, name, Block::size, Block::bytes, decode_blocks<Block>, &functions_for_codes<Block>};
}

// Types for codes come first, the smaller ones before the larger ones. Sizes of the types that are only listed are
// those of ggml's own table.
inline constexpr std::array ggml_types{for_codes<q4_0_block>(ggml_type::q4_0, "Q4_0"),
                                       for_codes<q4_1_block>(ggml_type::q4_1, "Q4_1"),
                                       for_codes<q5_0_block>(ggml_type::q5_0, "Q5_0"),
                                       for_codes<q5_1_block>(ggml_type::q5_1, "Q5_1"),
                                       for_codes<q8_0_block>(ggml_type::q8_0, "Q8_0"),
                                       decodable<plain_block<float>>(ggml_type::f32, "F32"),
                                       decodable<plain_block<float16>>(ggml_type::f16, "F16"),
                                       decodable<plain_block<bfloat16>>(ggml_type::bf16, "BF16"),
                                       decodable<iq4_nl_block>(ggml_type::iq4_nl, "IQ4_NL"),
                                       decodable<q4_k_block>(ggml_type::q4_k, "Q4_K"),
                                       decodable<q6_k_block>(ggml_type::q6_k, "Q6_K"),
                                       ggml_entry{ggml_type::q8_1, "Q8_1", 32, 36},
                                       ggml_entry{ggml_type::q2_k, "Q2_K", 256, 84},
                                       ggml_entry{ggml_type::q3_k, "Q3_K", 256, 110},
                                       ggml_entry{ggml_type::q5_k, "Q5_K", 256, 176},
                                       ggml_entry{ggml_type::q8_k, "Q8_K", 256, 292},
                                       ggml_entry{ggml_type::iq2_xxs, "IQ2_XXS", 256, 66},
                                       ggml_entry{ggml_type::iq2_xs, "IQ2_XS", 256, 74},
                                       ggml_entry{ggml_type::iq3_xxs, "IQ3_XXS", 256, 98},
                                       ggml_entry{ggml_type::iq1_s, "IQ1_S", 256, 50},
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

inline ggml_entry const& entry(ggml_type type) {
  auto const* const known = find_type(type);
  if (known == nullptr) {
    throw error("ggml type " + std::to_string(static_cast<std::uint32_t>(type)) + " is not known");
  }
  return *known;
}

/// Bytes of a tensor, or why there is no such tensor.
/// @param name  of the tensor, for errors
inline std::size_t tensor_bytes(ggml_type type, std::span<std::size_t const> shape, std::string const& name) {
  auto const& [number, type_name, block_size, block_bytes, decode, codes] = entry(type);
  std::size_t const row = shape.empty() ? 1 : shape.back();
  if (row % block_size != 0) {
    throw error(name + ": rows of " + std::to_string(row) + " elements are no whole blocks of " +
                std::to_string(block_size) + ", as " + std::string(type_name) + " has them");
  }
  if (std::find(shape.begin(), shape.end(), std::size_t{0}) != shape.end()) return 0;
  std::size_t bytes = row / block_size;
  if (__builtin_mul_overflow(bytes, block_bytes, &bytes)) throw error(name + ": its shape overflows");
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) {
    if (__builtin_mul_overflow(bytes, shape[i], &bytes)) throw error(name + ": its shape overflows");
  }
  return bytes;
}

/// "Q4_0 [768, 288]"
inline std::string describe(ggml_tensor const& tensor) {
  auto const* const known = find_type(tensor.type);
  std::string text(known != nullptr ? std::string(known->name)
                                    : "of type " + std::to_string(static_cast<std::uint32_t>(tensor.type)));
  text += " [";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(tensor.shape[i]);
  }
  return text + "]";
}

}  // namespace gptq::checkpoint::detail
