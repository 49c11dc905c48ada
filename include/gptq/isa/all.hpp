// The operations of every architecture that this translation unit is compiled for: each header is empty where
// the compiler's flags do not allow it. isa.hpp is their list.
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
