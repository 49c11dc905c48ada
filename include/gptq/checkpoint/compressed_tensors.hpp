// The tensors of a compressed-tensors checkpoint ("format": "pack-quantized"), as llm-compressor writes them:
// weight_packed, weight_scale, weight_zero_point, weight_shape, weight_g_idx.
//
// A code q of b bits is stored as q + 2^(b-1), and so is a zero point: as the codes and zeros here. Codes lie
// along K in an LSB-first stream of 32-bit words, one stream an output that begins with a word of its own:
// code k of an output occupies bits [k b, k b + b). Zero points lie the same way along N, one stream a group.
// Symmetric layers (fixed_zero) have none. Scales are of the model's own type.
//
//   auto layer = gptq::checkpoint::from_compressed<gptq::format<gptq::fixed_zero, 4, 128>>(tensors);
//   auto packed = gptq::pack(layer);
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>

#include <gptq/checkpoint/gptq.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

/// How weight_scale is stored.
enum class compressed_scale { float16, bfloat16, float32 };

/// The tensors of a linear layer with K inputs, N outputs, G groups and codes of b bits, row-major, where
/// they lie: in a mapped file, say. Bytes, because there they may lie at any address.
struct compressed_view {
  index_t out = 0;                           ///< N
  index_t in = 0;                            ///< K
  std::span<std::byte const> weight_packed;  ///< [N, ceil(K b / 32)] int32
  std::span<std::byte const> weight_scale;   ///< [N, G] of scale_type; strategy "channel" has G = 1
  compressed_scale scale_type = compressed_scale::float16;
  std::span<std::byte const> weight_zero_point;  ///< [ceil(N b / 32), G] int32; may be empty if symmetric
  std::span<std::byte const> weight_g_idx;       ///< [K] int32 group of each input, all -1 or empty: in order
  std::span<std::byte const> weight_shape;       ///< [2] int64: N, K; may be empty
};

/// The layer that they hold, exactly, its columns ordered by group once and for all. Format is asymmetric or
/// fixed_zero, its group size that of strategy "group", or whole_row for "channel".
/// @throws gptq::error when a tensor has not the size that format and shape give it, naming it, or when
///   weight_shape says something else; when weight_g_idx does not fill groups of Format::group_size columns
///   (but for the last); when a zero point is not fixed_zero's; when a scale is not finite or Format::scale
///   cannot hold it
template <storage_format Format>
quantized_layer<Format> from_compressed(compressed_view const& tensors);

/// Whether float16 holds every scale of weight_scale, as it does for most models in bfloat16: a format with
/// float16 scales then loses nothing.
bool scales_fit_float16(compressed_view const& tensors);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

inline constexpr index_t bytes_of(compressed_scale type) { return type == compressed_scale::float32 ? 4 : 2; }

inline float stored_scale(std::span<std::byte const> scales, compressed_scale type, index_t i) {
  std::byte const* const from = scales.data() + i * bytes_of(type);
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

}  // namespace detail

template <storage_format Format>
quantized_layer<Format> from_compressed(compressed_view const& tensors) {
  constexpr int bits = Format::bits;
  static_assert(Format::levels.min_code == 0 && Format::levels.max_code == (1 << bits) - 1,
                "compressed-tensors use all codes: a symmetric layer is one of fixed_zero");
  static_assert(Format::has_zero_point || Format::levels.zero == static_cast<float>(1 << (bits - 1)),
                "compressed-tensors without zero points have the middle code as theirs");
  index_t const in = tensors.in;
  index_t const out = tensors.out;
  constexpr index_t most = index_t{1} << 31;  // so that sizes do not overflow
  if (in <= 0 || out <= 0 || in > most || out > most) {
    throw error("compressed-tensors: a layer of " + std::to_string(out) + " x " + std::to_string(in));
  }
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  index_t const groups = layer.groups();
  auto const words = [](index_t count) { return (count * bits + 31) / 32; };
  index_t const row_words = words(in);
  detail::check_compressed_shape(tensors);
  detail::check_bytes("compressed-tensors: weight_packed", tensors.weight_packed, out * row_words * 4);
  detail::check_bytes("compressed-tensors: weight_scale", tensors.weight_scale,
                      out * groups * detail::bytes_of(tensors.scale_type));
  if (Format::has_zero_point || !tensors.weight_zero_point.empty()) {
    detail::check_bytes("compressed-tensors: weight_zero_point", tensors.weight_zero_point,
                        words(out) * groups * 4);
  }
  if (!tensors.weight_g_idx.empty()) {
    detail::check_bytes("compressed-tensors: weight_g_idx", tensors.weight_g_idx, in * 4);
    if (!detail::is_unset(tensors.weight_g_idx)) {
      layer.order = detail::order_of(tensors.weight_g_idx, in, Format::group_columns(in), groups,
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
      float const scale = detail::stored_scale(tensors.weight_scale, tensors.scale_type, i);
      if (!std::isfinite(scale)) {
        throw error("compressed-tensors: the scale" + name() + " is " + std::to_string(scale));
      }
      if (static_cast<float>(typename Format::scale(scale)) != scale) {
        char number[32];
        std::snprintf(number, sizeof number, "%.9g", static_cast<double>(scale));
        throw error("compressed-tensors: the scale" + name() + " is " + number +
                    ", which float16 cannot hold; a format with float32 scales can");
      }
      layer.scales[at(i)] = scale;
      if (tensors.weight_zero_point.empty()) continue;
      int const zero = detail::entry_of(tensors.weight_zero_point, group, groups, row, bits);
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
      layer.codes[at(row * in + p)] = static_cast<std::uint8_t>(
          detail::entry_of(tensors.weight_packed, row * row_words, 1, column, bits));
    }
  }
  return layer;
}

inline bool scales_fit_float16(compressed_view const& tensors) {
  if (tensors.scale_type == compressed_scale::float16) return true;
  auto const count = static_cast<index_t>(tensors.weight_scale.size()) / detail::bytes_of(tensors.scale_type);
  for (index_t i = 0; i < count; ++i) {
    float const scale = detail::stored_scale(tensors.weight_scale, tensors.scale_type, i);
    if (std::isfinite(scale) && static_cast<float>(float16(scale)) != scale) return false;
  }
  return true;
}

}  // namespace gptq::checkpoint
