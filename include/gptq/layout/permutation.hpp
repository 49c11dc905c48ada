// Whether a column order holds each column once.
#pragma once

#include <cstdint>
#include <cstdlib>

#include <gptq/config.hpp>

namespace gptq::detail {

inline constexpr index_t is_permutation = -1;
inline constexpr index_t no_memory_for_it = -2;

/// The first position of order[0..in) whose column is none of 0..in-1, or stands at an earlier position;
/// is_permutation if there is none, no_memory_for_it without `in` bytes.
inline index_t permutation_fault(std::int32_t const* order, index_t in) noexcept {
  if (in == 0) return is_permutation;
  // From C, so that a program without C++'s library can have it.
  auto* const seen = static_cast<unsigned char*>(std::calloc(static_cast<std::size_t>(in), 1));
  if (seen == nullptr) return no_memory_for_it;
  index_t fault = is_permutation;
  for (index_t p = 0; p < in && fault == is_permutation; ++p) {
    std::int32_t const column = order[p];
    if (column < 0 || column >= in || seen[column] != 0) {
      fault = p;
    } else {
      seen[column] = 1;
    }
  }
  std::free(seen);
  return fault;
}

}  // namespace gptq::detail
