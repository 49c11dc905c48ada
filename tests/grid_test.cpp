// How scales are found: every rule, scheme and width against the formulas of the published code.
#include <cfloat>
#include <cmath>

#include <gptq/grid.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::code_levels;
using gptq::grid;
using gptq::grid_options;
using gptq::grid_rule;
using gptq::scale_type;

namespace {

float as_stored(double scale, scale_type type) {
  auto const rounded = static_cast<float>(scale);
  return type == scale_type::float16 ? static_cast<float>(gptq::float16(rounded)) : rounded;
}

/// The scale of a group without a stored zero point, by hand.
double expected_scale(std::string const& scheme, int bits, grid_rule rule, double low, double high) {
  double const half = std::exp2(bits - 1);
  double const amax = std::max(-low, high);
  double const extreme = -low > high ? low : high;
  if (scheme == "symmetric") return amax / (half - 1);
  if (scheme == "fixed_zero") {
    return rule == grid_rule::published ? 2 * amax / (2 * half - 1)
           : rule == grid_rule::amax    ? amax / (half - 1)
                                        : extreme / -half;
  }
  return amax / (half - 0.5);  // half step: amax / 7.5 at 4 bits, whatever the rule
}

template <class F>
void for_each_levels(F&& f) {
  for (int const bits : {2, 3, 4, 8}) {
    f(std::string("asymmetric"), bits, gptq::scheme_levels<gptq::asymmetric>(bits));
    f(std::string("symmetric"), bits, gptq::scheme_levels<gptq::symmetric>(bits));
    f(std::string("fixed_zero"), bits, gptq::scheme_levels<gptq::fixed_zero>(bits));
    f(std::string("half_step"), bits, gptq::scheme_levels<gptq::half_step>(bits));
  }
}

double mse_error(std::vector<float> const& weights, grid g, code_levels const& levels) {
  double sum = 0.0;
  for (float const w : weights) {
    sum += std::pow(
        std::abs(static_cast<double>(levels.decode(levels.encode(w, g), g)) - static_cast<double>(w)), 2.4);
  }
  return sum;
}

}  // namespace

TEST_CASE("scales follow the rules", "[grid]") {
  test::random random(3);
  std::vector<std::vector<float>> groups{
      {0.0F, 1.0F}, {-1.0F, 0.0F}, {-0.5F, 2.0F, 1.0F}, {-3.0F, 2.0F}, {0.7F}};
  for (std::size_t const n : {8U, 32U, 128U}) groups.push_back(random.normals(n));
  for_each_levels([&](std::string const& scheme, int bits, code_levels const& levels) {
    for (auto const& weights : groups) {
      double const low =
          std::min(0.0, static_cast<double>(*std::min_element(weights.begin(), weights.end())));
      double const high =
          std::max(0.0, static_cast<double>(*std::max_element(weights.begin(), weights.end())));
      for (scale_type const type : {scale_type::float16, scale_type::float32}) {
        CAPTURE(scheme, bits, low, high, type == scale_type::float16);
        for (grid_rule const rule : {grid_rule::published, grid_rule::amax, grid_rule::signed_amax}) {
          if (levels.has_zero_point && rule != grid_rule::published) continue;
          grid const found = gptq::find_grid(weights, levels, {.rule = rule, .scales = type});
          if (!levels.has_zero_point) {
            float const expected = as_stored(expected_scale(scheme, bits, rule, low, high), type);
            CHECK(found.scale == Approx(expected).epsilon(2e-7));
          } else {
            float const expected = as_stored((high - low) / (std::exp2(bits) - 1), type);
            CHECK(found.scale == Approx(expected).epsilon(2e-7));
            // Half of a step away from a tie at most, unless the ratio is one.
            double const zero = -low / static_cast<double>(found.scale);
            CHECK(std::abs(zero - found.zero) <= 0.5 + 1e-4);
            CHECK((found.zero >= 0 && found.zero < 1 << bits));
          }
        }
      }
    }
  });
}

