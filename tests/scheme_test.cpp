// What codes mean: encode and decode against exhaustive search and formulas in double.
#include <cfloat>
#include <cmath>

#include <gptq/code_books.hpp>
#include <gptq/scheme.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::code_levels;
using gptq::grid;

namespace {

// ---- the concept: what is a scheme, and what lacks something ----
struct no_name : gptq::symmetric {
 private:
  using gptq::symmetric::name;
};
struct without_zero_point {
  static constexpr std::string_view name = "without_zero_point";
  static constexpr bool has_zero_point = false;
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int bits) { return (1 << bits) - 1; }
};
struct double_zero_point : without_zero_point {
  static constexpr double zero_point(int /*bits*/) { return 2.0; }
};
struct wrong_code_type : gptq::symmetric {
  static constexpr unsigned max_code(int /*bits*/) { return 3; }
};
struct stored_zero_point : without_zero_point {
  static constexpr bool has_zero_point = true;
};

static_assert(gptq::quantization_scheme<gptq::asymmetric>);
static_assert(gptq::quantization_scheme<gptq::symmetric>);
static_assert(gptq::quantization_scheme<gptq::fixed_zero>);
static_assert(gptq::quantization_scheme<gptq::half_step>);
static_assert(gptq::quantization_scheme<test::five_levels>);
static_assert(gptq::quantization_scheme<test::mean_ternary>);
static_assert(gptq::quantization_scheme<test::even_zero>);
static_assert(gptq::quantization_scheme<stored_zero_point>);
static_assert(gptq::code_book<gptq::e2m1_levels> && gptq::quantization_scheme<gptq::e2m1_levels>);
static_assert(gptq::code_book<test::seven_levels> && !gptq::uniform_scheme<test::seven_levels>);
static_assert(!gptq::code_book<gptq::symmetric>);
static_assert(!gptq::quantization_scheme<int>);
static_assert(!gptq::quantization_scheme<no_name>);
static_assert(!gptq::quantization_scheme<without_zero_point>);
static_assert(!gptq::quantization_scheme<double_zero_point>);
static_assert(!gptq::quantization_scheme<wrong_code_type>);

// ---- all of it can be asked for at compile time ----
constexpr code_levels seven = gptq::scheme_levels<gptq::symmetric>(4);
static_assert(seven.min_code == 1 && seven.max_code == 15 && seven.zero == 8.0F && !seven.is_half_step());
static_assert(seven.encode(0.26F, {0.5F, 0}) == 9 && seven.decode(9, {0.5F, 0}) == 0.5F);
static_assert(gptq::scheme_levels<gptq::half_step>(4).is_half_step());
static_assert(gptq::scheme_levels<gptq::half_step>(2).zero == 1.5F);
static_assert(gptq::scheme_levels<gptq::fixed_zero>(8).zero == 128.0F);
static_assert(gptq::scheme_levels<gptq::asymmetric>(3).has_zero_point);
static_assert(!gptq::scheme_levels<gptq::asymmetric>(3).is_half_step());

constexpr code_levels fp4 = gptq::scheme_levels<gptq::e2m1_levels>(4);
static_assert(fp4.is_code_book() && fp4.min_code == 0 && fp4.max_code == 15 && !fp4.is_half_step());
static_assert(fp4.lowest() == -12.0F && fp4.highest() == 12.0F && fp4.least() == 0.0F && !fp4.is_lopsided());
static_assert(fp4.encode(-1.3F, {0.25F, 0}) == 13 && fp4.decode(14, {0.25F, 0}) == -2.0F);
constexpr code_levels iq4 = gptq::scheme_levels<gptq::iq4_nl_levels>(4);
static_assert(iq4.lowest() == -127.0F && iq4.highest() == 113.0F && iq4.least() == 1.0F && iq4.is_lopsided());
static_assert(gptq::scheme_levels<test::seven_levels>(3).max_code == 6);

/// The table at the head of NUMERICS of the published code, as levels rather than codes.
struct expected_levels {
  double lowest;
  double highest;
};

expected_levels documented(std::string const& scheme, int bits, int zero) {
  double const half = std::exp2(bits - 1);
  if (scheme == "asymmetric") return {-1.0 * zero, 2 * half - 1 - zero};
  if (scheme == "symmetric") return {-(half - 1), half - 1};
  if (scheme == "fixed_zero") return {-half, half - 1};
  return {-half + 0.5, half - 0.5};
}

