// The steps of the solver one by one, what it refuses, and what it makes of layers that say nothing.
#include <array>
#include <limits>
#include <memory>

#include <gptq/input_error.hpp>
#include <gptq/quantize.hpp>
#include <gptq/solver/beam.hpp>
#include <gptq/solver/descent.hpp>
#include <gptq/solver/layer_solver.hpp>

#include "catch.hpp"
#include "layers.hpp"
#include "support.hpp"

using gptq::grid;
using gptq::hessian;
using gptq::index_t;
using gptq::matrix;
using gptq::quality;
using gptq::quantize_options;
using gptq::solver::format_values;
using test::contains;
using test::error_of;

namespace {

using q4 = gptq::format<gptq::symmetric, 4, 32>;
using half = gptq::format<gptq::half_step, 4, 32>;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

struct problem {
  matrix weight;
  hessian h;

  problem(index_t out, index_t in, std::uint32_t seed, index_t tokens = 0) : h(in) {
    test::random random(seed);
    weight = 0.1F * test::normal_matrix(out, in, random);
    h.add(test::correlated_inputs(tokens == 0 ? 2 * in : tokens, in, random));
  }
};

hessian with_diagonal(std::vector<float> const& diagonal) {
  auto const n = static_cast<index_t>(diagonal.size());
  Eigen::MatrixXf h = Eigen::MatrixXf::Zero(n, n);
  for (index_t i = 0; i < n; ++i) h(i, i) = diagonal[at(i)];
  return hessian::from_matrix(h, 10, 1);
}

template <class Format>
bool same(gptq::quantized_layer<Format> const& a, gptq::quantized_layer<Format> const& b) {
  auto const equal = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
  return a.codes == b.codes && a.scales == b.scales && a.zeros == b.zeros && a.order == b.order &&
         equal(a.report.loss, b.report.loss) && equal(a.report.output_error, b.report.output_error) &&
         equal(a.report.held_out_error, b.report.held_out_error) && a.report.damping == b.report.damping &&
         a.report.damping_raised == b.report.damping_raised && a.report.fell_back == b.report.fell_back &&
         a.report.dead_columns == b.report.dead_columns;
}

/// The first, a middle and the last of n.
std::array<index_t, 3> places(index_t n) { return {0, n / 2, n - 1}; }

}  // namespace

// ---- damping ----

TEST_CASE("the ladder of dampings ends", "[damping]") {
  auto const climb = [](double first) {
    gptq::solver::damping_ladder ladder(first);
    std::vector<double> all{ladder.damping()};
    while (all.size() < 100 && ladder.raise()) all.push_back(ladder.damping());
    CHECK(ladder.raised() == static_cast<int>(all.size()) - 1);
    return all;
  };
  CHECK(climb(0.0) == std::vector<double>{0.0, 1e-4, 10.0 * 1e-4, 10.0 * (10.0 * 1e-4),
                                          10.0 * (10.0 * (10.0 * 1e-4)), 1.0});
  CHECK(climb(1e-300).size() == 6);
  CHECK(climb(0.05) == std::vector<double>{0.05, 0.5, 1.0});
  CHECK(climb(1.0) == std::vector<double>{1.0});
  CHECK(climb(3.0) == std::vector<double>{3.0});
  CHECK(climb(std::nextafter(1.0, 0.0)) == std::vector<double>{std::nextafter(1.0, 0.0), 1.0});
}

TEST_CASE("damping 0 on a singular Hessian", "[damping]") {
  hessian h(64);
  h.add(matrix::Ones(10, 64));  // rank 1
  test::random random(1);
  matrix const weight = test::normal_matrix(5, 64, random);
  for (quality const q : {quality::plain, quality::fast}) {
    auto const layer = gptq::quantize<q4>(weight, h, {.quality = q, .damping = 0.0});
    CHECK(layer.report.damping_raised >= 1);
    CHECK(layer.report.damping_raised <= gptq::solver::damping_ladder::most_raises);
    CHECK(layer.report.damping > 0.0);
  }
}

