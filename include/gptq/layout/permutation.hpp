// Whether a column order holds each column once.
#pragma once

#include <cstdint>
#include <cstdlib>

#include <gptq/config.hpp>

namespace gptq::detail {

/// The first position of order[0..in) whose column is none of 0..in-1, or stands at an earlier position;
/// -1 if there is none, -2 without memory for `in` bytes.
inline index_t permutation_fault(std::int32_t const* order, index_t in) noexcept {
  if (in == 0) return -1;
  // From C, so that a program without C++'s library can have it.
  auto* const seen = static_cast<unsigned char*>(std::calloc(static_cast<std::size_t>(in), 1));
  if (seen == nullptr) return -2;
  index_t fault = -1;
  for (index_t p = 0; p < in && fault == -1; ++p) {
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
