// The tensors of a GPTQ checkpoint: qweight, qzeros, scales, g_idx.
//
// Codes lie along K in an LSB-first stream of 32-bit words, one stream an output: code k of an output
// occupies bits [k b, k b + b). Zero points lie the same way along N, one stream a group. Version 1
// (checkpoint_format "gptq") stores zero - 1, version 2 ("gptq_v2") the zero itself. Widths 2, 3, 4 and 8.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/layer.hpp>

namespace gptq::checkpoint {

enum class gptq_version { v1, v2 };

/// The four tensors of a linear layer with K inputs, N outputs and G groups, row-major.
struct gptq_tensors {
  std::vector<std::uint32_t> qweight;  ///< [K bits / 32, N]
  std::vector<std::uint32_t> qzeros;   ///< [G, N bits / 32]
  std::vector<float16> scales;         ///< [G, N]
  std::vector<std::int32_t> g_idx;     ///< [K] group of each input
};

/// The checkpoint tensors of a layer. float32 scales are rounded to float16, which is all the format has.
/// @param published_defects  for version 1 only: write a zero point of 0 as the published writers do, which
/// OR an
///        unmasked -1 into the word and so destroy the zeros above it. Without it a zero point of 0 is an
///        error.
/// @throws gptq::error when K bits or N bits is not a multiple of 32, when the scheme's zero point is not an
///         integer (half step), when a zero point is 0 in version 1, or a scale beyond the range of float16
template <storage_format Format>
gptq_tensors to_gptq(quantized_layer<Format> const& layer, gptq_version version = gptq_version::v1,
                     bool published_defects = false);

// ---- implementation -------------------------------------------------------------------------------------

template <storage_format Format>
gptq_tensors to_gptq(quantized_layer<Format> const& layer, gptq_version version, bool published_defects) {
  constexpr index_t bits = Format::bits;
  static_assert(!Format::levels.is_half_step(),
                "GPTQ checkpoints hold integer zero points: a half-step scheme does not fit (GGUF Q4_1 can)");
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
  // ORs `value` into a stream at entry i; `stride` is the distance of two words of the stream.
  auto const put = [&](std::vector<std::uint32_t>& words, index_t start, index_t stride, index_t i,
                       std::uint32_t value) {
    index_t const bit = i * bits;
    words[at(start + bit / 32 * stride)] |= value << (bit % 32);
    if (bit % 32 + bits > 32) words[at(start + (bit / 32 + 1) * stride)] |= value >> (32 - bit % 32);
  };

  gptq_tensors tensors;
  tensors.qweight.resize(at(in * bits / 32 * out));
  tensors.qzeros.resize(at(groups * (out * bits / 32)));
  tensors.scales.resize(at(groups * out));
  tensors.g_idx.resize(at(in));
  for (index_t p = 0; p < in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
    tensors.g_idx[at(column)] = static_cast<std::int32_t>(layer.group_of(p));
    for (index_t row = 0; row < out; ++row) {
      put(tensors.qweight, row, out, column, static_cast<std::uint32_t>(layer.code(row, p)));
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
      auto stored = static_cast<std::uint32_t>(static_cast<int>(Format::levels.zero_of(g)));
      if (version == gptq_version::v1) {
        if (stored == 0 && !published_defects) {
          throw error("GPTQ checkpoint: the zero point of row " + std::to_string(row) + ", group " +
                      std::to_string(group) + " is 0, which version 1 cannot hold; write version 2");
        }
        --stored;
      }
      put(tensors.qzeros, group * (out * bits / 32), 1, row, stored);
    }
  }
  return tensors;
}

}  // namespace gptq::checkpoint