TEST_CASE("known grids", "[grid]") {
  auto const fixed = gptq::scheme_levels<gptq::fixed_zero>(4);
  std::vector<float> const weights{-4.0F, 1.0F, 3.0F};
  constexpr auto exact = scale_type::float32;
  CHECK(gptq::find_grid(weights, fixed, {.scales = exact}).scale == 4.0F / 7.5F);
  CHECK(gptq::find_grid(weights, fixed, {.rule = grid_rule::amax, .scales = exact}).scale == 4.0F / 7.0F);
  CHECK(gptq::find_grid(weights, fixed, {.rule = grid_rule::signed_amax, .scales = exact}).scale == 0.5F);
  std::vector<float> const positive{4.0F, -1.0F};
  CHECK(gptq::find_grid(positive, fixed, {.rule = grid_rule::signed_amax, .scales = exact}).scale == -0.5F);
  grid const g = gptq::find_grid(weights, gptq::scheme_levels<gptq::asymmetric>(3), {.scales = exact});
  CHECK(g.scale == 1.0F);
  CHECK(g.zero == 4);
  // 2.5 steps below zero: the tie goes to even.
  std::vector<float> const tie{-2.5F, 0.5F};
  CHECK(gptq::find_grid(tie, gptq::scheme_levels<gptq::asymmetric>(2), {.scales = exact}).zero == 2);
}

TEST_CASE("the weight of largest magnitude is exact with signed_amax", "[grid]") {
  test::random random(4);
  for (int const bits : {2, 3, 4, 8}) {
    auto const levels = gptq::scheme_levels<gptq::fixed_zero>(bits);
    for (int i = 0; i < 50; ++i) {
      auto weights = random.normals(32);
      weights[5] = i % 2 == 0 ? 8.0F : -8.0F;
      grid const g = gptq::find_grid(weights, levels, {.rule = grid_rule::signed_amax});
      CHECK(levels.decode(levels.encode(weights[5], g), g) == weights[5]);
      CHECK((g.scale < 0.0F) == (i % 2 == 0));
    }
  }
}

TEST_CASE("a group of zeros decodes to zeros", "[grid]") {
  std::vector<float> const zeros(32, 0.0F);
  for_each_levels([&](std::string const& scheme, int bits, code_levels const& levels) {
    for (bool const mse : {false, true}) {
      for (grid_rule const rule : {grid_rule::published, grid_rule::amax, grid_rule::signed_amax}) {
        CAPTURE(scheme, bits, mse);
        grid const g = gptq::find_grid(
            zeros, levels, {.rule = levels.has_zero_point ? grid_rule::published : rule, .mse = mse});
        CHECK(levels.decode(levels.encode(0.0F, g), g) == 0.0F);
        CHECK(levels.decode(levels.encode(-0.0F, g), g) == 0.0F);
      }
    }
  });
  // The published half step has no zero at all: -1..1 spans its 15 steps.
  auto const half = gptq::scheme_levels<gptq::half_step>(4);
  CHECK(gptq::find_grid(zeros, half, {.published_defects = true, .scales = scale_type::float32}).scale ==
        2.0F / 15.0F);
}

TEST_CASE("one-sided groups lose half their range only when the defect is asked for", "[grid]") {
  std::vector<float> const positive{0.25F, 1.0F, 0.5F};
  std::vector<float> const negative{-0.25F, -1.0F};
  for_each_levels([&](std::string const& scheme, int bits, code_levels const& levels) {
    CAPTURE(scheme, bits);
    grid_options const sound{.scales = scale_type::float32};
    grid_options const defect{.published_defects = true, .scales = scale_type::float32};
    float const whole = gptq::find_grid(positive, levels, sound).scale;
    float const broken = gptq::find_grid(positive, levels, defect).scale;
    CHECK(broken == Approx(levels.has_zero_point ? whole : whole / 2));
    CHECK(gptq::find_grid(negative, levels, defect).scale == gptq::find_grid(negative, levels, sound).scale);
  });
  auto const fixed = gptq::scheme_levels<gptq::fixed_zero>(4);
  grid const g = gptq::find_grid(positive, fixed, {.published_defects = true, .scales = scale_type::float32});
  CHECK(fixed.decode(fixed.encode(1.0F, g), g) == Approx(7.0 / 15));  // the 0.467 of the documentation
}

TEST_CASE("the mse search is the best of its 80 ranges", "[grid]") {
  test::random random(5);
  for_each_levels([&](std::string const& scheme, int bits, code_levels const& levels) {
    for (int round = 0; round < 6; ++round) {
      auto weights = random.normals(round % 2 == 0 ? 32 : 96);
      if (round >= 4) weights[7] = 6.0F;  // an outlier worth cutting
      scale_type const type = round % 3 == 0 ? scale_type::float32 : scale_type::float16;
      grid_options options{.mse = true, .scales = type};
      if (!levels.has_zero_point && round == 5) options.rule = grid_rule::signed_amax;
      grid const found = gptq::find_grid(weights, levels, options);
      grid const unsearched = gptq::find_grid(weights, levels, {.rule = options.rule, .scales = type});

      // Shrinking all weights shrinks the range; the rule itself is tested above.
      double least = DBL_MAX;
      for (int i = 0; i < 80; ++i) {
        std::vector<float> shrunk = weights;
        for (float& w : shrunk) w *= static_cast<float>(1.0 - i / 100.0);
        grid const g = gptq::find_grid(shrunk, levels, {.rule = options.rule, .scales = type});
        least = std::min(least, mse_error(weights, g, levels));
      }
      CAPTURE(scheme, bits, round);
      CHECK(mse_error(weights, found, levels) == Approx(least).epsilon(1e-4));
      CHECK(mse_error(weights, found, levels) <= mse_error(weights, unsearched, levels));
      if (bits <= 3 && round >= 4 && scheme != "symmetric") {
        CHECK(std::abs(found.scale) < std::abs(unsearched.scale));
      }
    }
  });
}

