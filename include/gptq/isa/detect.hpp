// What the CPU and the operating system under this program have.
#pragma once

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

namespace gptq::isa::detail {

// clang's builtin does not know F16C, which every CPU with AVX2 has.
GPTQ_INLINE bool has_avx2() { return GPTQ_CPU_HAS("avx2") && GPTQ_CPU_HAS("fma"); }

GPTQ_INLINE bool has_avx_vnni() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0;
#else
  return false;
#endif
}

GPTQ_INLINE bool has_avx512bw() {
  return has_avx2() && GPTQ_CPU_HAS("avx512f") && GPTQ_CPU_HAS("avx512bw") && GPTQ_CPU_HAS("avx512dq") &&
         GPTQ_CPU_HAS("avx512vl");
}

GPTQ_INLINE bool has_avx512vnni() { return has_avx512bw() && GPTQ_CPU_HAS("avx512vnni"); }

/// Asks Linux for the right to use AMX tiles, which it grants to a process as a whole, on a CPU that has them.
/// Costs a fraction of a microsecond; cpuid, in a virtual machine, many times that.
GPTQ_INLINE bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

GPTQ_INLINE bool has_amx_int8() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  unsigned const tile_and_int8 = 3u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & tile_and_int8) == tile_and_int8;
#else
  return false;
#endif
}

GPTQ_INLINE bool has_neon() {
#if defined(__aarch64__)
  return true;
#else
  return false;
#endif
}

GPTQ_INLINE bool has_neon_dot_product() {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) & (1u << 20)) != 0;  // HWCAP_ASIMDDP
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

/// Whether codes come faster from memory when kernels fetch them ahead. On Emerald Rapids they do by a third;
/// on Zen 4 the CPU alone is faster by a fourth.
GPTQ_INLINE bool wants_prefetches() { return GPTQ_CPU_IS("intel"); }

}  // namespace gptq::isa::detail
