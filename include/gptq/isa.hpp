// The instruction sets (ISAs) that there are kernels for, as types.
//
//   gptq::isa::native                  the best ISA that this translation unit is compiled for
//   gptq::isa::compiled                all of those, best first, as a gptq::isa::list
//   gptq::isa::avx2::supported()       whether the CPU and the operating system under this program have it
//
//   gptq::gemv<gptq::precision::int8, gptq::isa::native>(w, x, y);    // this one, which is the default
//
// A new ISA "foo" is, and tests/isa_test.cpp or the build says which of these is missing:
//   - isa/foo.hpp, what kernels do there: operations<isa::foo> (kernels/operations.hpp), included by isa/all.hpp
//   - GPTQ_FOO in isa/flags.hpp: whether the compiler's flags allow it
//   - a type here, and its place in `all`
//   - a line in cmake/isa.cmake: its flags. Dispatch, tests and benchmarks follow from that table.
//   - a line in tests/kernels/instructions.cmake: an instruction that its kernels must have
#pragma once

#include <string_view>
#include <type_traits>

#include <gptq/config.hpp>
#include <gptq/isa/detect.hpp>
#include <gptq/isa/flags.hpp>

namespace gptq::isa {

/// Any CPU: what xsimd makes of the compiler's flags. Compiled where there is nothing better, or with
/// GPTQ_WITH_GENERIC defined.
struct generic {
  static constexpr std::string_view name = "generic";
  /// Whether this translation unit may have kernels for it.
  static constexpr bool compiled = GPTQ_GENERIC != 0;
  /// Whether this CPU can run them.
  GPTQ_INLINE static bool supported() { return true; }
};

/// AVX2 with FMA and F16C (Haswell, Zen).
struct avx2 {
  static constexpr std::string_view name = "avx2";
  static constexpr bool compiled = GPTQ_AVX2 != 0;
  GPTQ_INLINE static bool supported() { return detail::has_avx2(); }
};

/// AVX2 with dot products of bytes in 256 bits (Alder Lake, Sapphire Rapids, Zen 5).
struct avxvnni {
  static constexpr std::string_view name = "avxvnni";
  static constexpr bool compiled = GPTQ_AVXVNNI != 0;
  GPTQ_INLINE static bool supported() { return detail::has_avx2() && detail::has_avx_vnni(); }
};

/// AVX-512 F, BW, DQ and VL (Skylake-X).
struct avx512bw {
  static constexpr std::string_view name = "avx512bw";
  static constexpr bool compiled = GPTQ_AVX512BW != 0;
  GPTQ_INLINE static bool supported() { return detail::has_avx512bw(); }
};

/// The same with dot products of bytes (Cascade Lake, Ice Lake, Zen 4).
struct avx512vnni {
  static constexpr std::string_view name = "avx512vnni";
  static constexpr bool compiled = GPTQ_AVX512VNNI != 0;
  GPTQ_INLINE static bool supported() { return detail::has_avx512vnni(); }
};

/// AMX tiles of bytes for gemm, AVX-512 VNNI for everything else (Sapphire Rapids).
struct amx_int8 {
  static constexpr std::string_view name = "amx_int8";
  static constexpr bool compiled = GPTQ_AMX_INT8 != 0;
  /// Asks Linux for the right to use tiles, which it grants to a process as a whole.
  GPTQ_INLINE static bool supported() {
    return detail::has_avx512vnni() && detail::has_amx_int8() && detail::may_use_tiles();
  }
};

/// AArch64 Advanced SIMD.
struct neon {
  static constexpr std::string_view name = "neon";
  static constexpr bool compiled = GPTQ_NEON != 0;
  GPTQ_INLINE static bool supported() { return detail::has_neon(); }
};

/// The same with dot products of bytes (ARMv8.2, Apple M1, Graviton 2).
struct neon_dotprod {
  static constexpr std::string_view name = "neon_dotprod";
  static constexpr bool compiled = GPTQ_NEON_DOTPROD != 0;
  GPTQ_INLINE static bool supported() { return detail::has_neon() && detail::has_neon_dot_product(); }
};

/// ISAs, best first.
template <class... Isas>
struct list {};

/// Every ISA, best first.
using all = list<amx_int8, avx512vnni, avx512bw, avxvnni, avx2, neon_dotprod, neon, generic>;

namespace detail {

/// What amx_int8 falls back to: the operations of avx512vnni, under a name that no other object file has.
struct amx_without_tiles {};

template <class Kept, class Rest>
struct compiled_part {
  using type = Kept;
};
template <class... Kept, class First, class... Rest>
struct compiled_part<list<Kept...>, list<First, Rest...>>
    : compiled_part<std::conditional_t<First::compiled, list<Kept..., First>, list<Kept...>>, list<Rest...>> {
};

template <class List>
struct front {
  using type = generic;  // and then an error that says what is missing: kernels/operations.hpp
};
template <class First, class... Rest>
struct front<list<First, Rest...>> {
  using type = First;
};

}  // namespace detail

/// The ISAs of `all` that this translation unit is compiled for, best first.
using compiled = detail::compiled_part<list<>, all>::type;

/// The best ISA that this translation unit is compiled for; or the one that GPTQ_ISA names, as
/// gptq_dispatch() of cmake/dispatch.cmake defines it.
#if defined(GPTQ_ISA)
using native = GPTQ_ISA;
#else
using native = detail::front<compiled>::type;
#endif

}  // namespace gptq::isa
