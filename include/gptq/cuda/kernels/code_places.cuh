// The layout of prepacked.cuh as functions: where a lane has the codes of a fragment.
#pragma once

#include <gptq/config.hpp>

namespace gptq::cuda::detail {

/// Position of a code among the words that its lane has of a chunk.
struct code_place {
  int word;
  int bit;
};

/// Of pair p = 4 * fragment + register, element e; the lower two bits of a 3-bit code.
template <int Bits>
GPTQ_HOST_DEVICE constexpr code_place code_place_at(int p, int e) {
  constexpr int width = Bits == 3 ? 2 : Bits;
  constexpr int pairs = 16 / width;
  return {p / pairs, width * (p % pairs) + 16 * e};
}
/// The top bit of a 3-bit code.
GPTQ_HOST_DEVICE constexpr code_place top_place(int p, int e) {
  return {4 + p / 16, (2 * (p % 8) + 2 + p / 8 % 2) % 16 + 16 * e};
}

/// The row of a row tile, and the column of a chunk, that a lane has there.
GPTQ_HOST_DEVICE constexpr int fragment_row(int lane, int p) { return lane / 4 + 8 * (p % 2); }
GPTQ_HOST_DEVICE constexpr int fragment_column(int lane, int p, int e) {
  return 32 * (p / 8) + 8 * (lane % 4) + 4 * (p / 4 % 2) + 2 * (p / 2 % 2) + e;
}
/// The row of entry i of a row tile's scales and zeros.
GPTQ_HOST_DEVICE constexpr int entry_row(int i) { return i / 2 + 8 * (i % 2); }

/// Word w of a lane, from the start of its chunk.
template <int Bits>
GPTQ_HOST_DEVICE constexpr int word_offset(int lane, int w) {
  if (Bits == 3 && w >= 4) return 128 + 2 * lane + (w - 4);
  return w / 4 * 128 + 4 * lane + w % 4;
}

}  // namespace gptq::cuda::detail