TEST_CASE("damping is a finite number that is not negative", "[damping]") {
  problem const p(2, 32, 2);
  for (double const bad : {double{infinity}, double{not_a_number}, -1e-9}) {
    CHECK(contains(error_of([&] { gptq::quantize<q4>(p.weight, p.h, {.damping = bad}); }), "damping is"));
    CHECK(contains(error_of([&] { gptq::round_to_nearest<q4>(p.weight, {.damping = bad}); }), "damping is"));
  }
  CHECK_NOTHROW(gptq::quantize<q4>(p.weight, p.h, {.damping = 0.0}));
}

TEST_CASE("held-out tokens choose a damping of at most 1", "[damping]") {
  format_values const f = gptq::solver::describe<q4>(64, {});
  double most = 0.0;
  for (std::uint32_t seed = 0; seed < 6; ++seed) {
    problem const p(16, 64, 10 + seed, 6);  // so few tokens that others have little in common with them
    test::random random(90 + seed);
    hessian held_out(64);
    held_out.add(test::normal_matrix(300, 64, random));
    double const signal = gptq::solver::signal(p.weight, &held_out, 1);
    double const chosen = gptq::solver::choose_damping(
        p.weight, p.h, f, {.damping = 0.5}, {.search = true, .passes = 1}, held_out, signal, nullptr);
    CHECK((chosen == 0.5 || chosen == 1.0));
    most = std::max(most, chosen);
  }
  CHECK(most == 1.0);
}

// ---- orders ----

TEST_CASE("group-aware order: groups by their largest input, a shorter one last", "[order]") {
  format_values f;
  f.group_columns = 3;
  f.groups = 5;
  //                                     0        |  1        |  2        |  3        | 4
  hessian const h = with_diagonal({1, 5, 2, 7, 1, 1, 0, 1, 9, 1, 5, 1, 50, 40});
  auto const order = gptq::solver::group_aware_order(h, f);
  CHECK(order.columns == std::vector<std::int32_t>{8, 7, 6, 3, 4, 5, 1, 2, 0, 10, 9, 11, 12, 13});
  CHECK((order.grids_on_the_way && order.searched && !order.stored));
}

TEST_CASE("rows come back where they had lost no more, under the same damping", "[order]") {
  problem const p(4, 32, 3);
  format_values const f = gptq::solver::describe<q4>(32, {});
  quantize_options const options;
  for (bool const same_damping : {true, false}) {
    gptq::solver::layer_state state(matrix(p.weight), p.h, f, options);
    state.losses = {1.0, 2.0, 3.0, 4.0};
    state.result.report.damping = 0.01;
    std::fill(state.result.codes.begin(), state.result.codes.end(), std::uint8_t{3});
    gptq::solver::kept_rows const before(state, state.work);
    state.losses = {0.5, 2.0, 3.5, 9.0};
    if (!same_damping) state.result.report.damping = 0.1;
    std::fill(state.result.codes.begin(), state.result.codes.end(), std::uint8_t{5});
    state.work.setZero();
    before.restore_better(state);
    CHECK(state.losses ==
          (same_damping ? std::vector<double>{0.5, 2.0, 3.0, 4.0} : std::vector<double>{0.5, 2.0, 3.5, 9.0}));
    for (index_t row = 0; row < 4; ++row) {
      bool const restored = same_damping && row > 0;
      CHECK(state.result.codes[at(row * 32 + 31)] == (restored ? 3 : 5));
      CHECK(state.work(row, 31) == (restored ? p.weight(row, 31) : 0.0F));
    }
  }
}

// ---- the beam ----

