// A layer as the tensors of a compressed-tensors checkpoint.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include <gptq/checkpoint/compressed_tensors/tensors.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint::detail {

/// @throws gptq::error, naming it, for a scale that the type does not hold exactly
template <class Stored>
void store_scale(float scale, std::byte* to, std::string const& name, char const* type) {
  Stored const stored(scale);
  if (static_cast<float>(stored) != scale) {
    throw error(name + " is " + exact_number(scale) + ", which " + type + " cannot hold");
  }
  std::memcpy(to, &stored, sizeof stored);
}

template <storage_format Format>
compressed_tensors write_compressed(quantized_layer<Format> const& layer, compressed_scale type) {
  constexpr int bits = Format::bits;
  static_assert(Format::has_zero_point || Format::levels.zero == static_cast<float>(1 << (bits - 1)),
                "compressed-tensors without zero points have the middle code as theirs");
  check(layer);
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  index_t const in = layer.in;
  index_t const out = layer.out;
  index_t const groups = layer.groups();
  auto const words = [](index_t count) { return (count * bits + 31) / 32; };
  compressed_tensors tensors;
  tensors.scale_type = type;
  tensors.weight_shape = {out, in};
  tensors.weight_packed.resize(at(out * words(in)));
  tensors.weight_scale.resize(at(out * groups * scale_bytes(type)));
  if (Format::has_zero_point) tensors.weight_zero_point.resize(at(words(out) * groups));
  if (!layer.order.empty()) tensors.weight_g_idx.resize(at(in));
  for (index_t p = 0; p < in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
    if (!layer.order.empty()) tensors.weight_g_idx[at(column)] = static_cast<std::int32_t>(layer.group(p));
    for (index_t row = 0; row < out; ++row) {
      put_entry(tensors.weight_packed, row * words(in), 1, column, bits,
                static_cast<std::uint32_t>(layer.code(row, p)));
    }
  }
  for (index_t row = 0; row < out; ++row) {
    for (index_t group = 0; group < groups; ++group) {
      grid const g = layer.grid(row, group);
      std::byte* const scale = tensors.weight_scale.data() + (row * groups + group) * scale_bytes(type);
      std::string const name =
          "compressed-tensors: the scale of row " + std::to_string(row) + ", group " + std::to_string(group);
      if (type == compressed_scale::float16) store_scale<float16>(g.scale, scale, name, "float16");
      if (type == compressed_scale::bfloat16) store_scale<bfloat16>(g.scale, scale, name, "bfloat16");
      if (type == compressed_scale::float32) store_scale<float>(g.scale, scale, name, "float32");
      if constexpr (Format::has_zero_point) {
        put_entry(tensors.weight_zero_point, group, groups, row, bits, static_cast<std::uint32_t>(g.zero));
      }
    }
  }
  return tensors;
}

}  // namespace gptq::checkpoint::detail
