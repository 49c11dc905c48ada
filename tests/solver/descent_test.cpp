// Better codes in the same bytes: every step against the loss computed from what it left behind, and against
// all there is to choose from where that is little enough to be tried.
#include <array>
#include <limits>
#include <numeric>

#include <gptq/code_books.hpp>
#include <gptq/quantize.hpp>

#include "catch.hpp"
#include "layers.hpp"
#include "support.hpp"

using gptq::grid;
using gptq::hessian;
using gptq::index_t;
using gptq::matrix;
using gptq::quality;
using gptq::quantize_options;
using gptq::solver::coordinate_descent;
using gptq::solver::format_values;
using gptq::solver::recipe;
using gptq::solver::solution;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A format as values: nothing here is compiled once a format.
struct any_format {
  char const* scheme;
  gptq::code_levels levels;
  int bits;
  index_t group;  ///< columns; 0: the whole row

  format_values values(index_t in) const {
    format_values v;
    v.levels = levels;
    v.group_columns = group == 0 ? in : group;
    v.groups = (in + v.group_columns - 1) / v.group_columns;
    v.bits = bits;
    v.whole_row = group == 0;
    return v;
  }
};

std::vector<any_format> all_formats(std::vector<index_t> const& groups) {
  std::vector<any_format> formats;
  for (index_t const group : groups) {
    for (int const bits : {2, 3, 4, 8}) {
      formats.push_back({"asymmetric", gptq::scheme_levels<gptq::asymmetric>(bits), bits, group});
      formats.push_back({"symmetric", gptq::scheme_levels<gptq::symmetric>(bits), bits, group});
      formats.push_back({"fixed_zero", gptq::scheme_levels<gptq::fixed_zero>(bits), bits, group});
      formats.push_back({"half_step", gptq::scheme_levels<gptq::half_step>(bits), bits, group});
    }
    formats.push_back({"e2m1", gptq::scheme_levels<gptq::e2m1_levels>(4), 4, group});
    formats.push_back({"iq4_nl", gptq::scheme_levels<gptq::iq4_nl_levels>(4), 4, group});
    formats.push_back({"seven_levels", gptq::scheme_levels<test::seven_levels>(3), 3, group});
  }
  return formats;
}

struct problem {
  matrix weight;
  hessian h;

  problem(index_t out, index_t in, std::uint32_t seed, index_t tokens = 0) : h(in) {
    test::random random(seed);
    weight = 0.1F * test::normal_matrix(out, in, random);
    h.add(test::correlated_inputs(tokens == 0 ? 3 * in + 20 : tokens, in, random));
  }

  /// H with damping, in double.
  Eigen::MatrixXd damped(double damping) const {
    Eigen::MatrixXd full = test::full_hessian(h);
    full.diagonal().array() += damping * full.diagonal().mean();
    return full;
  }
};

matrix decoded(solution const& s, format_values const& f, index_t rows, index_t columns) {
  matrix q(rows, columns);
  for (index_t row = 0; row < rows; ++row) {
    for (index_t column = 0; column < columns; ++column) {
      q(row, column) =
          f.levels.decode(s.codes[at(row * columns + column)], s.grid_at(row, column / f.group_columns));
    }
  }
  return q;
}

/// d H d' of every row.
std::vector<double> losses_of(problem const& p, solution const& s, format_values const& f,
                              Eigen::MatrixXd const& h) {
  Eigen::MatrixXd const d = (p.weight - decoded(s, f, p.weight.rows(), p.weight.cols())).cast<double>();
  Eigen::VectorXd const losses = (d * h).cwiseProduct(d).rowwise().sum();
  return {losses.data(), losses.data() + losses.size()};
}

solution solve(problem const& p, format_values const& f, recipe const& how, quantize_options options = {}) {
  return gptq::solver::solve(matrix(p.weight), p.h, f, options, how, nullptr);
}

void check_stored(solution const& s, format_values const& f) {
  bool good = true;
  for (std::uint8_t const code : s.codes) {
    good = good && code >= f.levels.min_code && code <= f.levels.max_code;
  }
  for (std::uint8_t const zero : s.zeros) good = good && zero < 1 << f.bits;
  for (float const scale : s.scales) {
    good = good && std::isfinite(scale) && static_cast<float>(gptq::float16(scale)) == scale;
  }
  CHECK(good);
}

}  // namespace

