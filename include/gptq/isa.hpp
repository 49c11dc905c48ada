// The one list of architectures. A tag says what an architecture is called and whether this CPU has it; what
// kernels do there is in the header of the same name.
//
//   isa::native                    the best architecture that this translation unit is compiled for
//   isa::compiled                  all of those, best first
//   isa::avx2::supported()         whether the CPU and the operating system below us can run it
//
// A new architecture is a header, a tag here, and a word in tests/CMakeLists.txt.
#pragma once

#include <cstdint>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <unistd.h>

#include <sys/auxv.h>
#include <sys/syscall.h>
#endif

#include <gptq/config.hpp>

#if defined(__x86_64__)
#define GPTQ_CPU_HAS(feature) (__builtin_cpu_supports(feature) != 0)
#define GPTQ_CPU_IS(vendor) (__builtin_cpu_is(vendor) != 0)
#else
#define GPTQ_CPU_HAS(feature) false
#define GPTQ_CPU_IS(vendor) false
#endif

namespace gptq::isa {

namespace detail {
/// What amx_int8 falls back to: the operations of avx512vnni, under a name that no other object file has.
struct amx_without_tiles {};

bool has_avx_vnni();
bool may_use_amx();
bool has_dot_product();
}  // namespace detail

/// Any CPU: what xsimd makes of the compiler's flags.
struct generic {
  static constexpr std::string_view name = "generic";
  GPTQ_INLINE static bool supported() { return true; }
};

/// AVX2 with FMA and F16C (Haswell, Zen).
struct avx2 {
  static constexpr std::string_view name = "avx2";
  // clang's builtin does not know F16C, which every CPU with AVX2 has.
  GPTQ_INLINE static bool supported() { return GPTQ_CPU_HAS("avx2") && GPTQ_CPU_HAS("fma"); }
};

/// AVX2 with dot products of bytes in 256 bits (Alder Lake, Sapphire Rapids, Zen 5).
struct avxvnni {
  static constexpr std::string_view name = "avxvnni";
  GPTQ_INLINE static bool supported() { return avx2::supported() && detail::has_avx_vnni(); }
};

/// AVX-512 F, BW, DQ and VL (Skylake-X).
struct avx512bw {
  static constexpr std::string_view name = "avx512bw";
  GPTQ_INLINE static bool supported() {
    return avx2::supported() && GPTQ_CPU_HAS("avx512f") && GPTQ_CPU_HAS("avx512bw") &&
           GPTQ_CPU_HAS("avx512dq") && GPTQ_CPU_HAS("avx512vl");
  }
};

/// The same with dot products of bytes (Cascade Lake, Ice Lake, Zen 4).
struct avx512vnni {
  static constexpr std::string_view name = "avx512vnni";
  GPTQ_INLINE static bool supported() { return avx512bw::supported() && GPTQ_CPU_HAS("avx512vnni"); }
};

/// AMX tiles of bytes for gemm, AVX-512 VNNI for everything else (Sapphire Rapids).
struct amx_int8 {
  static constexpr std::string_view name = "amx_int8";
  /// Asks Linux for the right to use tiles, which it grants to a process as a whole.
  GPTQ_INLINE static bool supported() { return avx512vnni::supported() && detail::may_use_amx(); }
};

/// AArch64 Advanced SIMD.
struct neon {
  static constexpr std::string_view name = "neon";
  GPTQ_INLINE static bool supported() {
#if defined(__aarch64__)
    return true;
#else
    return false;
#endif
  }
};

/// The same with dot products of bytes (ARMv8.2, Apple M1, Graviton 2).
struct neon_dotprod {
  static constexpr std::string_view name = "neon_dotprod";
  GPTQ_INLINE static bool supported() { return neon::supported() && detail::has_dot_product(); }
};

template <class... Isas>
struct list {};

/// Every architecture, best first.
using all = list<amx_int8, avx512vnni, avx512bw, avxvnni, avx2, neon_dotprod, neon, generic>;

// What the compiler's flags allow.
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GPTQ_AVX2 1
#endif
#if defined(GPTQ_AVX2) && defined(__AVXVNNI__)
#define GPTQ_AVXVNNI 1
#endif
#if defined(GPTQ_AVX2) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define GPTQ_AVX512BW 1
#endif
#if defined(GPTQ_AVX512BW) && defined(__AVX512VNNI__)
#define GPTQ_AVX512VNNI 1
#endif
#if defined(GPTQ_AVX512VNNI) && (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__linux__)
#define GPTQ_AMX_INT8 1
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
#define GPTQ_NEON 1
#endif
#if defined(GPTQ_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define GPTQ_NEON_DOTPROD 1
#endif
#if __has_include(<xsimd/xsimd.hpp>)
#define GPTQ_GENERIC 1
#endif

/// The architectures that this translation unit is compiled for, best first.
using compiled = list<
#if defined(GPTQ_AMX_INT8)
    amx_int8,
#endif
#if defined(GPTQ_AVX512VNNI)
    avx512vnni,
#endif
#if defined(GPTQ_AVX512BW)
    avx512bw,
#endif
#if defined(GPTQ_AVXVNNI)
    avxvnni,
#endif
#if defined(GPTQ_AVX2)
    avx2,
#endif
#if defined(GPTQ_NEON_DOTPROD)
    neon_dotprod,
#endif
#if defined(GPTQ_NEON)
    neon,
#endif
    generic>;

namespace detail {
template <class First, class... Rest>
First first_of(list<First, Rest...>);
}  // namespace detail

/// The best architecture that this translation unit is compiled for; or the one that GPTQ_ISA names, as
/// gptq_dispatch() of cmake/dispatch.cmake defines it.
#if defined(GPTQ_ISA)
using native = GPTQ_ISA;
#else
using native = decltype(detail::first_of(compiled{}));
#endif

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

GPTQ_INLINE bool has_avx_vnni() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0;
#else
  return false;
#endif
}

// On a CPU that has tiles. Costs a fraction of a microsecond; cpuid, in a virtual machine, many times that.
GPTQ_INLINE bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

GPTQ_INLINE bool may_use_amx() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  unsigned const tile_and_int8 = 3u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & tile_and_int8) == tile_and_int8 &&
         may_use_tiles();
#else
  return false;
#endif
}

/// Whether codes come faster from memory when kernels fetch them ahead. On Emerald Rapids they do by a third;
/// on Zen 4 the CPU alone is faster by a fourth.
GPTQ_INLINE bool wants_prefetches() { return GPTQ_CPU_IS("intel"); }

GPTQ_INLINE bool has_dot_product() {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) & (1u << 20)) != 0;  // HWCAP_ASIMDDP
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

}  // namespace detail
}  // namespace gptq::isa
