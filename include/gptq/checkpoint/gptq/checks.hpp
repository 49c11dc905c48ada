// What has to hold of the tensors of a GPTQ checkpoint before they are read.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <gptq/checkpoint/gptq/tensors.hpp>
#include <gptq/checkpoint/words/column_order.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>

namespace gptq::checkpoint::detail {

/// Zero point, as it is, of a row and group.
template <storage_format Format>
int zero_at(gptq_view const& tensors, gptq_version version, index_t row, index_t group) {
  constexpr int bits = Format::bits;
  int const stored = entry_at(tensors.qzeros, group * (tensors.out * bits / 32), 1, row, bits);
  return version == gptq_version::v1 ? stored + 1 : stored;
}

inline float16 scale_at(gptq_view const& tensors, index_t row, index_t group) {
  float16 scale;
  std::memcpy(&scale, tensors.scales.data() + 2 * static_cast<std::size_t>(group * tensors.out + row),
              sizeof scale);
  return scale;
}

/// Whether every scale is finite and every zero point one of the format's: what check_grids() says, without
/// saying which.
template <storage_format Format>
bool grids_fit(gptq_view const& tensors, gptq_version version) {
  constexpr int bits = Format::bits;
  bool finite = true;
  for (std::size_t i = 0; i < tensors.scales.size(); i += 2) {
    std::uint16_t half = 0;
    std::memcpy(&half, tensors.scales.data() + i, sizeof half);
    finite = finite && (half & 0x7c00U) != 0x7c00U;
  }
  if (!finite) return false;
  auto const words = static_cast<index_t>(tensors.qzeros.size() / 4);
  if constexpr (!Format::has_zero_point) {
    // Rows begin at multiples of the period, which is one word but for 3 bits, where rows have multiples of
    // 32 zero points.
    auto const stored =
        static_cast<std::uint32_t>(Format::levels.zero) - (version == gptq_version::v1 ? 1U : 0U);
    std::array<std::uint32_t, Format::bits> expected{};
    for (int i = 0; i < bits; ++i) expected[static_cast<std::size_t>(i)] = repeated_word(bits, stored, i);
    for (index_t i = 0; i < words; ++i) {
      if (word_at(tensors.qzeros, i) != expected[static_cast<std::size_t>(i % bits)]) return false;
    }
  } else if (version == gptq_version::v1) {
    index_t const entries = words * 32 / bits;
    for (index_t i = 0; i < entries; ++i) {
      if (entry_at(tensors.qzeros, 0, 1, i, bits) == (1 << bits) - 1) return false;
    }
  }
  return true;
}

template <storage_format Format>
void check_grids(gptq_view const& tensors, gptq_version version) {
  if (grids_fit<Format>(tensors, version)) return;
  index_t const groups = Format::groups(tensors.in);
  for (index_t group = 0; group < groups; ++group) {
    for (index_t row = 0; row < tensors.out; ++row) {
      auto const name = [&] { return " of row " + std::to_string(row) + ", group " + std::to_string(group); };
      auto const scale = static_cast<float>(scale_at(tensors, row, group));
      if (!std::isfinite(scale)) {
        throw error("GPTQ checkpoint: the scale" + name() + " is " + std::to_string(scale));
      }
      int const zero = zero_at<Format>(tensors, version, row, group);
      if (zero == 1 << Format::bits) {
        throw error("GPTQ checkpoint: the zero point" + name() + " is stored as " + std::to_string(zero - 1) +
                    ", which version 1 cannot hold; a file of version 2?");
      }
      if (float const fixed = Format::levels.zero;
          !Format::has_zero_point && static_cast<float>(zero) != fixed) {
        throw error("GPTQ checkpoint: the zero point" + name() + " is " + std::to_string(zero) + ", not " +
                    std::to_string(static_cast<int>(fixed)) + " as with sym: true");
      }
    }
  }
}

/// The order of the columns of tensors that are all that the format says they are.
template <storage_format Format>
std::vector<std::int32_t> check_gptq(gptq_view const& tensors, gptq_version version) {
  constexpr index_t bits = Format::bits;
  static_assert(Format::has_zero_point || Format::levels.min_code == 0,
                "sym: true is fixed_zero: symmetric has no lowest level, which checkpoints may use");
  static_assert(!Format::levels.is_half_step(), "GPTQ checkpoints hold integer zero points");
  static_assert(!Format::is_code_book, "GPTQ checkpoints hold no code books");
  index_t const in = tensors.in;
  index_t const out = tensors.out;
  if (in <= 0 || out <= 0 || in > largest_extent || out > largest_extent || in * bits % 32 != 0 ||
      out * bits % 32 != 0) {
    throw error("GPTQ checkpoint: " + std::to_string(out) + " x " + std::to_string(in) + " codes of " +
                std::to_string(bits) + " bits do not fill whole 32-bit words");
  }
  index_t const groups = Format::groups(in);
  check_bytes("GPTQ checkpoint: qweight", tensors.qweight, in * bits / 8 * out);
  check_bytes("GPTQ checkpoint: qzeros", tensors.qzeros, groups * (out * bits / 8));
  check_bytes("GPTQ checkpoint: scales", tensors.scales, groups * out * 2);
  std::vector<std::int32_t> order;
  if (!tensors.g_idx.empty()) {
    check_bytes("GPTQ checkpoint: g_idx", tensors.g_idx, in * 4);
    order = column_order(tensors.g_idx, in, Format::group_columns(in), groups, "GPTQ checkpoint: g_idx");
  }
  check_grids<Format>(tensors, version);
  return order;
}

}  // namespace gptq::checkpoint::detail
