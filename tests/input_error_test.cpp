// Making up for what became of a layer's inputs.
#include <limits>

#include <Eigen/Dense>

#include <gptq/input_error.hpp>

#include "catch.hpp"
#include "layers.hpp"
#include "support.hpp"

using gptq::compensate;
using gptq::hessian;
using gptq::index_t;
using gptq::input_error;
using gptq::matrix;
using test::contains;
using test::error_of;

namespace {

/// Inputs of the unquantized model, and what they have become: shrunk, and with noise.
struct inputs {
  matrix exact;
  matrix quantized;

  inputs(index_t tokens, index_t in, test::random& random)
      : exact(test::correlated_inputs(tokens, in, random)),
        quantized(0.8F * exact + 0.5F * test::normal_matrix(tokens, in, random)) {}

  hessian h() const {
    hessian result(exact.cols(), 1);
    result.add(quantized);
    return result;
  }
  input_error error() const {
    input_error result(exact.cols(), 1);
    result.add(exact, quantized);
    return result;
  }
  /// sum |W x - Q x~|^2
  double output_error(matrix const& w, matrix const& q) const {
    return (exact.cast<double>() * w.transpose().cast<double>() -
            quantized.cast<double>() * q.transpose().cast<double>())
        .squaredNorm();
  }
};

}  // namespace

TEST_CASE("an input error is the sum of (x - x~) x~'", "[input_error]") {
  test::random random(3);
  inputs const a(40, 65, random);
  inputs const b(7, 65, random);
  input_error e(65);
  e.add(a.exact, a.quantized);
  e.add(b.exact, b.quantized);
  Eigen::MatrixXd expected = Eigen::MatrixXd::Zero(65, 65);
  for (inputs const* const i : {&a, &b}) {
    Eigen::MatrixXd const x = i->exact.cast<double>();
    Eigen::MatrixXd const y = i->quantized.cast<double>();
    expected += (x - y).transpose() * y;
  }
  CHECK((e.sum().cast<double>() - expected).norm() < 1e-5 * expected.norm());
}

TEST_CASE("an input error is made from its sum", "[input_error]") {
  Eigen::MatrixXf sum = Eigen::MatrixXf::Random(5, 5);
  CHECK(gptq::input_error::from_sum(sum).sum() == sum);
  CHECK_THROWS_AS(gptq::input_error::from_sum(sum.topRows(4)), gptq::error);
  CHECK_THROWS_AS(gptq::input_error::from_sum(Eigen::MatrixXf()), gptq::error);
}

TEST_CASE("a compensated weight meets the outputs best", "[input_error]") {
  test::random random(5);
  inputs const seen(800, 70, random);
  matrix const weight = test::normal_matrix(9, 70, random);
  matrix const found = compensate(weight, seen.h(), seen.error(), {.damping = 0.0}).weight;
  Eigen::MatrixXd const x = seen.quantized.cast<double>();
  Eigen::MatrixXd const y = seen.exact.cast<double>() * weight.transpose().cast<double>();
  Eigen::MatrixXd const expected = (x.transpose() * x).llt().solve(x.transpose() * y).transpose();
  CHECK((found.cast<double>() - expected).norm() < 1e-4 * expected.norm());
  CHECK((weight.cast<double>() - expected).norm() > 0.1 * expected.norm());

  // What is left of the error is a quantity of the Hessian's, whatever the codes are.
  double const least = seen.output_error(weight, found);
  matrix const codes = found + 0.1F * test::normal_matrix(9, 70, random);
  double const noise = ((codes - found).cast<double>() * x.transpose()).squaredNorm();
  CHECK(seen.output_error(weight, codes) == Approx(least + noise).epsilon(1e-4));

  // Half of it is half of the way.
  matrix const half = compensate(weight, seen.h(), seen.error(), {.strength = 0.5, .damping = 0.0}).weight;
  CHECK((half - 0.5F * (weight + found)).norm() < 1e-5F * found.norm());
}

TEST_CASE("held-out tokens choose the strength of least error", "[input_error]") {
  test::random random(7);
  inputs const seen(60, 48, random);  // hardly more tokens than inputs: most of it is noise
  inputs const others(2000, 48, random);
  matrix const weight = test::normal_matrix(16, 48, random);
  hessian const h = others.h();
  input_error const e = others.error();
  gptq::held_out_inputs const held_out{h, e};
  auto const with = [&](double strength) {
    return others.output_error(weight,
                               compensate(weight, seen.h(), seen.error(), {.strength = strength}).weight);
  };
  auto const chosen = compensate(weight, seen.h(), seen.error(), {}, &held_out);
  CHECK(chosen.strength > 0.05);
  CHECK(chosen.strength < 0.95);
  double const least = others.output_error(weight, chosen.weight);
  CHECK(least == Approx(with(chosen.strength)));
  for (double const by : {-0.05, 0.05}) CHECK(least < with(chosen.strength + by));
  auto const limited = compensate(weight, seen.h(), seen.error(), {.strength = 0.04}, &held_out);
  CHECK(limited.strength == 0.04);
}

TEST_CASE("inputs that are as they were ask for nothing", "[input_error]") {
  test::random random(9);
  inputs same(100, 24, random);
  same.exact = same.quantized;
  matrix const weight = test::normal_matrix(5, 24, random);
  hessian const h = same.h();
  input_error const e = same.error();
  gptq::held_out_inputs const held_out{h, e};
  CHECK(compensate(weight, h, e).weight == weight);
  auto const chosen = compensate(weight, h, e, {}, &held_out);
  CHECK(chosen.weight == weight);
  CHECK(chosen.strength == 0.0);
  // Inputs that are all gone cannot be made up for.
  same.quantized.setZero();
  same.exact = test::normal_matrix(100, 24, random);
  CHECK(compensate(weight, same.h(), same.error()).weight == weight);
}

TEST_CASE("what cannot be compensated says so", "[input_error]") {
  test::random random(11);
  inputs const seen(30, 12, random);
  matrix const weight = test::normal_matrix(4, 12, random);
  CHECK(contains(error_of([] { input_error(0); }), "not positive"));
  input_error e(12);
  CHECK(contains(error_of([&] { e.add(seen.exact, seen.quantized.topRows(29)); }), "30 x 12"));
  CHECK(contains(error_of([&] { e.add(seen.exact.leftCols(11), seen.quantized.leftCols(11)); }), "12 wide"));
  matrix damaged = seen.exact;
  damaged(3, 4) = std::numeric_limits<float>::quiet_NaN();
  CHECK(contains(error_of([&] { e.add(damaged, seen.quantized); }),
                 "the activation of token 3, input 4 is nan"));
  CHECK(contains(error_of([&] { e.add(seen.exact, damaged); }),
                 "quantized activation of token 3, input 4 is nan"));
  CHECK(e.sum().isZero());
  hessian const h = seen.h();
  CHECK(contains(error_of([&] { compensate(weight, h, e, {.strength = 1.5}); }), "strength is 1.5"));
  CHECK(contains(error_of([&] { compensate(weight, h, e, {.damping = -1.0}); }), "damping is -1"));
  CHECK(contains(error_of([&] { compensate(weight, hessian(12), e); }), "hessian has seen no tokens"));
  input_error const wider(13);
  CHECK(contains(error_of([&] { compensate(weight, h, wider); }), "13"));
  gptq::held_out_inputs const wrong{h, wider};
  CHECK(contains(error_of([&] { compensate(weight, h, e, {}, &wrong); }), "held-out"));
}
