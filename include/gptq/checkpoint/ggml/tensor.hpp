// The element types of ggml by their numbers, and tensors of them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace gptq::checkpoint {

static_assert(std::endian::native == std::endian::little, "GGUF files are read without swapping bytes");

/// Element types, with their numbers in a file. ggml/types.hpp says of each what is known of it.
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

/// A tensor whose bytes somebody else owns: row-major (the last extent is that of a row, which files name first),
/// aligned to nothing.
struct ggml_tensor {
  ggml_type type = ggml_type::f32;
  std::vector<std::size_t> shape;
  std::span<std::byte const> bytes;
};

/// Names with their tensors, in alphabetical order.
using ggml_tensor_map = std::map<std::string, ggml_tensor, std::less<>>;

}  // namespace gptq::checkpoint
