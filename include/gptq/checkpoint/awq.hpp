// The tensors of an AWQ checkpoint as AutoAWQ writes them ("version": "gemm"): qweight, qzeros, scales.
//
// Codes of 4 bits lie along N, eight outputs to a 32-bit word: output 8 j + order[i] in bits 4 i..4 i + 3 of
// word j, with order = 0, 2, 4, 6, 1, 3, 5, 7. Zero points lie the same way and are stored as they are.
// Columns are in their original order.
//
//   auto layer = gptq::checkpoint::from_awq<gptq::format<gptq::asymmetric, 4, 128>>(tensors);
//   auto packed = gptq::pack(layer);
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include <gptq/checkpoint/gptq.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

/// The tensors of a linear layer with K inputs, N outputs and G groups, row-major, where they lie: in a
/// mapped file, say. Bytes, because there they may lie at any address.
struct awq_view {
  index_t out = 0;                     ///< N, a multiple of 8
  index_t in = 0;                      ///< K
  std::span<std::byte const> qweight;  ///< [K, N / 8] int32
  std::span<std::byte const> qzeros;   ///< [G, N / 8] int32
  std::span<std::byte const> scales;   ///< [G, N] float16
};

/// The layer that they hold, exactly. Format is asymmetric, of 4 bits.
/// @throws gptq::error when a tensor has not the size that format and shape give it, naming it; when a
///   scale is not finite, naming row and group
template <storage_format Format>
quantized_layer<Format> from_awq(awq_view const& tensors);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

inline constexpr index_t awq_outputs = 8;  // of a word
/// Where output i of a word has its four bits.
inline constexpr int awq_shift[awq_outputs] = {0, 16, 4, 20, 8, 24, 12, 28};

}  // namespace detail

template <storage_format Format>
quantized_layer<Format> from_awq(awq_view const& tensors) {
  static_assert(Format::bits == 4, "AWQ checkpoints hold codes of 4 bits");
  static_assert(Format::has_zero_point && Format::levels.min_code == 0 && Format::levels.max_code == 15,
                "AWQ checkpoints hold zero points and use all codes: an asymmetric scheme");
  index_t const in = tensors.in;
  index_t const out = tensors.out;
  constexpr index_t most = index_t{1} << 31;  // so that sizes do not overflow
  if (in <= 0 || out <= 0 || in > most || out > most || out % detail::awq_outputs != 0) {
    throw error("AWQ checkpoint: " + std::to_string(out) + " x " + std::to_string(in) +
                " codes do not fill whole 32-bit words; the outputs must be a multiple of 8");
  }
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  index_t const groups = layer.groups();
  index_t const row_words = out / detail::awq_outputs;
  detail::check_bytes("AWQ checkpoint: qweight", tensors.qweight, in * row_words * 4);
  detail::check_bytes("AWQ checkpoint: qzeros", tensors.qzeros, groups * row_words * 4);
  detail::check_bytes("AWQ checkpoint: scales", tensors.scales, groups * out * 2);

  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  layer.codes.resize(at(out * in));
  layer.scales.resize(at(out * groups));
  layer.zeros.resize(layer.scales.size());
  // matrix[count, N / 8] of words -> [N, count] of numbers.
  auto const unpack = [&](std::span<std::byte const> matrix, index_t count, std::uint8_t* numbers) {
    for (index_t word = 0; word < row_words; ++word) {
      for (index_t i = 0; i < count; ++i) {
        std::uint32_t const eight = detail::word_at(matrix, i * row_words + word);
        for (index_t j = 0; j < detail::awq_outputs; ++j) {
          numbers[(word * detail::awq_outputs + j) * count + i] =
              static_cast<std::uint8_t>(eight >> detail::awq_shift[j] & 15U);
        }
      }
    }
  };
  unpack(tensors.qweight, in, layer.codes.data());
  unpack(tensors.qzeros, groups, layer.zeros.data());
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < out; ++row) {
      float16 half;
      std::memcpy(&half, tensors.scales.data() + 2 * at(group * out + row), sizeof half);
      auto const scale = static_cast<float>(half);
      if (!std::isfinite(scale)) {
        throw error("AWQ checkpoint: the scale of row " + std::to_string(row) + ", group " +
                    std::to_string(group) + " is " + std::to_string(scale));
      }
      layer.scales[at(row * groups + group)] = scale;
    }
  }
  return layer;
}

}  // namespace gptq::checkpoint
