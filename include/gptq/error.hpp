// The one exception type of the library.
#pragma once

#include <stdexcept>

namespace gptq {

/// Thrown at the API boundary when an argument or a file is wrong; what() names what is wrong and, where it
/// applies, the position and the value. Kernels never throw.
struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace gptq
