// Tensors as safetensors files have them: an element type is a line of `dtypes`.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint {

static_assert(std::endian::native == std::endian::little, "safetensors are read without swapping bytes");

/// The element types of the format; `unknown` is any other that a file names, whose tensors can be neither read as
/// numbers nor written.
enum class dtype {
  f64,
  f32,
  f16,
  bf16,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean,
  f8_e4m3,
  f8_e5m2,
  unknown
};

/// A tensor whose bytes somebody else owns: row-major, little endian, possibly not aligned to its element type.
struct tensor_view {
  dtype type = dtype::f32;
  std::vector<std::size_t> shape;
  std::span<std::byte const> bytes;  ///< product of shape elements
  std::string unknown_type = {};     ///< what the file calls a type that is not known
};

/// Names with their tensors, in alphabetical order.
using tensor_map = std::map<std::string, tensor_view, std::less<>>;

namespace detail {

struct dtype_entry {
  dtype type;
  std::string_view name;
  std::size_t bytes;
};
// In the order of the enumeration.
inline constexpr std::array<dtype_entry, 16> dtypes{{{dtype::f64, "F64", 8},
                                                     {dtype::f32, "F32", 4},
                                                     {dtype::f16, "F16", 2},
                                                     {dtype::bf16, "BF16", 2},
                                                     {dtype::i64, "I64", 8},
                                                     {dtype::i32, "I32", 4},
                                                     {dtype::i16, "I16", 2},
                                                     {dtype::i8, "I8", 1},
                                                     {dtype::u64, "U64", 8},
                                                     {dtype::u32, "U32", 4},
                                                     {dtype::u16, "U16", 2},
                                                     {dtype::u8, "U8", 1},
                                                     {dtype::boolean, "BOOL", 1},
                                                     {dtype::f8_e4m3, "F8_E4M3", 1},
                                                     {dtype::f8_e5m2, "F8_E5M2", 1},
                                                     {dtype::unknown, "unknown", 0}}};

inline dtype_entry const& entry(dtype type) { return dtypes[static_cast<std::size_t>(type)]; }

/// Bytes of a tensor of this type and shape.
/// @param name  of the tensor, for the error when there are too many
inline std::size_t tensor_bytes(dtype type, std::span<std::size_t const> shape, std::string const& name) {
  if (type == dtype::unknown) throw error(name + ": its type is not known");
  if (std::find(shape.begin(), shape.end(), std::size_t{0}) != shape.end()) return 0;
  std::size_t bytes = entry(type).bytes;
  for (std::size_t const extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) throw error(name + ": its shape overflows");
  }
  return bytes;
}

/// "F32 [32000, 288]"
inline std::string describe(std::string_view type, std::span<std::size_t const> shape) {
  std::string text(type);
  text += " [";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

template <class Stored>
void convert_halves(std::span<std::byte const> from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, from.data() + 2 * i, 2);
    to[i] = static_cast<float>(Stored::from_bits(bits));
  }
}

inline std::string describe(tensor_view const& tensor) {
  return describe(tensor.type == dtype::unknown ? tensor.unknown_type : entry(tensor.type).name,
                  tensor.shape);
}

inline bool holds_floats(dtype type) {
  return type == dtype::f32 || type == dtype::f16 || type == dtype::bf16;
}

/// How many elements there are to be converted.
inline std::size_t float_count(tensor_view const& tensor) {
  if (!holds_floats(tensor.type)) {
    throw error("tensor " + describe(tensor) + " cannot be read as numbers: only F32, F16 and BF16 can");
  }
  return tensor.bytes.size() / entry(tensor.type).bytes;
}

inline void convert_to_float(tensor_view const& tensor, std::size_t first, std::span<float> out) {
  std::size_t const count = float_count(tensor);
  std::size_t const bytes = entry(tensor.type).bytes;
  if (first > count || out.size() > count - first) {
    throw error("tensor " + describe(tensor) + " has no elements " + std::to_string(first) + " to " +
                std::to_string(first + out.size()));
  }
  if (out.empty()) return;
  auto const from = tensor.bytes.subspan(first * bytes, out.size() * bytes);
  if (tensor.type == dtype::f32) std::memcpy(out.data(), from.data(), from.size());
  if (tensor.type == dtype::f16) convert_halves<float16>(from, out);
  if (tensor.type == dtype::bf16) convert_halves<bfloat16>(from, out);
}

inline tensor_view const* find_tensor(tensor_map const& tensors, std::string_view name) {
  auto const found = tensors.find(name);
  return found == tensors.end() ? nullptr : &found->second;
}

}  // namespace detail
}  // namespace gptq::checkpoint
