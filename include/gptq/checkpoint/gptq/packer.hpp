// The tensors of a GPTQ checkpoint in the packed layout, without a layer in between.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include <gptq/checkpoint/gptq/checks.hpp>
#include <gptq/checkpoint/gptq/tensors.hpp>
#include <gptq/checkpoint/gptq/word_units.hpp>
#include <gptq/checkpoint/words/byte_columns.hpp>
#include <gptq/checkpoint/words/entries.hpp>
#include <gptq/checkpoint/words/streaming_store.hpp>
#include <gptq/format.hpp>
#include <gptq/packed.hpp>

namespace gptq::checkpoint::detail {

/// Scales and zero points of a row block and group, padding included.
template <storage_format Format>
void pack_grids(gptq_view const& tensors, gptq_version version, index_t block, index_t group,
                typename Format::scale* scales, std::uint8_t* zeros) noexcept {
  auto const shape = packed_layout<Format>{tensors.out, tensors.in};
  index_t const rows = std::min(packed_rows, tensors.out - block * packed_rows);
  scales += shape.scale_offset(block, group);
  index_t const copied = std::is_same_v<typename Format::scale, float16> ? rows : 0;
  std::memcpy(scales, tensors.scales.data() + 2 * (group * tensors.out + block * packed_rows),
              static_cast<std::size_t>(2 * copied));
  for (index_t r = copied; r < packed_rows; ++r) {
    scales[r] = typename Format::scale(
        r < rows ? static_cast<float>(scale_at(tensors, block * packed_rows + r, group)) : 0.0F);
  }
  if constexpr (Format::has_zero_point) {
    constexpr index_t bits = Format::bits;
    zeros += shape.zero_offset(block, group);
    if (rows < packed_rows) {
      std::memset(zeros, 0, packed_layout<Format>::zero_tile_bytes);
      for (index_t r = 0; r < rows; ++r) {
        gptq::detail::set_stream_code<Format::bits>(
            zeros, r, zero_at<Format>(tensors, version, block * packed_rows + r, group));
      }
      return;
    }
    // The same stream; version 1 lacks a one in every entry, of which none is full.
    index_t const from = group * (tensors.out * bits / 32) + block * bits;
    std::uint64_t carry = 0;
    for (index_t i = 0; i < bits; ++i) {
      std::uint64_t const one = version == gptq_version::v1 ? repeated_word(Format::bits, 1, i) : 0U;
      std::uint64_t const sum = word_at(tensors.qzeros, from + i) + one + carry;
      auto const word = static_cast<std::uint32_t>(sum);
      carry = sum >> 32;
      std::memcpy(zeros + 4 * i, &word, sizeof word);
    }
  }
}

/// Row blocks [first, last) into arrays as packed_view has them.
template <storage_format Format>
void pack_row_blocks(gptq_view const& tensors, gptq_version version, std::vector<std::int32_t> const& order,
                     index_t first, index_t last, std::uint8_t* codes, typename Format::scale* scales,
                     std::uint8_t* zeros) {
  using units = word_units<Format::bits>;
  using columns_of = byte_columns<Format::bits>;
  constexpr index_t unit_columns = packed_layout<Format>::unit_columns;
  auto const shape = packed_layout<Format>{tensors.out, tensors.in};
  // Groups begin with a word, and end with one: the last has whole words because a row has.
  bool const whole_words =
      order.empty() && (shape.groups() == 1 || shape.group_columns() % unit_columns == 0);
  // Row blocks side by side, so that memory is read in runs of so many times 128 bytes.
  index_t const together = whole_words ? 4 : 2;
  // Other columns are gathered from a copy, one code a byte: `out` words apart, which often is a power of two, they
  // would drive each other out of the caches.
  index_t const units_of_row = (tensors.in + unit_columns - 1) / unit_columns;
  index_t const copied = whole_words ? 0 : units_of_row * unit_columns * columns_of::column_bytes;
  std::vector<std::uint8_t> copy(static_cast<std::size_t>(together * copied));
  for (index_t begin = first; begin < last; begin += together) {
    index_t const end = std::min(begin + together, last);
    auto const rows = [&](index_t block) { return std::min(packed_rows, tensors.out - block * packed_rows); };
    // The words of a row lie on pages of their own, which no prefetcher crosses: they are asked for this many
    // words before they are due.
    auto const fetched = [&](index_t block, index_t unit) {
      constexpr index_t ahead = 8;
      std::byte const* const row_block = tensors.qweight.data() + 4 * block * packed_rows;
      index_t const word = unit * units::words;
      for (index_t w = word + ahead; w < std::min(word + ahead + units::words, units_of_row * units::words);
           ++w) {
        __builtin_prefetch(row_block + 4 * w * tensors.out);
        __builtin_prefetch(row_block + 4 * (w * tensors.out + rows(block) - 1));
      }
      return row_block + 4 * word * tensors.out;
    };
    for (index_t unit = 0; unit < units_of_row && copied != 0; ++unit) {
      for (index_t block = begin; block < end; ++block) {
        columns_of::spread(
            fetched(block, unit), tensors.out, rows(block),
            copy.data() + (block - begin) * copied + unit * unit_columns * columns_of::column_bytes);
      }
    }
    for (index_t group = 0; group < shape.groups(); ++group) {
      for (index_t block = begin; block < end; ++block) {
        pack_grids<Format>(tensors, version, block, group, scales, zeros);
      }
      index_t const columns = shape.group_columns(group);
      for (index_t c = 0; c < columns; c += unit_columns) {
        index_t const column = group * shape.group_columns() + c;
        for (index_t block = begin; block < end; ++block) {
          std::uint8_t* const unit =
              codes + shape.code_offset(block, group) + c / unit_columns * packed_layout<Format>::unit_bytes;
          if (whole_words) {
            units::convert(fetched(block, column / unit_columns), tensors.out, rows(block), unit);
          } else {
            index_t const count = std::min(unit_columns, columns - c);
            std::uint8_t const* columns_at[unit_columns];
            for (index_t i = 0; i < count; ++i) {
              index_t const from =
                  order.empty() ? column + i : index_t{order[static_cast<std::size_t>(column + i)]};
              columns_at[i] = copy.data() + (block - begin) * copied + from * columns_of::column_bytes;
            }
            columns_of::gather(columns_at, count, unit);
          }
        }
      }
    }
  }
  streaming_store_fence();
}

template <storage_format Format, class Executor>
packed_matrix<Format> pack_words(gptq_view const& tensors, gptq_version version, Executor&& executor,
                                 int parts) {
  auto const order = check_gptq<Format>(tensors, version);
  packed_matrix<Format> packed(tensors.out, tensors.in);
  packed.order() = order;
  index_t const blocks = packed.layout().row_blocks();
  std::atomic<bool> no_memory = false;  // what an executor calls does not throw
  executor(parts, [&](int part) noexcept {
    try {
      pack_row_blocks<Format>(tensors, version, order, blocks * part / parts, blocks * (part + 1) / parts,
                              packed.codes(), packed.scales(), packed.zeros());
    } catch (std::bad_alloc const&) {
      no_memory = true;
    }
  });
  if (no_memory) throw std::bad_alloc();
  return packed;
}

}  // namespace gptq::checkpoint::detail