TEST_CASE("a beam extends by the levels on both sides, whatever the sign of the scale", "[beam]") {
  // Two columns, two candidates for the first of them, the nearest level for the other: all there is to find.
  format_values f;
  f.levels = gptq::scheme_levels<gptq::fixed_zero>(3);
  f.bits = 3;
  f.group_columns = 2;
  f.groups = 1;
  quantize_options const options;
  int second_nearest_wins = 0;
  for (float const sign : {1.0F, -1.0F}) {
    problem const p(200, 2, 4);
    gptq::solver::layer_state s(matrix(5.0F * p.weight), p.h, f, options);
    s.order.columns = gptq::solver::identity_order(2);
    s.to_sweep_order();
    s.f = gptq::solver::find_factor(nullptr, s.h, s.order, 0.01, 1);
    for (index_t row = 0; row < 200; ++row) s.result.set_grid(row, 0, {sign * 0.17F, 0});
    matrix const weight = s.work;
    gptq::solver::beam_strip(s, 0, 2, 4).run(weight, 0);
    double const d0 = static_cast<double>(s.f->diagonal(1)), d1 = static_cast<double>(s.f->diagonal(0));
    double const share = static_cast<double>(s.f->lower(1, 0));
    for (index_t row = 0; row < 200; ++row) {
      std::vector<std::pair<double, double>> first;  // distance and weight of each level of the first column
      for (int code = 0; code < 8; ++code) {
        double const level = static_cast<double>(f.levels.decode(code, {sign * 0.17F, 0}));
        first.emplace_back(std::abs(static_cast<double>(weight(row, 1)) - level), level);
      }
      std::sort(first.begin(), first.end());
      double least = std::numeric_limits<double>::infinity();
      for (std::size_t i = 0; i < 2; ++i) {
        double const error = static_cast<double>(weight(row, 1)) - first[i].second;
        double const now = static_cast<double>(weight(row, 0)) + error * share;
        double nearest = std::numeric_limits<double>::infinity();
        for (auto const& [ignored, level] : first) nearest = std::min(nearest, std::abs(now - level));
        double const loss = error * error * d0 * d0 + nearest * nearest * d1 * d1;
        if (loss < least * (1.0 - 1e-5)) {
          second_nearest_wins += i == 1 ? 1 : 0;
          least = loss;
        }
      }
      CHECK(s.losses[at(row)] == Approx(least).epsilon(1e-4).margin(1e-9));
    }
  }
  CHECK(second_nearest_wins > 10);
}

// ---- grids ----

TEST_CASE("a zero point moves by one, and never beyond what is stored", "[descent]") {
  format_values f;
  f.levels = gptq::scheme_levels<gptq::asymmetric>(2);
  f.bits = 2;
  f.grids.scales = gptq::scale_type::float32;
  gptq::solver::group_sums
      sums;  // ones in a metric of 1: the loss falls as decoded weights fall or rise by one step
  sums.level_level = 4.0;
  sums.one_one = 8.0;
  auto const moved = [&](int zero, double slope) {
    sums.one_slope = slope;
    return gptq::solver::best_grid(sums, {1.0F, zero}, f.rules()).to.zero;
  };
  CHECK(moved(2, -8.0) == 3);
  CHECK(moved(3, -8.0) == 3);
  CHECK(moved(1, 8.0) == 0);
  CHECK(moved(0, 8.0) == 0);
  f.own_grid = [](std::span<float const>, int) { return grid{1.0F, 1}; };  // the scheme says where it is
  CHECK(moved(2, -8.0) == 2);
}

TEST_CASE("a scheme's own zero point has to fit into its bits", "[grid]") {
  static int zero;
  format_values f;
  f.levels = gptq::scheme_levels<gptq::asymmetric>(3);
  f.bits = 3;
  f.own_grid = [](std::span<float const>, int) { return grid{1.0F, zero}; };
  std::array<float, 8> const weights{1, 2};
  for (int const good : {0, 7}) {
    zero = good;
    CHECK(f.find(weights).zero == good);
  }
  for (int const bad : {-1, 8}) {
    zero = bad;
    CHECK(contains(error_of([&] { f.find(weights); }), "zero point " + std::to_string(bad)));
  }
}