TEST_CASE("every pass of coordinate descent lowers the loss of every row, by what it says", "[descent]") {
  // Groups within blocks, groups larger than any, a last group that is shorter, the whole row.
  problem const p(67, 600, 51);
  Eigen::MatrixXd const h = p.damped(0.01);
  for (any_format const& format : all_formats({32, 136, 288, 0})) {
    if (format.group > 32 && format.bits != 3) continue;
    CAPTURE(format.scheme, format.bits, format.group);
    format_values const f = format.values(600);
    solution s = solve(p, f, {.search = true});
    matrix difference = p.weight - decoded(s, f, 67, 600);
    Eigen::VectorXf const extra = Eigen::VectorXf::Constant(600, 0.01F * p.h.sum().diagonal().mean());
    coordinate_descent descent(difference, p.h, extra, f, 2, s);
    std::vector<double> before = losses_of(p, s, f, h);
    double const first = std::accumulate(before.begin(), before.end(), 0.0);
    double worst = 0.0;
    for (bool const codes : {false, true, true}) {
      std::vector<double> gained(67);
      descent.pass(codes, gained);
      std::vector<double> const after = losses_of(p, s, f, h);
      for (std::size_t row = 0; row < 67; ++row) {
        CHECK(gained[row] >= 0.0);
        double const claimed = before[row] - p.h.scale() * gained[row];
        worst = std::max(worst, std::abs(after[row] / claimed - 1.0));
      }
      before = after;
    }
    // What float32 gradients of 600 columns are good to.
    CHECK(worst < (format.bits == 8 ? 2e-3 : 1e-4));
    CHECK(std::accumulate(before.begin(), before.end(), 0.0) < first);
    CHECK((difference - (p.weight - decoded(s, f, 67, 600))).cwiseAbs().maxCoeff() < 1e-6F);
    check_stored(s, f);
  }
}

TEST_CASE("coordinate descent ends where no single code is worth changing", "[descent]") {
  problem const p(5, 48, 52);
  Eigen::MatrixXd const h = p.damped(0.01);
  for (any_format const& format : all_formats({16, 0})) {
    CAPTURE(format.scheme, format.bits, format.group);
    format_values const f = format.values(48);
    solution s = solve(p, f, {.search = true});
    matrix difference = p.weight - decoded(s, f, 5, 48);
    Eigen::VectorXf const extra = Eigen::VectorXf::Constant(48, 0.01F * p.h.sum().diagonal().mean());
    coordinate_descent descent(difference, p.h, extra, f, 1, s);
    std::vector<double> gained(5);
    for (int pass = 0; pass < 50; ++pass) descent.pass(true, gained);
    auto const losses = losses_of(p, s, f, h);
    for (index_t row = 0; row < 5; ++row) {
      double best = losses[at(row)];
      for (index_t column = 0; column < 48; ++column) {
        std::uint8_t& code = s.codes[at(row * 48 + column)];
        std::uint8_t const kept = code;
        for (int other = f.levels.min_code; other <= f.levels.max_code; ++other) {
          // The loss is a parabola of each code, or of each level.
          if (!f.levels.is_code_book() && std::abs(other - kept) != 1) continue;
          code = static_cast<std::uint8_t>(other);
          best = std::min(best, losses_of(p, s, f, h)[at(row)]);
        }
        code = kept;
      }
      CHECK(best >= losses[at(row)] * (1.0 - 1e-4));
    }
  }
}

