// Layers for the tests of checkpoint formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <gptq/layer.hpp>
#include <gptq/packed.hpp>

#include "support.hpp"

namespace test {

/// Random codes and zero points of all that the format has, scales of either sign that float16 holds; columns in
/// another order, or in their own.
template <class Format>
gptq::quantized_layer<Format> random_layer(index_t out, index_t in, bool permuted, std::uint32_t seed) {
  random random(seed);
  gptq::quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  constexpr auto levels = Format::levels;
  for (index_t i = 0; i < out * in; ++i) {
    layer.codes.push_back(
        static_cast<std::uint8_t>(levels.min_code + random.below(levels.max_code - levels.min_code + 1)));
  }
  for (index_t i = 0; i < out * layer.groups(); ++i) {
    layer.scales.push_back(static_cast<float>(gptq::float16(random.uniform())));
    if (Format::has_zero_point) {
      layer.zeros.push_back(static_cast<std::uint8_t>(random.below(1 << Format::bits)));
    }
  }
  // 7 and the widths here have no common factor, so this visits every column.
  for (index_t p = 0; permuted && p < in; ++p) {
    layer.order.push_back(static_cast<std::int32_t>((7 * p + 5) % in));
  }
  return layer;
}

/// What a layer's codes stand for: [out, in], columns in their own order.
template <class Format>
std::vector<float> decoded_weights(gptq::quantized_layer<Format> const& layer) {
  std::vector<float> weights(layer.codes.size());
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t p = 0; p < layer.in; ++p) {
      index_t const column = layer.order.empty() ? p : index_t{layer.order[static_cast<std::size_t>(p)]};
      weights[static_cast<std::size_t>(row * layer.in + column)] =
          Format::levels.decode(layer.code(row, p), layer.grid(row, layer.group(p)));
    }
  }
  return weights;
}

}  // namespace test
