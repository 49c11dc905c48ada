// The list of ISAs: the same in isa.hpp and in CMake, and what this translation unit is compiled for.
#include <string>
#include <type_traits>

#include <gptq/isa.hpp>
#include <gptq/isa/all.hpp>

#include "catch.hpp"

namespace isa = gptq::isa;

namespace {

template <class... Isas>
std::string names(isa::list<Isas...>) {
  std::string all;
  ((all += (all.empty() ? "" : " ") + std::string(Isas::name)), ...);
  return all;
}

/// A CPU can run what the compiler takes for granted, or this test could not run.
template <class... Isas>
bool all_supported(isa::list<Isas...>) {
  return (Isas::supported() && ...);
}

}  // namespace

TEST_CASE("isa.hpp and cmake/isa.cmake list the same ISAs, best first", "[isa]") {
  CHECK(names(isa::all{}) == GPTQ_ISA_TABLE);
}

TEST_CASE("compiled ISAs are those of the flags, best first", "[isa]") {
  std::string expected;
#if defined(__AVX512VNNI__) && defined(__AMX_INT8__)
  expected += "amx_int8 ";
#endif
#if defined(__AVX512VNNI__)
  expected += "avx512vnni ";
#endif
#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
  expected += "avx512bw ";
#endif
#if defined(__AVXVNNI__)
  expected += "avxvnni ";
#endif
#if defined(__AVX2__)
  expected += "avx2 ";
#endif
#if defined(__ARM_FEATURE_DOTPROD)
  expected += "neon_dotprod ";
#endif
#if defined(__aarch64__)
  expected += "neon ";
#endif
#if __has_include(<xsimd/xsimd.hpp>) && !defined(__AVX2__) && !defined(__aarch64__)
  expected += "generic ";
#endif
  CHECK(names(isa::compiled{}) + " " == expected);
  CHECK(expected.find(isa::native::name) == 0);
  CHECK(all_supported(isa::compiled{}));
}

namespace {

/// As operations, but for one thing that kernels need.
struct no_round : gptq::detail::operations<isa::native> {
  static void round() = delete;
};
struct no_panels : gptq::detail::operations<isa::native> {
  static constexpr int panel_blocks = 3;
};
struct no_dot : gptq::detail::operations<isa::native> {
  static void dot() = delete;
};

}  // namespace

static_assert(gptq::detail::isa_operations<gptq::detail::operations<isa::native>>);
static_assert(!gptq::detail::isa_operations<no_round>);
static_assert(!gptq::detail::isa_operations<no_panels>);
static_assert(!gptq::detail::isa_operations<no_dot>);