TEST_CASE("the scale of a group is the best of all float16 numbers", "[descent]") {
  problem const p(3, 24, 53);
  Eigen::MatrixXd const h = p.damped(0.01);
  for (any_format const& format : all_formats({8})) {
    CAPTURE(format.scheme, format.bits);
    format_values const f = format.values(24);
    solution s = solve(p, f, {.search = true});
    for (float& scale : s.scales) scale = static_cast<float>(gptq::float16(0.8F * scale));  // too small
    matrix difference = p.weight - decoded(s, f, 3, 24);
    Eigen::VectorXf const extra = Eigen::VectorXf::Constant(24, 0.01F * p.h.sum().diagonal().mean());
    coordinate_descent descent(difference, p.h, extra, f, 1, s);
    std::vector<double> gained(3);
    descent.pass(false, gained);
    // The last group was fitted last: nothing has changed since.
    double const fitted = losses_of(p, s, f, h)[1];
    float const scale = s.grid_at(1, 2).scale;
    Eigen::RowVectorXd const d = (p.weight - decoded(s, f, 3, 24)).row(1).cast<double>();
    Eigen::RowVectorXd levels = Eigen::RowVectorXd::Zero(24);
    for (index_t c = 16; c < 24; ++c) {
      levels(c) = static_cast<double>(f.levels.level(s.codes[at(24 + c)], s.grid_at(1, 2)));
    }
    double least = std::numeric_limits<double>::infinity();
    for (int bits = 0; bits < 1 << 16; ++bits) {
      auto const candidate = static_cast<float>(gptq::float16::from_bits(static_cast<std::uint16_t>(bits)));
      if (!(std::abs(candidate) < 65504.0F)) continue;
      Eigen::RowVectorXd const moved =
          d - (static_cast<double>(candidate) - static_cast<double>(scale)) * levels;
      least = std::min(least, moved.dot(moved * h));
    }
    CHECK(fitted == Approx(least).epsilon(1e-5));
  }
}

TEST_CASE("a wide beam finds the best of all codes", "[descent]") {
  // Two levels a column: the two nearest ones are all there are, and 2^8 candidates hold every choice.
  for (std::uint32_t seed = 0; seed < 12; ++seed) {
    problem const p(4, 8, 60 + seed);
    Eigen::MatrixXd const h = p.damped(0.01);
    any_format const format{"half_step", gptq::scheme_levels<gptq::half_step>(2), 2, 8};
    format_values f = format.values(8);
    f.levels.min_code = 1;  // -1/2 and 1/2
    f.levels.max_code = 2;
    solution const greedy = solve(p, f, {.search = true, .rounds = 1});
    solution s = solve(p, f, {.search = true, .rounds = 1, .beam = 256});
    auto const found = losses_of(p, s, f, h);
    auto const without = losses_of(p, greedy, f, h);
    for (index_t row = 0; row < 4; ++row) {
      double least = std::numeric_limits<double>::infinity();
      for (int choice = 0; choice < 256; ++choice) {
        for (index_t c = 0; c < 8; ++c) {
          s.codes[at(row * 8 + c)] = static_cast<std::uint8_t>(1 + ((choice >> c) & 1));
        }
        least = std::min(least, losses_of(p, s, f, h)[at(row)]);
      }
      CHECK(found[at(row)] == Approx(least).epsilon(1e-4));
      CHECK(found[at(row)] <= without[at(row)] * (1.0 + 1e-6));
    }
  }
}

TEST_CASE("of two orders of columns every row keeps the one that loses less", "[descent]") {
  // Groups of which the last one is shorter, larger than a block of the sweep, and all of one length.
  problem const p(37, 600, 57);
  Eigen::MatrixXd const h = p.damped(0.01);
  for (any_format const& format : all_formats({32, 136, 200})) {
    if (format.bits == 8 || (format.group > 32 && format.bits != 3)) continue;
    CAPTURE(format.scheme, format.bits, format.group);
    format_values const f = format.values(600);
    solution const one = solve(p, f, {.search = true});
    solution const both = solve(p, f, {.search = true, .group_aware = true});
    check_stored(both, f);
    CHECK(both.order.empty());
    auto const without = losses_of(p, one, f, h);
    auto const with = losses_of(p, both, f, h);
    int better = 0;
    for (std::size_t row = 0; row < 37; ++row) {
      CHECK(with[row] <= without[row] * (1.0 + 1e-4));
      better += with[row] < without[row] * (1.0 - 1e-4) ? 1 : 0;
    }
    CHECK(better > 0);
    CHECK(both.report.loss == Approx(0.5 * std::accumulate(with.begin(), with.end(), 0.0)).epsilon(1e-3));
    // What a row keeps is of one order, codes and grids: descending from there lowers its loss.
    auto const refined = losses_of(p, solve(p, f, {.search = true, .group_aware = true, .passes = 2}), f, h);
    for (std::size_t row = 0; row < 37; ++row) CHECK(refined[row] <= with[row] * (1.0 + 1e-4));
  }
}

