// The operations of every ISA that this translation unit is compiled for: each header is empty where the
// compiler's flags do not allow it.
#pragma once

#include <gptq/isa.hpp>
#include <gptq/isa/amx_int8.hpp>
#include <gptq/isa/avx2.hpp>
#include <gptq/isa/avx512bw.hpp>
#include <gptq/isa/avx512vnni.hpp>
#include <gptq/isa/avxvnni.hpp>
#include <gptq/isa/generic.hpp>
#include <gptq/isa/neon.hpp>
#include <gptq/isa/neon_dotprod.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

template <class... Isas>
constexpr bool all_have_operations(isa::list<Isas...>) {
  return (isa_operations<operations<Isas>> && ...);
}
static_assert(all_have_operations(isa::compiled{}),
              "gptq: an ISA of isa.hpp has no header here, or an incomplete one");

}  // namespace gptq::detail
