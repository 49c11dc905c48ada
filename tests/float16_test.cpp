#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <gptq/float16.hpp>
#include <gptq/float8.hpp>

#include "catch.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using gptq::bfloat16;
using gptq::float16;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

[[maybe_unused]] std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

/// What distinguishes the two types; everything below holds for both.
template <class T>
struct traits;

template <>
struct traits<float16> {
  static constexpr std::uint16_t positive_infinity = 0x7c00, quiet_bit = 0x0200;
  static constexpr float overflow =
      65520;  // halfway between the largest finite value and the next power of two
};

template <>
struct traits<bfloat16> {
  static constexpr std::uint16_t positive_infinity = 0x7f80, quiet_bit = 0x0040;
  static constexpr float overflow = 0x1.ffp+127f;
};

template <class T>
std::uint16_t rounded(float value) {
  return T{value}.bits;
}

}  // namespace

TEMPLATE_TEST_CASE("16-bit floats are two bytes to be read from a file", "[float16]", float16, bfloat16) {
  STATIC_REQUIRE(sizeof(TestType) == 2);
  STATIC_REQUIRE(std::is_trivially_copyable_v<TestType>);
  STATIC_REQUIRE(std::is_trivially_default_constructible_v<TestType>);
  STATIC_REQUIRE(!std::is_convertible_v<float, TestType>);  // rounding is asked for
  STATIC_REQUIRE(std::is_convertible_v<TestType, float>);
  STATIC_REQUIRE(TestType{1.5f} == 1.5f);
}

TEST_CASE("known values of 16-bit floats", "[float16]") {
  CHECK(rounded<float16>(1) == 0x3c00);
  CHECK(rounded<float16>(-2) == 0xc000);
  CHECK(rounded<float16>(0.1f) == 0x2e66);
  CHECK(rounded<float16>(65504) == 0x7bff);
  CHECK(rounded<float16>(0x1p-14f) == 0x0400);  // the smallest normal value
  CHECK(rounded<float16>(0x1p-24f) == 0x0001);  // the smallest value
  CHECK(rounded<float16>(-0.0f) == 0x8000);
  CHECK(rounded<bfloat16>(1) == 0x3f80);
  CHECK(rounded<bfloat16>(-2) == 0xc000);
  CHECK(rounded<bfloat16>(0.1f) == 0x3dcd);
  CHECK(rounded<bfloat16>(0x1p-133f) == 0x0001);
  CHECK(rounded<bfloat16>(-0.0f) == 0x8000);
}

TEMPLATE_TEST_CASE("all 65536 values survive float and back", "[float16]", float16, bfloat16) {
  using t = traits<TestType>;
  int wrong = 0;
  for (std::uint32_t b = 0; b < 0x10000; ++b) {
    auto const bits = static_cast<std::uint16_t>(b);
    float const value = TestType::from_bits(bits);
    bool const nan = (bits & 0x7fff) > t::positive_infinity;
    wrong += std::isnan(value) != nan;
    wrong += std::signbit(value) != (bits >= 0x8000);
    wrong += rounded<TestType>(value) != (nan ? bits | t::quiet_bit : bits);
  }
  CHECK(wrong == 0);
}

