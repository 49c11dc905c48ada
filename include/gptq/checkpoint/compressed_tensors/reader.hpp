// The tensors of a compressed-tensors checkpoint as a layer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include <gptq/checkpoint/compressed_tensors/tensors.hpp>
#include <gptq/checkpoint/words/column_order.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint::detail {

inline float stored_scale(std::span<std::byte const> scales, compressed_scale type, index_t i) {
  std::byte const* const from = scales.data() + i * scale_bytes(type);
  if (type == compressed_scale::float32) {
    float value = 0.0F;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof bits);
  return type == compressed_scale::float16 ? static_cast<float>(float16::from_bits(bits))
                                           : static_cast<float>(bfloat16::from_bits(bits));
}

/// Throws unless weight_shape, where it is there, is the shape.
inline void check_compressed_shape(compressed_view const& tensors) {
  if (tensors.weight_shape.empty()) return;
  std::int64_t shape[2] = {};
  check_bytes("compressed-tensors: weight_shape", tensors.weight_shape, sizeof shape);
  std::memcpy(shape, tensors.weight_shape.data(), sizeof shape);
  if (shape[0] == tensors.out && shape[1] == tensors.in) return;
  throw error("compressed-tensors: weight_shape is " + std::to_string(shape[0]) + " x " +
              std::to_string(shape[1]) + ", not " + std::to_string(tensors.out) + " x " +
              std::to_string(tensors.in));
}

/// Whether g_idx is one of those that were never filled.
inline bool is_unset(std::span<std::byte const> g_idx) {
  return std::all_of(g_idx.begin(), g_idx.end(), [](std::byte b) { return b == std::byte{0xff}; });
}

template <storage_format Format>
quantized_layer<Format> read_compressed(compressed_view const& tensors) {
  constexpr int bits = Format::bits;
  static_assert(Format::levels.min_code == 0 && Format::levels.max_code == (1 << bits) - 1,
                "compressed-tensors use all codes: a symmetric layer is one of fixed_zero");
  static_assert(Format::has_zero_point || Format::levels.zero == static_cast<float>(1 << (bits - 1)),
                "compressed-tensors without zero points have the middle code as theirs");
  index_t const in = tensors.in;
  index_t const out = tensors.out;
  if (in <= 0 || out <= 0 || in > largest_extent || out > largest_extent) {
    throw error("compressed-tensors: a layer of " + std::to_string(out) + " x " + std::to_string(in));
  }
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  index_t const groups = layer.groups();
  auto const words = [](index_t count) { return (count * bits + 31) / 32; };
  index_t const row_words = words(in);
  check_compressed_shape(tensors);
  check_bytes("compressed-tensors: weight_packed", tensors.weight_packed, out * row_words * 4);
  check_bytes("compressed-tensors: weight_scale", tensors.weight_scale,
              out * groups * scale_bytes(tensors.scale_type));
  if (Format::has_zero_point || !tensors.weight_zero_point.empty()) {
    check_bytes("compressed-tensors: weight_zero_point", tensors.weight_zero_point, words(out) * groups * 4);
  }
  if (!tensors.weight_g_idx.empty()) {
    check_bytes("compressed-tensors: weight_g_idx", tensors.weight_g_idx, in * 4);
    if (!is_unset(tensors.weight_g_idx)) {
      layer.order = column_order(tensors.weight_g_idx, in, Format::group_columns(in), groups,
                                 "compressed-tensors: weight_g_idx");
    }
  }

  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  layer.scales.resize(at(out * groups));
  if constexpr (Format::has_zero_point) layer.zeros.resize(layer.scales.size());
  for (index_t row = 0; row < out; ++row) {
    for (index_t group = 0; group < groups; ++group) {
      index_t const i = row * groups + group;
      auto const name = [&] { return " of row " + std::to_string(row) + ", group " + std::to_string(group); };
      float const scale = stored_scale(tensors.weight_scale, tensors.scale_type, i);
      if (!std::isfinite(scale)) {
        throw error("compressed-tensors: the scale" + name() + " is " + std::to_string(scale));
      }
      if (static_cast<float>(typename Format::scale(scale)) != scale) {
        throw error("compressed-tensors: the scale" + name() + " is " + exact_number(scale) +
                    ", which float16 cannot hold; a format with float32 scales can");
      }
      layer.scales[at(i)] = scale;
      if (tensors.weight_zero_point.empty()) continue;
      int const zero = entry_at(tensors.weight_zero_point, group, groups, row, bits);
      if constexpr (Format::has_zero_point) {
        layer.zeros[at(i)] = static_cast<std::uint8_t>(zero);
      } else if (zero != 1 << (bits - 1)) {
        throw error("compressed-tensors: the zero point" + name() + " is stored as " + std::to_string(zero) +
                    ", not " + std::to_string(1 << (bits - 1)) + " as in symmetric layers");
      }
    }
  }
  layer.codes.resize(at(out * in));
  for (index_t row = 0; row < out; ++row) {
    for (index_t p = 0; p < in; ++p) {
      index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
      layer.codes[at(row * in + p)] =
          static_cast<std::uint8_t>(entry_at(tensors.weight_packed, row * row_words, 1, column, bits));
    }
  }
  return layer;
}

inline bool float16_holds_scales(compressed_view const& tensors) {
  if (tensors.scale_type == compressed_scale::float16) return true;
  auto const count = static_cast<index_t>(tensors.weight_scale.size()) / scale_bytes(tensors.scale_type);
  for (index_t i = 0; i < count; ++i) {
    float const scale = stored_scale(tensors.weight_scale, tensors.scale_type, i);
    if (std::isfinite(scale) && static_cast<float>(float16(scale)) != scale) return false;
  }
  return true;
}

}  // namespace gptq::checkpoint::detail