TEST_CASE("the mse search looks at 80 ranges", "[grid]") {
  // One weight far away from many: the more of it is given up, the better.
  std::vector<float> weights(2000, 0.0F);
  test::random random(5);
  for (float& w : weights) w = random.normal();
  weights[7] = 12.0F;
  auto const levels = gptq::scheme_levels<gptq::symmetric>(2);
  auto const found = gptq::find_grid(weights, levels, {.mse = true, .scales = gptq::scale_type::float32});
  CHECK(found.scale == gptq::detail::grid_for_range({0.0F, static_cast<float>(1.0 - 79 / 100.0) * 12.0F},
                                                    levels, {.scales = gptq::scale_type::float32})
                           .scale);
}

TEST_CASE("of two extremes of one size the positive one is on the longest side", "[grid]") {
  auto const levels = gptq::scheme_levels<gptq::fixed_zero>(4);
  gptq::grid_options const options{.rule = gptq::grid_rule::signed_amax, .scales = gptq::scale_type::float32};
  CHECK(gptq::find_grid(std::array{-1.0F, 1.0F}, levels, options).scale == -0.125F);
  CHECK(gptq::find_grid(std::array{-1.0F, 0.5F}, levels, options).scale == 0.125F);
}

TEST_CASE("half step: weights nearer to zero than to the smallest level become zeros", "[grid]") {
  auto const levels = gptq::scheme_levels<gptq::half_step>(4);
  float const smallest = 0x1p-24F;
  for (gptq::grid_rule const rule :
       {gptq::grid_rule::published, gptq::grid_rule::amax, gptq::grid_rule::signed_amax}) {
    auto const scale = [&](float weight) {
      return gptq::find_grid(std::array{weight, 0.0F}, levels, {.rule = rule}).scale;
    };
    for (float const sign : {1.0F, -1.0F}) {
      CHECK(scale(sign * 1e-11F) == 0.0F);
      CHECK(scale(sign * std::numeric_limits<float>::denorm_min()) == 0.0F);
      CHECK(scale(sign * std::nextafter(0.25F * smallest, 0.0F)) == 0.0F);
      CHECK(scale(sign * 0.25F * smallest) == smallest);
    }
  }
  problem p(3, 64, 6);
  p.weight *= 1e-10F;
  for (quality const q : {quality::plain, quality::fast, quality::best}) {
    auto const layer = gptq::quantize<half>(p.weight, p.h, {.quality = q});
    CHECK(gptq::dequantize(layer).isZero(0.0F));
    CHECK(layer.report.output_error == Approx(1.0));
  }
}

// ---- what is chosen ----

TEST_CASE("what a layer falls back to is plain GPTQ with the published options", "[choose]") {
  problem const p(12, 96, 7);
  hessian held_out(96);
  test::random random(8);
  held_out.add(test::correlated_inputs(200, 96, random));
  for (bool const act_order : {false, true}) {
    for (bool const best_ones : {false, true}) {
      quantize_options const options{.act_order = act_order};
      auto const taken = gptq::solver::solve_published_options(
          matrix(p.weight), p.h, gptq::solver::describe<q4>(96, options), options, best_ones, held_out,
          gptq::solver::signal(p.weight, &held_out, 1), nullptr);
      auto const plain = gptq::quantize<q4>(p.weight, p.h,
                                            {.quality = quality::plain,
                                             .mse = best_ones,
                                             .act_order = true,
                                             .static_groups = best_ones || !act_order},
                                            &held_out);
      CHECK(taken.codes == plain.codes);
      CHECK(taken.scales == plain.scales);
      CHECK(taken.order == plain.order);
      CHECK(taken.report.held_out_error == plain.report.held_out_error);
    }
  }
}

