// The operations of every architecture that this translation unit is compiled for: each header is empty where
// the compiler's flags do not allow it. isa.hpp is their list.
#pragma once

#include <gptq/arch/amx_int8.hpp>
#include <gptq/arch/avx2.hpp>
#include <gptq/arch/avx512bw.hpp>
#include <gptq/arch/avx512vnni.hpp>
#include <gptq/arch/avxvnni.hpp>
#include <gptq/arch/generic.hpp>
#include <gptq/arch/isa.hpp>
#include <gptq/arch/neon.hpp>
#include <gptq/arch/neon_dotprod.hpp>
