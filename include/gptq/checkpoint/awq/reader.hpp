// The tensors of an AWQ checkpoint as a layer.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include <gptq/checkpoint/awq/tensors.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint::detail {

template <storage_format Format>
void check_awq(awq_view const& tensors) {
  static_assert(Format::bits == 4, "AWQ checkpoints hold codes of 4 bits");
  static_assert(Format::has_zero_point && Format::levels.min_code == 0 && Format::levels.max_code == 15,
                "AWQ checkpoints hold zero points and use all codes: an asymmetric scheme");
  index_t const in = tensors.in;
  index_t const out = tensors.out;
  if (in <= 0 || out <= 0 || in > largest_extent || out > largest_extent || out % awq_outputs != 0) {
    throw error("AWQ checkpoint: " + std::to_string(out) + " x " + std::to_string(in) +
                " codes do not fill whole 32-bit words; the outputs must be a multiple of 8");
  }
  index_t const groups = Format::groups(in);
  index_t const row_words = out / awq_outputs;
  check_bytes("AWQ checkpoint: qweight", tensors.qweight, in * row_words * 4);
  check_bytes("AWQ checkpoint: qzeros", tensors.qzeros, groups * row_words * 4);
  check_bytes("AWQ checkpoint: scales", tensors.scales, groups * out * 2);
  for (index_t i = 0; i < groups * out; ++i) {
    float16 half;
    std::memcpy(&half, tensors.scales.data() + 2 * i, sizeof half);
    auto const scale = static_cast<float>(half);
    if (!std::isfinite(scale)) {
      throw error("AWQ checkpoint: the scale of row " + std::to_string(i % out) + ", group " +
                  std::to_string(i / out) + " is " + std::to_string(scale));
    }
  }
}

template <storage_format Format>
quantized_layer<Format> read_awq(awq_view const& tensors) {
  check_awq<Format>(tensors);
  index_t const in = tensors.in;
  index_t const out = tensors.out;
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  index_t const groups = layer.groups();
  index_t const row_words = out / awq_outputs;
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  layer.codes.resize(at(out * in));
  layer.scales.resize(at(out * groups));
  layer.zeros.resize(layer.scales.size());
  // matrix[count, N / 8] of words -> [N, count] of numbers.
  auto const unpack = [&](std::span<std::byte const> matrix, index_t count, std::uint8_t* numbers) {
    for (index_t word = 0; word < row_words; ++word) {
      for (index_t i = 0; i < count; ++i) {
        std::uint32_t const eight = word_at(matrix, i * row_words + word);
        for (index_t j = 0; j < awq_outputs; ++j) {
          numbers[(word * awq_outputs + j) * count + i] =
              static_cast<std::uint8_t>(eight >> awq_shift[j] & 15U);
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
      layer.scales[at(row * groups + group)] = half;
    }
  }
  return layer;
}

}  // namespace gptq::checkpoint::detail
