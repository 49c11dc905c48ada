// Numbers out of blocks and into them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <gptq/checkpoint/ggml/blocks/q8_0.hpp>
#include <gptq/checkpoint/ggml/tensor.hpp>
#include <gptq/checkpoint/ggml/types.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint::detail {

/// Of a tensor that is decoded.
inline ggml_entry const& decoded_entry(ggml_tensor const& tensor) {
  auto const* const known = find_type(tensor.type);
  if (known == nullptr || known->decode == nullptr) {
    throw error("tensor " + describe(tensor) + " cannot be read as numbers");
  }
  return *known;
}

inline std::size_t float_count(ggml_tensor const& tensor) {
  ggml_entry const& known = decoded_entry(tensor);
  return tensor.bytes.size() / known.block_bytes * known.block_size;
}

inline void convert_to_float(ggml_tensor const& tensor, std::size_t first, std::span<float> out) {
  auto const& [type, name, size, bytes, decode, codes] = decoded_entry(tensor);
  if (first % size != 0 || out.size() % size != 0) {
    throw error("tensor " + describe(tensor) + " is decoded in whole blocks of " + std::to_string(size));
  }
  std::size_t const blocks = tensor.bytes.size() / bytes;
  if (first / size > blocks || out.size() / size > blocks - first / size) {
    throw error("tensor " + describe(tensor) + " has no elements " + std::to_string(first) + " to " +
                std::to_string(first + out.size()));
  }
  decode(tensor.bytes.subspan(first / size * bytes, out.size() / size * bytes), out.data());
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

inline std::vector<std::byte> encode(ggml_type type, std::span<float const> values) {
  ggml_entry const& known = entry(type);
  if (values.size() % known.block_size != 0) {
    throw error(std::to_string(values.size()) + " values are no whole blocks of " + std::string(known.name));
  }
  std::vector<std::byte> bytes(values.size() / known.block_size * known.block_bytes);
  switch (type) {
    case ggml_type::f32:
      encode_plain<float>(values, bytes.data());
      break;
    case ggml_type::f16:
      encode_plain<float16>(values, bytes.data());
      break;
    case ggml_type::bf16:
      encode_plain<bfloat16>(values, bytes.data());
      break;
    case ggml_type::q8_0:
      encode_q8_0(values, bytes.data());
      break;
    default:
      throw error("values cannot be written as " + std::string(known.name) +
                  ": only as F32, F16, BF16 and Q8_0");
  }
  return bytes;
}

}  // namespace gptq::checkpoint::detail