// Between two neighbours the value halfway goes to the even one, everything else to the nearer one. Checked
// for every pair, subnormal or not, of either sign.
TEMPLATE_TEST_CASE("rounding is to nearest, ties to even", "[float16]", float16, bfloat16) {
  int wrong = 0;
  for (std::uint16_t low = 0; low + 1 < traits<TestType>::positive_infinity; ++low) {
    auto const high = static_cast<std::uint16_t>(low + 1);
    // In double, because the halfway point of two bfloat16 may be below float's smallest value.
    double const halfway = (static_cast<double>(static_cast<float>(TestType::from_bits(low))) +
                            static_cast<double>(static_cast<float>(TestType::from_bits(high)))) /
                           2;
    auto const tie = static_cast<float>(halfway);
    wrong += static_cast<double>(tie) != halfway;
    for (int const sign : {0, 0x8000}) {
      float const direction = sign == 0 ? 1.0f : -1.0f;
      wrong += rounded<TestType>(direction * tie) != (sign | (low % 2 == 0 ? low : high));
      wrong += rounded<TestType>(direction * std::nextafter(tie, 0.0f)) != (sign | low);
      wrong += rounded<TestType>(direction * std::nextafter(tie, infinity)) != (sign | high);
    }
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("overflow gives infinity", "[float16]", float16, bfloat16) {
  using t = traits<TestType>;
  auto const largest = static_cast<std::uint16_t>(t::positive_infinity - 1);
  CHECK(rounded<TestType>(std::nextafter(t::overflow, 0.0f)) == largest);
  CHECK(rounded<TestType>(t::overflow) == t::positive_infinity);
  CHECK(rounded<TestType>(std::numeric_limits<float>::max()) == t::positive_infinity);
  CHECK(rounded<TestType>(infinity) == t::positive_infinity);
  CHECK(rounded<TestType>(-infinity) == (0x8000 | t::positive_infinity));
}

TEMPLATE_TEST_CASE("NaN stays a quiet NaN of the same sign", "[float16]", float16, bfloat16) {
  using t = traits<TestType>;
  for (std::uint32_t const nan : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffc01234u}) {
    std::uint16_t const bits = rounded<TestType>(std::bit_cast<float>(nan));
    CHECK((bits & 0x7fff) > t::positive_infinity);
    CHECK((bits & t::quiet_bit) != 0);
    CHECK(bits >> 15 == nan >> 31);
  }
}

namespace {

/// The number of float8 values that `x` is not rounded to although they are nearer; all values of T are tried.
template <class T>
int nearer_ones(float x) {
  auto const distance = [&](T value) {
    return std::abs(static_cast<double>(float{value}) - static_cast<double>(x));
  };
  double const chosen = distance(T(x));
  int nearer = 0;
  for (int bits = 0; bits < 256; ++bits) {
    T const other = T::from_bits(static_cast<std::uint8_t>(bits));
    nearer += distance(other) < chosen;  // never of NaN
  }
  return nearer;
}

}  // namespace

TEST_CASE("scales of a byte: every value comes back, all others become the nearest", "[float16]") {
  int wrong = 0;
  for (int bits = 0; bits < 256; ++bits) {
    auto const byte = static_cast<std::uint8_t>(bits);
    float const power = gptq::e8m0::from_bits(byte);
    float const scale = gptq::e4m3::from_bits(byte);
    wrong += bits == 255 ? !std::isnan(power) : power != std::ldexp(1.0F, bits - 127);
    wrong += gptq::e8m0(power).bits != bits;
    int const magnitude = bits & 127;
    int const exponent = magnitude / 8;
    float const expected = exponent == 0 ? std::ldexp(static_cast<float>(magnitude), -9)
                                         : std::ldexp(static_cast<float>(8 + magnitude % 8), exponent - 10);
    wrong += magnitude == 127 ? !std::isnan(scale) : scale != (bits < 128 ? expected : -expected);
    if (magnitude != 127) wrong += gptq::e4m3(scale).bits != bits;
  }
  for (std::uint64_t word = 0; word < 0x7f800000u; word += 65521) {
    float const x = std::bit_cast<float>(static_cast<std::uint32_t>(word));
    wrong += nearer_ones<gptq::e8m0>(x) + nearer_ones<gptq::e4m3>(x) + nearer_ones<gptq::e4m3>(-x);
    wrong += gptq::e8m0(-x).bits != gptq::e8m0(x).bits;
  }
  CHECK(wrong == 0);
  CHECK((gptq::e8m0(0.0F).bits == 0 && gptq::e8m0(1.5F) == 2.0F && gptq::e8m0(0x1.7fp0F) == 1.0F));
  CHECK((gptq::e4m3(17.0F) == 16.0F && gptq::e4m3(19.0F) == 20.0F));         // ties to even
  CHECK((gptq::e4m3(0x1p-10F) == 0.0F && gptq::e4m3(0x3p-10F) == 0x1p-8F));  // and below 2^-6
  CHECK((gptq::e4m3(1e9F) == 448.0F && gptq::e4m3(-464.0F) == -448.0F));
  for (float const bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    CHECK((std::isnan(float{gptq::e8m0(bad)}) && std::isnan(float{gptq::e4m3(bad)})));
  }
}

#if defined(__x86_64__)
namespace {

// Asked of the CPU at run time, so that the comparison does not depend on how the tests are compiled.
__attribute__((target("f16c"))) std::uint16_t cpu_round(float value) {
  return static_cast<std::uint16_t>(
      _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT)));
}

__attribute__((target("f16c"))) float cpu_widen(std::uint16_t bits) { return _cvtsh_ss(bits); }

}  // namespace

TEST_CASE("float16 agrees with the CPU's own conversion", "[float16]") {
  if (!__builtin_cpu_supports("avx2"))
    return;  // every CPU with AVX2 has F16C; clang 14 cannot ask for the latter
  int wrong = 0;
  for (std::uint64_t word = 0; word <= 0xffffffffu; word += 251) {  // a prime: all low bits come up
    float const value = std::bit_cast<float>(static_cast<std::uint32_t>(word));
    wrong += rounded<float16>(value) != cpu_round(value);
  }
  for (std::uint32_t b = 0; b < 0x10000; ++b) {
    auto const bits = static_cast<std::uint16_t>(b);
    if ((bits & 0x7fff) > 0x7c00 && (bits & 0x0200) == 0) continue;  // the CPU quiets a signaling NaN here
    wrong += bits_of(float16::from_bits(bits)) != bits_of(cpu_widen(bits));
  }
  CHECK(wrong == 0);
}
#endif
