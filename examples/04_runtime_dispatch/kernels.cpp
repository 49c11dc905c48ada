// Compiled once for each ISA, which is gptq::isa::native here: see gptq_dispatch() in
// CMakeLists.txt.
#include "kernels.hpp"

#include <gptq/gemm.hpp>

template <>
kernels kernels_for<gptq::isa::native>() {
  return {.prepare = gptq::prepare, .gemv = gptq::gemv, .gemm = gptq::gemm};
}
