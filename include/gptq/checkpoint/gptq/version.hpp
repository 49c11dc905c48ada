// Which version zero points prove.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include <gptq/checkpoint/gptq/tensors.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

inline std::optional<gptq_version> find_proven_version(gptq_view const& tensors, int bits, bool symmetric) {
  index_t const row_bytes = tensors.out * bits / 8;
  if ((bits != 2 && bits != 3 && bits != 4 && bits != 8) || tensors.out <= 0 ||
      tensors.out * bits % 32 != 0 || tensors.qzeros.size() % static_cast<std::size_t>(row_bytes) != 0) {
    throw error("GPTQ checkpoint: qzeros of " + std::to_string(tensors.qzeros.size()) +
                " bytes are not rows of " + std::to_string(tensors.out) + " zero points of " +
                std::to_string(bits) + " bits");
  }
  auto const rows = static_cast<index_t>(tensors.qzeros.size()) / row_bytes;
  int const middle = 1 << (bits - 1);
  bool all_v1 = rows > 0;
  bool all_v2 = rows > 0;
  for (index_t group = 0; group < rows; ++group) {
    for (index_t row = 0; row < tensors.out; ++row) {
      int const stored = entry_at(tensors.qzeros, group * (row_bytes / 4), 1, row, bits);
      if (!symmetric && stored == (1 << bits) - 1) return gptq_version::v2;
      all_v1 = all_v1 && stored + 1 == middle;
      all_v2 = all_v2 && stored == middle;
    }
  }
  if (symmetric && all_v1) return gptq_version::v1;
  if (symmetric && all_v2) return gptq_version::v2;
  return std::nullopt;
}

}  // namespace gptq::checkpoint::detail