TEST_CASE("more work never makes the loss worse", "[descent]") {
  problem const p(40, 200, 54);
  Eigen::MatrixXd const h = p.damped(0.01);
  std::array<recipe, 6> const recipes{
      recipe{.search = true},
      {.search = true, .group_aware = true},
      {.search = true, .group_aware = true, .passes = 1},
      {.search = true, .group_aware = true, .passes = 4},
      {.search = true, .group_aware = true, .rounds = 2, .passes = 4},
      {.search = true, .group_aware = true, .rounds = 2, .beam = 8, .passes = 4}};
  for (any_format const& format : all_formats({32, 0})) {
    CAPTURE(format.scheme, format.bits, format.group);
    format_values const f = format.values(200);
    double const plain = solve(p, f, {}, {.act_order = true, .static_groups = true}).report.loss;
    double before = plain;
    for (std::size_t i = 0; i < recipes.size(); ++i) {
      CAPTURE(i);
      solution const s = solve(p, f, recipes[i]);
      check_stored(s, f);
      auto const losses = losses_of(p, s, f, h);
      CHECK(s.report.loss == Approx(0.5 * std::accumulate(losses.begin(), losses.end(), 0.0)).epsilon(1e-3));
      // Rounds start from elsewhere than passes alone, and may end a little higher.
      CHECK(s.report.loss < before * (i < 4 ? 1.0 + 1e-6 : 1.02));
      before = s.report.loss;
    }
    CHECK(before < 0.95 * plain);
  }
}

TEST_CASE("the search's grid is never worse than the rule's, and as good as a fine scan", "[descent]") {
  test::random random(55);
  for (any_format const& format : all_formats({32})) {
    CAPTURE(format.scheme, format.bits);
    format_values const f = format.values(32);
    double searched = 0.0, scanned = 0.0;
    for (int group = 0; group < 20; ++group) {
      auto const weights = random.normals(32);
      std::vector<float> metric(32);
      for (float& m : metric) m = std::exp2(4.0F * random.uniform());
      auto const error = [&](grid g) {
        double sum = 0.0;
        for (std::size_t i = 0; i < 32; ++i) {
          double const e = static_cast<double>(f.levels.decode(f.levels.encode(weights[i], g), g)) -
                           static_cast<double>(weights[i]);
          sum += static_cast<double>(metric[i]) * e * e;
        }
        return sum;
      };
      grid const found = gptq::solver::search_grid(weights, metric.data(), f);
      CHECK(error(found) <= error(f.find(weights)) * (1.0 + 1e-5));
      double least = std::numeric_limits<double>::infinity();
      grid const own = f.find(weights);
      for (int i = -300; i <= 300; ++i) {
        float const scale = own.scale * static_cast<float>(i) / 300.0F;
        if (f.levels.has_zero_point && i <= 0) continue;
        for (int zero = 0; zero < (f.levels.has_zero_point && f.bits < 8 ? 1 << f.bits : 1); ++zero) {
          least = std::min(least, error({scale, f.levels.has_zero_point && f.bits == 8 ? own.zero : zero}));
        }
      }
      searched += error(found);
      scanned += least;
    }
    CHECK(searched < 1.35 * scanned);
  }
}

