// What the compiler's flags allow this translation unit: GPTQ_<ISA> is 1 or 0 for each ISA of isa.hpp.
// cmake/isa.cmake has the flags.
#pragma once

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GPTQ_AVX2 1
#else
#define GPTQ_AVX2 0
#endif

#if GPTQ_AVX2 && defined(__AVXVNNI__)
#define GPTQ_AVXVNNI 1
#else
#define GPTQ_AVXVNNI 0
#endif

#if GPTQ_AVX2 && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define GPTQ_AVX512BW 1
#else
#define GPTQ_AVX512BW 0
#endif

#if GPTQ_AVX512BW && defined(__AVX512VNNI__)
#define GPTQ_AVX512VNNI 1
#else
#define GPTQ_AVX512VNNI 0
#endif

// clang calls it __AMXINT8__ in some versions. Tiles are asked of Linux: isa/detect.hpp.
#if GPTQ_AVX512VNNI && (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__linux__)
#define GPTQ_AMX_INT8 1
#else
#define GPTQ_AMX_INT8 0
#endif

#if defined(__aarch64__) && defined(__ARM_NEON)
#define GPTQ_NEON 1
#else
#define GPTQ_NEON 0
#endif

#if GPTQ_NEON && defined(__ARM_FEATURE_DOTPROD)
#define GPTQ_NEON_DOTPROD 1
#else
#define GPTQ_NEON_DOTPROD 0
#endif

// Kernels for any CPU are written with xsimd, if its headers are there. They take as long to read as everything
// else here together: where there are better kernels, only if GPTQ_WITH_GENERIC is defined.
#if __has_include(<xsimd/xsimd.hpp>) && (defined(GPTQ_WITH_GENERIC) || !(GPTQ_AVX2 || GPTQ_NEON))
#define GPTQ_GENERIC 1
#else
#define GPTQ_GENERIC 0
#endif
