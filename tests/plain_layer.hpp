// A packed matrix without gptq's own code: a layer of a format known by its values, and its bytes as the head
// of packed.hpp documents them, written a second time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include <gptq/float16.hpp>
#include <gptq/float8.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/scheme.hpp>

#include "support.hpp"

namespace test {

inline std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A layer of a format known by its values: most of this file is compiled once, not once a format.
struct plain_layer {
  gptq::format_spec spec;
  gptq::code_levels levels;
  index_t out;
  index_t in;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> order;
  float matrix_scale = 1.0F;  ///< what scales of type e4m3 are multiples of

  index_t group_columns() const { return spec.group_size == gptq::whole_row ? in : spec.group_size; }
  index_t groups() const { return (in + group_columns() - 1) / group_columns(); }
  float weight(index_t row, index_t p) const {
    auto const group = at(row * groups() + p / group_columns());
    return levels.decode(codes[at(row * in + p)], {scales[group], zeros.empty() ? 0 : int{zeros[group]}});
  }
  bool operator==(plain_layer const& other) const {
    return out == other.out && in == other.in && codes == other.codes && scales == other.scales &&
           zeros == other.zeros && order == other.order && matrix_scale == other.matrix_scale;
  }
};

/// Random codes, scales and zeros, all of them legal; with `permuted`, in a random column order.
inline plain_layer random_layer(gptq::format_spec const& spec, gptq::code_levels const& levels, index_t out,
                                index_t in, bool permuted, random& numbers) {
  plain_layer layer{spec, levels, out, in, {}, {}, {}, {}, 1.0F};
  if (spec.scales == gptq::scale_type::e4m3) layer.matrix_scale = 0.0123F;
  layer.codes.resize(at(out * in));
  for (auto& code : layer.codes) {
    code = static_cast<std::uint8_t>(levels.min_code + numbers.below(levels.max_code - levels.min_code + 1));
  }
  layer.scales.resize(at(out * layer.groups()));
  for (float& scale : layer.scales) {
    scale = std::exp2(static_cast<float>(numbers.below(20) - 12)) * numbers.uniform();
    if (spec.scales == gptq::scale_type::float16) scale = gptq::float16(scale);
    if (spec.scales == gptq::scale_type::e8m0) scale = gptq::e8m0(scale);
    if (spec.scales == gptq::scale_type::e4m3) {
      scale = gptq::e4m3(scale / layer.matrix_scale) * layer.matrix_scale;
    }
  }
  if (levels.has_zero_point) {
    layer.zeros.resize(layer.scales.size());
    for (auto& zero : layer.zeros) zero = static_cast<std::uint8_t>(numbers.below(1 << spec.bits));
  }
  if (permuted) {
    layer.order.resize(at(in));
    std::iota(layer.order.begin(), layer.order.end(), 0);
    for (index_t i = in - 1; i > 0; --i) {
      std::swap(layer.order[at(i)], layer.order[at(numbers.below(static_cast<int>(i) + 1))]);
    }
  }
  return layer;
}

/// What the head of packed.hpp says, written down a second time: codes, scales, zeros as bytes.
struct documented_bytes {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;

  bool operator==(documented_bytes const&) const = default;
};

/// ORs `value` into a byte.
inline void put(std::uint8_t& byte, int bit, int value) {
  byte = static_cast<std::uint8_t>(byte | value << bit);
}

inline documented_bytes bytes_as_documented(plain_layer const& layer) {
  int const bits = layer.spec.bits;
  int const unit_columns = bits == 4 ? 8 : bits == 2 ? 16 : bits == 3 ? 32 : 4;
  int const half_bytes = bits == 3 ? 192 : 64;
  index_t const group_size = layer.group_columns();
  documented_bytes bytes;
  for (index_t block = 0; block < layer.out; block += 32) {
    for (index_t first = 0, group = 0; first < layer.in; first += group_size, ++group) {
      index_t const end = std::min(first + group_size, layer.in);
      for (index_t unit = first; unit < end; unit += unit_columns) {
        std::size_t const base = bytes.codes.size();
        bytes.codes.resize(base + at(2 * half_bytes));
        for (index_t row = block; row < std::min(block + 32, layer.out); ++row) {
          bool const upper = row - block >= 16;
          std::uint8_t* const lane =
              &bytes.codes[base + at(upper ? half_bytes + 4 * (row - block - 16) : 4 * (row - block))];
          for (index_t column = unit; column < std::min(unit + unit_columns, end); ++column) {
            int const code = layer.codes[at(row * layer.in + column)];
            index_t const c = column - unit;
            int const t = static_cast<int>(c) / 4;
            if (bits == 8) put(lane[c], 0, code);
            if (bits == 4) put(lane[c % 4], 4 * t, code);
            if (bits == 2) put(lane[c % 4], 2 * t, code);
            if (bits == 3) {
              std::uint8_t* const part[] = {lane + c % 4, lane + 64 + c % 4, lane + 128 + c % 4};
              if (t < 4) put(*part[t / 2], t % 2 == 0 ? 0 : 3, code);
              if (t == 4 || t == 5) put(*part[2], t == 4 ? 0 : 4, code);
              if (t >= 6) put(*part[t - 6], 6, code & 3);
              if (t >= 6) put(*part[2], t == 6 ? 3 : 7, code >> 2);
            }
          }
        }
      }
      std::size_t const zeros = bytes.zeros.size();
      if (layer.levels.has_zero_point) bytes.zeros.resize(zeros + at(4 * bits));
      for (index_t r = 0; r < 32; ++r) {
        bool const inside = block + r < layer.out;
        auto const entry = at((block + r) * layer.groups() + group);
        float const padding = layer.spec.scales == gptq::scale_type::e8m0 ? 0x1p-127F : 0.0F;  // the least
        bytes.scales.push_back(inside ? layer.scales[entry] : padding);
        if (!layer.levels.has_zero_point || !inside) continue;
        for (int b = 0; b < bits; ++b) {
          int const bit = static_cast<int>(r) * bits + b;
          put(bytes.zeros[zeros + at(bit / 8)], bit % 8, layer.zeros[entry] >> b & 1);
        }
      }
    }
  }
  return bytes;
}

}  // namespace test
