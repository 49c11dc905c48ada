// The chunks of a row, one after the other.
#pragma once

#include <gptq/activations.hpp>
#include <gptq/config.hpp>

namespace gptq::detail {

/// Walks over chunks, without a division a chunk.
struct chunk_walk {
  index_t group_columns;
  index_t row_left;    ///< columns of the row from this chunk on
  index_t group_left;  ///< columns of the group from this chunk on
  index_t group;

  GPTQ_INLINE chunk_walk(chunk_layout const& chunks, index_t chunk) : group_columns(chunks.group_columns) {
    group = chunks.group(chunk);
    group_left = group_columns - chunks.offset_in_group(chunk);
    row_left = chunks.in - group * group_columns - chunks.offset_in_group(chunk);
  }
  /// Columns of this chunk.
  GPTQ_INLINE index_t columns() const {
    index_t const left = group_left < row_left ? group_left : row_left;
    return left < max_chunk_columns ? left : max_chunk_columns;
  }
  GPTQ_INLINE void next(index_t columns) {
    row_left -= columns;
    group_left -= columns;
    if (group_left == 0) {
      group_left = group_columns;
      ++group;
    }
  }
};

}  // namespace gptq::detail
