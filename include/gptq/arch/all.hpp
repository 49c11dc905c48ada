// The operations of every architecture that this translation unit is compiled for; isa.hpp is their list.
#pragma once

#include <gptq/arch/generic.hpp>
#include <gptq/arch/isa.hpp>

#if defined(GPTQ_AVX2)
#include <gptq/arch/avx2.hpp>
#endif
#if defined(GPTQ_AVXVNNI)
#include <gptq/arch/avxvnni.hpp>
#endif
#if defined(GPTQ_AVX512BW)
#include <gptq/arch/avx512bw.hpp>
#endif
#if defined(GPTQ_AVX512VNNI)
#include <gptq/arch/avx512vnni.hpp>
#endif
#if defined(GPTQ_NEON)
#include <gptq/arch/neon.hpp>
#endif
#if defined(GPTQ_NEON_DOTPROD)
#include <gptq/arch/neon_dotprod.hpp>
#endif
#if defined(GPTQ_AMX_INT8)
#include <gptq/arch/amx_int8.hpp>
#endif