struct levels_case {
  std::string scheme;
  int bits;
  code_levels levels;
};

template <class Scheme>
void append(std::vector<levels_case>& cases) {
  for (int const bits : {2, 3, 4, 8}) {
    cases.push_back({std::string(Scheme::name), bits, gptq::scheme_levels<Scheme>(bits)});
  }
}

std::vector<levels_case> all_cases() {
  std::vector<levels_case> cases;
  append<gptq::asymmetric>(cases);
  append<gptq::symmetric>(cases);
  append<gptq::fixed_zero>(cases);
  append<gptq::half_step>(cases);
  return cases;
}

/// Zero points worth trying: 0 alone for schemes that ignore it.
std::vector<int> zeros_of(levels_case const& c) {
  if (!c.levels.has_zero_point) return {0};
  return {0, 1, (1 << c.bits) / 2, (1 << c.bits) - 1};
}

}  // namespace

TEST_CASE("codes decode to the documented levels", "[scheme]") {
  for (auto const& c : all_cases()) {
    for (int const zero : zeros_of(c)) {
      CAPTURE(c.scheme, c.bits, zero);
      auto const expected = documented(c.scheme, c.bits, zero);
      for (float const scale : {1.0F, 0.37F, -2.5F}) {
        grid const g{scale, zero};
        CHECK(c.levels.decode(c.levels.min_code, g) ==
              static_cast<float>(expected.lowest * static_cast<double>(scale)));
        CHECK(c.levels.decode(c.levels.max_code, g) ==
              static_cast<float>(expected.highest * static_cast<double>(scale)));
      }
      CHECK(c.levels.max_code - c.levels.min_code == static_cast<int>(expected.highest - expected.lowest));
    }
  }
}