TEST_CASE("layers that share a Hessian are what they are alone", "[choose]") {
  problem const p(40, 96, 9);
  test::random random(10);
  matrix const k = 0.1F * test::normal_matrix(7, 96, random);
  Eigen::MatrixXf const v = 0.1F * test::normal_matrix(33, 96, random);  // by columns: converted
  hessian held_out(96);
  held_out.add(test::correlated_inputs(60, 96, random));
  for (quality const q : {quality::reference, quality::plain, quality::fast, quality::best}) {
    for (hessian const* const others :
         {static_cast<hessian const*>(nullptr), static_cast<hessian const*>(&held_out)}) {
      quantize_options const options{.quality = q, .act_order = q == quality::plain, .threads = 1};
      auto const all = gptq::quantize<q4>({p.weight, k, v}, p.h, options, others);
      REQUIRE(all.size() == 3);
      CHECK(same(all[0], gptq::quantize<q4>(p.weight, p.h, options, others)));
      CHECK(same(all[1], gptq::quantize<q4>(k, p.h, options, others)));
      CHECK(same(all[2], gptq::quantize<q4>(v, p.h, options, others)));
    }
  }
  // One factorization an order, not one a layer.
  gptq::solver::shared_factors factors;
  for (int layer = 0; layer < 3; ++layer) {
    gptq::solver::quantize_checked(matrix(p.weight), p.h, gptq::solver::describe<q4>(96, {}), {}, nullptr,
                                   &factors);
    CHECK(factors.known.size() == 2);
  }
  // What was raised once is raised for all of them.
  hessian singular(64);
  singular.add(matrix::Ones(10, 64));
  matrix const one = test::normal_matrix(3, 64, random), other = test::normal_matrix(3, 64, random);
  auto const both = gptq::quantize<q4>({one, other}, singular, {.damping = 0.0});
  CHECK(same(both[1], gptq::quantize<q4>(other, singular, {.damping = 0.0})));
  CHECK(both[1].report.damping_raised > 0);
  // Nothing is quantized when one of them is not as it should be.
  CHECK(gptq::quantize<q4>({}, p.h).empty());
  matrix bad = k;
  bad(6, 95) = not_a_number;
  CHECK(contains(error_of([&] { gptq::quantize<q4>({p.weight, bad}, p.h); }), "row 6, column 95 is nan"));
  CHECK(contains(error_of([&] { gptq::quantize<q4>({p.weight, one}, p.h); }), "64 columns"));
}

// ---- what is refused ----

TEST_CASE("what is not finite is named at the first, a middle and the last place", "[checks]") {
  problem const p(5, 40, 12);
  for (float const bad : {not_a_number, infinity, -infinity}) {
    for (index_t const row : places(5)) {
      for (index_t const column : places(40)) {
        matrix weight = p.weight;
        weight(row, column) = bad;
        std::string const place = "row " + std::to_string(row) + ", column " + std::to_string(column);
        CHECK(contains(error_of([&] { gptq::quantize<q4>(weight, p.h); }), place));
        CHECK(contains(error_of([&] { gptq::round_to_nearest<q4>(weight); }), place));
        gptq::input_error const none(40);
        CHECK(contains(error_of([&] { gptq::compensate(weight, p.h, none); }), place));
        hessian h(40);
        std::string const token = "token " + std::to_string(row) + ", input " + std::to_string(column);
        CHECK(contains(error_of([&] { h.add(weight); }), token));
        CHECK(contains(error_of([&] { h.add(weight.data(), 5); }), token));
        gptq::input_error e(40);
        CHECK(contains(error_of([&] { e.add(p.weight, weight); }), "quantized activation of " + token));
        CHECK(contains(error_of([&] { e.add(weight, p.weight); }), "the activation of " + token));
        CHECK((h.sum().isZero(0.0F) && e.sum().isZero(0.0F) && h.sequences() == 0));
      }
      std::vector<float> token_weights(5, 1.0F);
      for (float const wrong : {bad, -1e-9F}) {
        token_weights[at(row)] = wrong;
        hessian h(40);
        CHECK(contains(error_of([&] { h.add(p.weight, token_weights); }),
                       "weight of token " + std::to_string(row)));
      }
    }
    for (index_t const j : places(40)) {
      for (index_t const i : places(40)) {
        if (i < j) continue;
        Eigen::MatrixXf damaged = Eigen::MatrixXf::Identity(40, 40);
        damaged(i, j) = bad;
        hessian const h = hessian::from_matrix(damaged, 10, 1);
        std::string const entry = "entry (" + std::to_string(i) + ", " + std::to_string(j) + ")";
        CHECK(contains(error_of([&] { gptq::quantize<q4>(p.weight, h); }), entry + " of the hessian"));
        CHECK(contains(error_of([&] { gptq::quantize<q4>(p.weight, p.h, {}, &h); }),
                       entry + " of the held-out"));
      }
    }
  }
}

