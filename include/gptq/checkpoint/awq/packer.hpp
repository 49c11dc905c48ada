// The tensors of an AWQ checkpoint in the packed layout, without a layer in between.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <gptq/checkpoint/awq/reader.hpp>
#include <gptq/checkpoint/awq/tensors.hpp>
#include <gptq/checkpoint/words/byte_columns.hpp>
#include <gptq/checkpoint/words/streaming_store.hpp>
#include <gptq/format.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint::detail {

/// The numbers of 32 outputs, one a byte, from four words, of which the first `some` outputs are there: the others
/// are 0.
GPTQ_INLINE void spread_awq(std::byte const* words, index_t some, std::uint8_t* to) {
  using columns = byte_columns<4>;
  std::byte padded[16];
  if (some < packed_rows) {
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, words, static_cast<std::size_t>(some / 2));
    words = padded;
  }
  auto const both = columns::load(words);
  auto const low = both & std::uint8_t{15}, high = both >> std::uint8_t{4};
  // As awq_shift has them, word by word.
  columns::bytes const outputs[2] = {
      __builtin_shufflevector(low, high, 0, 2, 16, 18, 1, 3, 17, 19, 4, 6, 20, 22, 5, 7, 21, 23),
      __builtin_shufflevector(low, high, 8, 10, 24, 26, 9, 11, 25, 27, 12, 14, 28, 30, 13, 15, 29, 31)};
  std::memcpy(to, outputs, sizeof outputs);
}

/// Row blocks [first, last) into memory of the packed layout.
template <storage_format Format>
void pack_awq_blocks(awq_view const& tensors, index_t first, index_t last,
                     packed_memory<Format> const& to) noexcept {
  constexpr index_t unit_columns = packed_layout<Format>::unit_columns;
  constexpr index_t together = 4;  // row blocks: a line of memory has 16 bytes of each
  auto const shape = to.layout();
  index_t const row_bytes = tensors.out / 2;
  for (index_t begin = first; begin < last; begin += together) {
    index_t const end = std::min(begin + together, last);
    for (index_t group = 0; group < shape.groups(); ++group) {
      index_t const columns = shape.group_columns(group);
      for (index_t c = 0; c < columns; c += unit_columns) {
        index_t const count = std::min(unit_columns, columns - c);
        std::byte const* const from = tensors.qweight.data() +
                                      (group * shape.group_columns() + c) * row_bytes +
                                      begin * packed_rows / 2;
        // Columns lie on pages of their own, which no prefetcher crosses.
        for (index_t i = 2 * unit_columns; c + i < columns && i < 3 * unit_columns; ++i) {
          __builtin_prefetch(from + i * row_bytes);
        }
        for (index_t block = begin; block < end; ++block) {
          index_t const rows = std::min(packed_rows, tensors.out - block * packed_rows);
          std::uint8_t spread[unit_columns][packed_rows];
          std::uint8_t const* columns_at[unit_columns];
          for (index_t i = 0; i < count; ++i) {
            spread_awq(from + i * row_bytes + (block - begin) * packed_rows / 2, rows, spread[i]);
            columns_at[i] = spread[i];
          }
          byte_columns<4>::gather(
              columns_at, count,
              to.codes + shape.code_offset(block, group) + c / unit_columns * shape.unit_bytes);
        }
      }
      for (index_t block = begin; block < end; ++block) {
        index_t const rows = std::min(packed_rows, tensors.out - block * packed_rows);
        auto* const scales = to.scales + shape.scale_offset(block, group);
        for (index_t r = 0; r < packed_rows; ++r) {
          float16 scale{};
          if (r < rows) {
            std::memcpy(&scale, tensors.scales.data() + 2 * (group * tensors.out + block * packed_rows + r),
                        sizeof scale);
          }
          scales[r] = typename Format::scale(static_cast<float>(scale));
        }
        std::uint8_t zeros[packed_rows];
        spread_awq(tensors.qzeros.data() + group * row_bytes + block * packed_rows / 2, rows, zeros);
        std::uint8_t* const stream = to.zeros + shape.zero_offset(block, group);
        for (index_t r = 0; r < packed_rows; r += 2) {
          stream[r / 2] = static_cast<std::uint8_t>(zeros[r] | zeros[r + 1] << 4);
        }
      }
    }
  }
  streaming_store_fence();
}

template <storage_format Format, class Executor>
packed_matrix<Format> pack_awq(awq_view const& tensors, Executor&& executor, int parts) {
  check_awq<Format>(tensors);
  packed_matrix<Format> packed(tensors.out, tensors.in);
  index_t const blocks = packed.layout().row_blocks();
  executor(parts, [&](int part) noexcept {
    pack_awq_blocks<Format>(tensors, blocks * part / parts, blocks * (part + 1) / parts, packed.memory());
  });
  return packed;
}

}  // namespace gptq::checkpoint::detail
