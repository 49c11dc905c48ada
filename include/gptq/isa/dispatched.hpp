// The ISAs that this program has kernels for: what gptq_dispatch() of cmake/dispatch.cmake tells of a target to all
// that link it.
#pragma once

#include <gptq/isa.hpp>

namespace gptq::isa {

#if defined(GPTQ_DISPATCH_ISAS)
using dispatched = list<GPTQ_DISPATCH_ISAS>;
#elif GPTQ_AVX2 || GPTQ_NEON || !defined(__x86_64__)
using dispatched = list<native>;
#else
struct dispatched : list<native> {
  // Of the constructor, since g++ says nothing of a deprecated type here.
  [[deprecated(
      "this program has kernels for isa::generic alone, several times slower than those for its CPU: "
      "link the target that gptq_dispatch() was called for, or say isa::list<isa::generic>")]]  //
  constexpr dispatched() {}  // NOLINT(modernize-use-equals-default): a defaulted one warns nobody
};
#endif

}  // namespace gptq::isa