TEST_CASE("every level encodes to its own code", "[scheme]") {
  for (auto const& c : all_cases()) {
    for (int const zero : zeros_of(c)) {
      for (float const scale : {1.0F, 0.37F, 1e-6F, 3e4F, -0.11F}) {
        CAPTURE(c.scheme, c.bits, zero, scale);
        grid const g{scale, zero};
        int wrong = 0;
        for (int code = c.levels.min_code; code <= c.levels.max_code; ++code) {
          wrong += c.levels.encode(c.levels.decode(code, g), g) != code;
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("encode finds the nearest level", "[scheme]") {
  test::random random(1);
  for (auto const& c : all_cases()) {
    for (int const zero : zeros_of(c)) {
      auto const allowed = documented(c.scheme, c.bits, zero);
      for (float const scale : {0.25F, 0.0173F, -0.4F}) {
        CAPTURE(c.scheme, c.bits, zero, scale);
        auto const step = std::abs(static_cast<double>(scale));
        int wrong = 0;
        for (int i = 0; i < 500; ++i) {
          float const weight = 1.3F * scale * std::exp2(static_cast<float>(c.bits - 1)) * random.uniform();
          double least = DBL_MAX;
          for (double level = allowed.lowest; level <= allowed.highest; ++level) {
            least =
                std::min(least, std::abs(static_cast<double>(weight) - level * static_cast<double>(scale)));
          }
          grid const g{scale, zero};
          int const code = c.levels.encode(weight, g);
          wrong += code < c.levels.min_code || code > c.levels.max_code;
          double const error =
              std::abs(static_cast<double>(weight) - static_cast<double>(c.levels.decode(code, g)));
          wrong += error > least + 1e-5 * step;
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("ties go to the even level, at half steps down", "[scheme]") {
  // Powers of two for scales, so that the ties are exact.
  for (auto const& c : all_cases()) {
    for (int const zero : zeros_of(c)) {
      auto const allowed = documented(c.scheme, c.bits, zero);
      for (float const scale : {1.0F, 0.125F, -0.5F}) {
        CAPTURE(c.scheme, c.bits, zero, scale);
        int wrong = 0;
        for (double k = allowed.lowest - 3; k <= allowed.highest + 3; ++k) {
          double const tie = k + 0.5;  // between the levels k and k + 1
          double const nearest = c.scheme == "half_step" ? tie + 0.5 : std::fmod(k, 2.0) == 0.0 ? k : k + 1;
          double const expected = std::clamp(nearest, allowed.lowest, allowed.highest);
          grid const g{scale, zero};
          int const code = c.levels.encode(static_cast<float>(tie * static_cast<double>(scale)), g);
          wrong += static_cast<double>(c.levels.decode(code, g)) != expected * static_cast<double>(scale);
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("weights out of range clamp, however large", "[scheme]") {
  for (auto const& c : all_cases()) {
    for (int const zero : zeros_of(c)) {
      for (float const scale : {1.0F, FLT_MIN, 0x1p-149F, 0x1p-24F}) {
        CAPTURE(c.scheme, c.bits, zero, scale);
        for (float const weight :
             {1e3F * scale, 65536.0F * scale, 1e9F * scale, 1.0F + 1e4F * scale, FLT_MAX}) {
          CHECK(c.levels.encode(weight, {scale, zero}) == c.levels.max_code);
          CHECK(c.levels.encode(-weight, {scale, zero}) == c.levels.min_code);
          CHECK(c.levels.encode(weight, {-scale, zero}) == c.levels.min_code);
        }
      }
    }
  }
}

TEST_CASE("a scale of zero decodes to zeros", "[scheme]") {
  for (auto const& c : all_cases()) {
    for (float const weight : {0.0F, 0.4F, -3.0F, 1e30F}) {
      grid const g{0.0F, 1};
      int const code = c.levels.encode(weight, g);
      CHECK((code >= c.levels.min_code && code <= c.levels.max_code));
      CHECK(c.levels.decode(code, g) == 0.0F);
    }
  }
}

TEST_CASE("code books: every weight becomes the nearest level, a tie the one nearer to zero", "[scheme]") {
  auto const check = []<class Book>(Book, int bits) {
    auto const book = Book::levels(bits);
    auto const levels = gptq::scheme_levels<Book>(bits);
    CAPTURE(Book::name);
    CHECK(levels.max_code == static_cast<int>(book.size()) - 1);
    int wrong = 0;
    for (float const scale : {1.0F, 0.25F, -0.5F}) {  // exact
      for (int quarter = -600; quarter <= 600; ++quarter) {
        float const steps = 0.25F * static_cast<float>(quarter);
        int nearest = 0;
        for (int code = 1; code <= levels.max_code; ++code) {
          auto const better = static_cast<float>(book[static_cast<std::size_t>(code)]);
          auto const so_far = static_cast<float>(book[static_cast<std::size_t>(nearest)]);
          float const closer = std::abs(better - steps) - std::abs(so_far - steps);
          if (closer < 0.0F || (closer == 0.0F && std::abs(better) < std::abs(so_far))) nearest = code;
        }
        grid const g{scale, 0};
        int const code = levels.encode(scale * steps, g);
        wrong += code != nearest;  // of two equal levels the first
        wrong +=
            levels.decode(code, g) != scale * static_cast<float>(book[static_cast<std::size_t>(nearest)]);
        wrong += levels.decode(levels.encode(1e30F, g), g) !=
                 scale * (scale > 0.0F ? levels.highest() : levels.lowest());
        wrong += levels.decode(levels.encode(-1e30F, g), g) !=
                 scale * (scale > 0.0F ? levels.lowest() : levels.highest());
      }
    }
    CHECK(wrong == 0);
    CHECK(levels.decode(levels.encode(3.0F, {0.0F, 0}), {0.0F, 0}) == 0.0F);
  };
  check(gptq::e2m1_levels{}, 4);
  check(gptq::iq4_nl_levels{}, 4);
  check(gptq::nf4_levels{}, 4);
  check(test::seven_levels{}, 3);
  check(test::four_levels{}, 2);
}

TEST_CASE("the library's rounding is the standard's", "[scheme]") {
  test::random random(2);
  int wrong = 0;
  for (int i = 0; i < 20000; ++i) {
    float const x = i < 4000 ? static_cast<float>(i - 2000) / 4.0F : 66000.0F * random.uniform();
    wrong += gptq::detail::round_half_even(x) != std::nearbyint(x);
    wrong += gptq::detail::round_down(x) != std::floor(x);
  }
  CHECK(wrong == 0);
}