TEST_CASE("a quantized layer is checked from the first entry to the last", "[checks]") {
  using format = gptq::format<gptq::asymmetric, 3, 32>;
  problem const p(4, 96, 13);
  auto const good = gptq::quantize<format>(p.weight, p.h, {.quality = quality::plain, .act_order = true});
  REQUIRE_NOTHROW(check(good));
  for (index_t const i : places(4 * 96)) {
    auto layer = good;
    layer.codes[at(i)] = 8;
    CHECK(contains(error_of([&] { check(layer); }), "code 8"));
  }
  for (index_t const i : places(4 * 3)) {
    for (float const bad : {not_a_number, infinity, 1.0F + 0x1p-20F}) {
      auto layer = good;
      layer.scales[at(i)] = bad;
      CHECK(contains(error_of([&] { check(layer); }), "scale"));
    }
    auto layer = good;
    layer.zeros[at(i)] = 8;
    CHECK(contains(error_of([&] { check(layer); }), "zero point 8"));
  }
  for (index_t const i : places(96)) {
    auto layer = good;
    layer.order[at(i)] = 96;
    CHECK(contains(error_of([&] { check(layer); }), "permutation"));
    layer.order[at(i)] = layer.order[at((i + 1) % 96)];
    CHECK(contains(error_of([&] { check(layer); }), "permutation"));
  }
}

TEST_CASE("a Hessian of no tokens says so wherever it is used", "[checks]") {
  problem const p(3, 32, 14);
  hessian unused(32), weightless(32);
  weightless.add(p.weight, std::vector<float>(3, 0.0F));
  gptq::input_error const e(32);
  for (hessian const* const h : {&unused, &weightless}) {
    CHECK(contains(error_of([&] { gptq::quantize<q4>(p.weight, *h); }), "the hessian has seen no tokens"));
    CHECK(contains(error_of([&] { gptq::quantize<q4>(p.weight, p.h, {}, h); }),
                   "held-out hessian has seen no"));
    CHECK(contains(error_of([&] { gptq::quantize<q4>({p.weight}, *h); }), "has seen no tokens"));
    CHECK(contains(error_of([&] { gptq::round_to_nearest<q4>(p.weight, {}, h); }), "has seen no tokens"));
    CHECK(contains(error_of([&] { gptq::output_error(p.weight, p.weight, *h); }), "has seen no tokens"));
    CHECK(contains(error_of([&] { gptq::compensate(p.weight, *h, e); }), "has seen no tokens"));
  }
}

TEST_CASE("a weight of zeros stays one, and no error is measured against no output", "[checks]") {
  problem const p(3, 64, 15);
  matrix const zeros = matrix::Zero(3, 64);
  for (quality const q : {quality::reference, quality::plain, quality::fast, quality::best}) {
    auto const layer = gptq::quantize<q4>(zeros, p.h, {.quality = q}, &p.h);
    CHECK(gptq::dequantize(layer).isZero(0.0F));
    CHECK(layer.report.loss == 0.0);
    for (double const x : {layer.report.output_error, layer.report.snr_db, layer.report.held_out_error}) {
      CHECK((std::isnan(x) && !std::signbit(x)));
    }
  }
  CHECK(std::isnan(gptq::output_error(zeros, zeros, p.h)));
}