TEST_CASE("of powers of two the search finds the best", "[descent]") {
  test::random random(57);
  for (any_format const& format : {any_format{"e2m1", gptq::scheme_levels<gptq::e2m1_levels>(4), 4, 32},
                                   any_format{"symmetric", gptq::scheme_levels<gptq::symmetric>(4), 4, 32}}) {
    CAPTURE(format.scheme);
    format_values f = format.values(32);
    f.grids.scales = gptq::scale_type::e8m0;
    for (int group = 0; group < 50; ++group) {
      auto weights = random.normals(32);
      for (float& w : weights) w *= std::exp2(static_cast<float>(group % 9 - 6));
      if (group % 7 == 0) weights[31] *= 8.0F;
      std::vector<float> metric(32);
      for (float& m : metric) m = std::exp2(4.0F * random.uniform());
      double least = std::numeric_limits<double>::infinity();
      float best = 0.0F;
      for (int exponent = -40; exponent < 20; ++exponent) {
        grid const g{std::exp2(static_cast<float>(exponent)), 0};
        double sum = 0.0;
        for (std::size_t i = 0; i < 32; ++i) {
          double const e = static_cast<double>(f.levels.decode(f.levels.encode(weights[i], g), g)) -
                           static_cast<double>(weights[i]);
          sum += static_cast<double>(metric[i]) * e * e;
        }
        if (sum < least) {
          least = sum;
          best = g.scale;
        }
      }
      CHECK(gptq::solver::search_grid(weights, metric.data(), f).scale == best);
    }
  }
}

TEST_CASE("damping is chosen, and plain GPTQ kept where it is better, on held-out tokens", "[descent]") {
  any_format const format{"fixed_zero", gptq::scheme_levels<gptq::fixed_zero>(3), 3, 32};
  format_values const f = format.values(96);
  format_values f_mse = f;
  f_mse.grids.mse = true;
  int raised = 0, fell_back = 0, fast_fell_back = 0;
  for (std::uint32_t seed = 0; seed < 12; ++seed) {
    CAPTURE(seed);
    problem const p(24, 96, 70 + seed, 60);  // fewer tokens than inputs
    test::random random(90 + seed);
    hessian held_out(96);
    matrix x = test::correlated_inputs(400, 96, random);
    if (seed >= 3) x.leftCols(93).setZero();  // tokens that are nothing like those of the calibration
    held_out.add(x);
    auto const with = [&](quantize_options const& options, recipe const& how, bool mse = false) {
      return gptq::solver::solve(matrix(p.weight), p.h, mse ? f_mse : f, options, how, &held_out).report;
    };
    auto const best =
        with({.quality = quality::best, .act_order = true}, gptq::solver::recipe_for(quality::best));
    auto const range = with({.quality = quality::plain, .act_order = true}, {});
    CHECK(best.held_out_error <= range.held_out_error);
    recipe everything_else = gptq::solver::recipe_for(quality::best);
    everything_else.choose_damping = false;
    everything_else.guards = 0;
    auto const unchosen = with({.quality = quality::best}, everything_else);
    raised += best.damping > 0.01 && best.held_out_error < unchosen.held_out_error ? 1 : 0;
    fell_back += best.fell_back ? 1 : 0;
    CHECK((best.fell_back || best.held_out_error < range.held_out_error));
    CHECK(!unchosen.fell_back);
    auto const fast =
        with({.quality = quality::fast, .act_order = true}, gptq::solver::recipe_for(quality::fast));
    CHECK(fast.held_out_error <= range.held_out_error);
    auto const searched =
        with({.quality = quality::plain, .act_order = true, .static_groups = true}, {}, true);
    CHECK(best.held_out_error <= searched.held_out_error);
    fast_fell_back += fast.fell_back ? 1 : 0;
  }
  CHECK(raised >= 2);
  CHECK(fell_back >= 1);
  CHECK(fast_fell_back >= 1);
}

TEST_CASE("fast and best give the same bits for any number of threads", "[descent]") {
  problem const p(70, 280, 56);
  for (any_format const& format : all_formats({32, 0})) {
    if (format.bits != 3) continue;
    format_values const f = format.values(280);
    for (quality const q : {quality::fast, quality::best}) {
      auto const run = [&](int threads) {
        return gptq::solver::solve(matrix(p.weight), p.h, f, {.quality = q, .threads = threads},
                                   gptq::solver::recipe_for(q), &p.h);
      };
      solution const one = run(1);
      for (int const threads : {3}) {
        solution const some = run(threads);
        CHECK((one.codes == some.codes && one.scales == some.scales && one.zeros == some.zeros));
        CHECK(one.report.loss == some.report.loss);
      }
    }
  }
}