TEST_CASE("scales are never rounded to zero, and overflow to infinity", "[grid]") {
  for_each_levels([&](std::string const& scheme, int bits, code_levels const& levels) {
    CAPTURE(scheme, bits);
    for (float const tiny : {1e-9F, 1e-30F, 0x1p-149F, 0x1p-147F}) {
      std::vector<float> const weights{tiny, -tiny / 2, 0.0F};
      for (bool const mse : {false, true}) {
        grid const g = gptq::find_grid(weights, levels, {.mse = mse});
        // Half step has no level at zero, to which these are nearer than to the levels of the smallest scale.
        if (tiny > 1e-40F) CHECK(g.scale == (scheme == "half_step" ? 0.0F : 0x1p-24F));
        CHECK((g.zero >= 0 && g.zero < 1 << bits));
        CHECK(std::abs(levels.decode(levels.encode(tiny, g), g)) <= 0x1p-24F);
        grid const wide = gptq::find_grid(weights, levels, {.mse = mse, .scales = scale_type::float32});
        CHECK((wide.zero >= 0 && wide.zero < 1 << bits));
      }
    }
    std::vector<float> const huge{-3e38F, 3e38F};
    CHECK(std::isinf(gptq::find_grid(huge, levels, {}).scale));
    CHECK(std::isinf(gptq::find_grid(huge, levels, {.mse = true}).scale));
  });
  std::vector<float> const tiny{1e-12F};
  CHECK(gptq::find_grid(tiny, gptq::scheme_levels<gptq::fixed_zero>(4), {.rule = grid_rule::signed_amax})
            .scale == -0x1p-24F);
  CHECK(gptq::detail::stored_scale(0.0F, scale_type::float16) == 0.0F);
}

TEST_CASE("rules without a zero point are refused with one", "[grid]") {
  auto const asymmetric = gptq::scheme_levels<gptq::asymmetric>(4);
  CHECK_NOTHROW(gptq::check_grid_rule(grid_rule::published, asymmetric));
  CHECK(test::contains(test::error_of([&] { gptq::check_grid_rule(grid_rule::amax, asymmetric); }),
                       "rule amax "));
  CHECK(test::contains(test::error_of([&] { gptq::check_grid_rule(grid_rule::signed_amax, asymmetric); }),
                       "rule signed_amax "));
  CHECK(test::contains(test::error_of([&] { gptq::check_grid_rule(static_cast<grid_rule>(7), asymmetric); }),
                       "rule 7 "));
  for (grid_rule const rule : {grid_rule::published, grid_rule::amax, grid_rule::signed_amax}) {
    CHECK_NOTHROW(gptq::check_grid_rule(rule, gptq::scheme_levels<gptq::half_step>(2)));
  }
}

TEST_CASE("levels that are not a power of two", "[grid]") {
  auto const five = gptq::scheme_levels<test::five_levels>(3);
  std::vector<float> const weights{-1.0F, 3.0F};
  for (grid_rule const rule : {grid_rule::published, grid_rule::amax, grid_rule::signed_amax}) {
    CHECK(gptq::find_grid(weights, five, {.rule = rule}).scale == 1.5F);
  }
}

TEST_CASE("power_2_4 is as accurate as it says", "[grid]") {
  double worst = 0.0;
  for (double e = 1e-11; e < 1e19; e *= 1.00731) {
    auto const x = static_cast<float>(e);
    double const exact = std::pow(static_cast<double>(x), 2.4);
    if (exact > static_cast<double>(FLT_MAX)) break;
    worst = std::max(worst, std::abs(static_cast<double>(gptq::detail::power_2_4(x)) / exact - 1.0));
  }
  CHECK(worst < 1e-6);
  CHECK(gptq::detail::power_2_4(0.0F) == 0.0F);
}
