// A layer as the tensors of a GPTQ checkpoint.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include <gptq/checkpoint/gptq/tensors.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint::detail {

template <storage_format Format>
gptq_tensors write_gptq(quantized_layer<Format> const& layer, gptq_version version, bool published_defects) {
  constexpr int bits = Format::bits;
  static_assert(!Format::levels.is_half_step(),
                "GPTQ checkpoints hold integer zero points: a half-step scheme does not fit (GGUF Q4_1 can)");
  static_assert(!Format::is_code_book, "GPTQ checkpoints hold no code books");
  check(layer);
  index_t const in = layer.in;
  index_t const out = layer.out;
  index_t const groups = layer.groups();
  if (in * bits % 32 != 0 || out * bits % 32 != 0) {
    throw error("GPTQ checkpoint: " + std::to_string(out) + " x " + std::to_string(in) + " codes of " +
                std::to_string(bits) +
                " bits do not fill whole 32-bit words; both extents must be multiples of " +
                std::to_string(bits == 3 ? 32 : 32 / bits));
  }
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };

  gptq_tensors tensors;
  tensors.qweight.resize(at(in * bits / 32 * out));
  tensors.qzeros.resize(at(groups * (out * bits / 32)));
  tensors.scales.resize(at(groups * out));
  tensors.g_idx.resize(at(in));
  for (index_t p = 0; p < in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
    tensors.g_idx[at(column)] = static_cast<std::int32_t>(layer.group(p));
    for (index_t row = 0; row < out; ++row) {
      put_entry(tensors.qweight, row, out, column, bits, static_cast<std::uint32_t>(layer.code(row, p)));
    }
  }
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < out; ++row) {
      grid const g = layer.grid(row, group);
      float16 const scale(g.scale);
      if (!std::isfinite(static_cast<float>(scale))) {
        throw error("GPTQ checkpoint: the scale of row " + std::to_string(row) + ", group " +
                    std::to_string(group) + " is " + std::to_string(g.scale) + ", beyond float16");
      }
      tensors.scales[at(group * out + row)] = scale;
      auto stored = static_cast<std::uint32_t>(static_cast<int>(Format::levels.zero_point(g)));
      if (version == gptq_version::v1) {
        if (stored == 0 && !published_defects) {
          throw error("GPTQ checkpoint: the zero point of row " + std::to_string(row) + ", group " +
                      std::to_string(group) + " is 0, which version 1 cannot hold; write version 2");
        }
        --stored;
      }
      put_entry(tensors.qzeros, group * (out * bits / 32), 1, row, bits, stored);
    }
  }
  return tensors;
}

}  // namespace gptq::checkpoint::detail
