// The tensors of a GPTQ checkpoint as a layer.
#pragma once

#include <cstddef>
#include <cstdint>

#include <gptq/checkpoint/gptq/checks.hpp>
#include <gptq/checkpoint/gptq/tensors.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint::detail {

template <storage_format Format>
quantized_layer<Format> read_gptq(gptq_view const& tensors, gptq_version version) {
  constexpr int bits = Format::bits;
  quantized_layer<Format> layer;
  layer.order = check_gptq<Format>(tensors, version);
  index_t const in = layer.in = tensors.in;
  index_t const out = layer.out = tensors.out;
  index_t const groups = layer.groups();
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  layer.scales.resize(at(out * groups));
  if constexpr (Format::has_zero_point) layer.zeros.resize(layer.scales.size());
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < out; ++row) {
      layer.scales[at(row * groups + group)] = static_cast<float>(scale_at(tensors, row, group));
      if constexpr (Format::has_zero_point) {
        layer.zeros[at(row * groups + group)] =
            static_cast<std::uint8_t>(zero_at<Format>(tensors, version, row, group));
      }
    }
  }
  layer.codes.resize(at(out * in));
  for (index_t p = 0; p < in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
    for (index_t row = 0; row < out; ++row) {
      layer.codes[at(row * in + p)] =
          static_cast<std::uint8_t>(entry_at(tensors.qweight, row, out, column, bits));
    }
  }
  return layer;
}

}  // namespace gptq::checkpoint::detail
