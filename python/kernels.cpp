// Compiled once for each ISA, which is gptq::isa::native here.
#include "kernels.hpp"

#include <gptq/gemm.hpp>

namespace python {
namespace {

template <class... Formats>
table<gptq::format_list<Formats...>> all(gptq::format_list<Formats...> /*formats*/) {
  return {products<Formats>{.gemv = gptq::gemv, .prepare = gptq::prepare, .gemm = gptq::gemm}...};
}

}  // namespace

template <>
table<formats> kernels_for<gptq::isa::native>() {
  return all(formats{});
}

}  // namespace python
