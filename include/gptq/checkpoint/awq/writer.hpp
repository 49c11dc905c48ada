// A layer as the tensors of an AWQ checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gptq/checkpoint/awq/tensors.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint::detail {

template <storage_format Format>
awq_tensors write_awq(quantized_layer<Format> const& layer) {
  static_assert(Format::bits == 4, "AWQ checkpoints hold codes of 4 bits");
  static_assert(!Format::levels.is_half_step() && !Format::is_code_book,
                "AWQ checkpoints hold integer zero points");
  check(layer);
  if (!layer.order.empty()) {
    throw error("AWQ checkpoint: it keeps columns in their order: quantize with static groups");
  }
  if (layer.out % awq_outputs != 0) {
    throw error("AWQ checkpoint: " + std::to_string(layer.out) +
                " outputs do not fill whole 32-bit words; they must be a multiple of 8");
  }
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  index_t const groups = layer.groups();
  index_t const row_words = layer.out / awq_outputs;
  awq_tensors tensors;
  tensors.qweight.resize(at(layer.in * row_words));
  tensors.qzeros.resize(at(groups * row_words));
  tensors.scales.resize(at(groups * layer.out));
  auto const put = [&](std::vector<std::uint32_t>& words, index_t i, index_t row, int number) {
    words[at(i * row_words + row / awq_outputs)] |= static_cast<std::uint32_t>(number)
                                                    << awq_shift[row % awq_outputs];
  };
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t column = 0; column < layer.in; ++column)
      put(tensors.qweight, column, row, layer.code(row, column));
    for (index_t group = 0; group < groups; ++group) {
      grid const g = layer.grid(row, group);
      put(tensors.qzeros, group, row, static_cast<int>(Format::levels.zero_point(g)));
      tensors.scales[at(group * layer.out + row)] =
          exact_float16(g.scale, "AWQ checkpoint: the scale of row " + std::to_string(row) + ", group " +
                                     std::to_string(group));
    }
  }
  return tensors;
}

}  // namespace gptq::checkpoint::detail
