// What the library throws when an argument or a file is wrong. Running out of memory is std::bad_alloc, and what
// a caller's function throws comes through as it is.
#pragma once

#include <stdexcept>

namespace gptq {

/// Thrown at the API boundary when an argument or a file is wrong; what() names what is wrong and, where it
/// applies, the position and the value. Kernels never throw.
struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace gptq
