// What input_error.hpp computes, on plain matrices.
#pragma once

#include <Eigen/Core>

#include <gptq/hessian.hpp>
#include <gptq/linalg/products.hpp>

#if !defined(GPTQ_SOLVER_ELSEWHERE)
#include <algorithm>
#include <string>
#include <utility>

#include <gptq/solver/factor.hpp>
#include <gptq/solver/problem.hpp>
#endif

namespace gptq::solver {

/// sum += (x - quantized_x)' quantized_x for [tokens, in] each. Throws gptq::error for what does not fit or
/// is not finite, naming its place: nothing is added then.
GPTQ_SOLVER_FUNCTION void add_input_error(Eigen::MatrixXf& sum, linalg::view x, linalg::view quantized_x,
                                          int threads);

/// S and C of some tokens.
struct input_sums {
  hessian const& h;
  Eigen::MatrixXf const& error;
};

/// weight += strength * W C (S + damping)^-1. Returns the strength: the one of the least error on held-out
/// tokens up to the given one, where there are some. Throws gptq::error.
GPTQ_SOLVER_FUNCTION double add_correction(matrix& weight, input_sums const& inputs, double strength,
                                           double damping, int threads, input_sums const* held_out);

#if !defined(GPTQ_SOLVER_ELSEWHERE)

GPTQ_SOLVER_FUNCTION void add_input_error(Eigen::MatrixXf& sum, linalg::view x, linalg::view quantized_x,
                                          int threads) {
  index_t const in = sum.rows();
  if (x.columns != in || quantized_x.columns != in || x.rows != quantized_x.rows) {
    throw error("input_error: activations are " + std::to_string(x.rows) + " x " + std::to_string(x.columns) +
                " and, quantized, " + std::to_string(quantized_x.rows) + " x " +
                std::to_string(quantized_x.columns) + "; both have to be " + std::to_string(in) +
                " wide and of the same tokens");
  }
  for (bool const quantized : {false, true}) {
    linalg::view const given = quantized ? quantized_x : x;
    if (linalg::all_finite(given)) continue;
    for (index_t t = 0; t < given.rows; ++t) {
      for (index_t i = 0; i < in; ++i) {
        if (std::isfinite(given(t, i))) continue;
        throw error(std::string("input_error: the ") + (quantized ? "quantized " : "") +
                    "activation of token " + std::to_string(t) + ", input " + std::to_string(i) + " is " +
                    std::to_string(given(t, i)));
      }
    }
  }
  if (x.rows == 0) return;
  matrix difference(x.rows, in);
  for (index_t t = 0; t < x.rows; ++t) {
    for (index_t i = 0; i < in; ++i) difference(t, i) = x(t, i) - quantized_x(t, i);
  }
  linalg::add_product(sum, linalg::sign::plus, linalg::view(difference).transposed(), quantized_x, threads);
}

/// W C (S + damping)^-1.
inline matrix find_correction(matrix const& weight, input_sums const& inputs, double first_damping,
                              int threads) {
  index_t const in = weight.cols();
  double sum = 0.0;
  for (index_t i = 0; i < in; ++i) sum += static_cast<double>(inputs.h.sum()(i, i));
  auto const mean = static_cast<float>(sum / static_cast<double>(in));
  Eigen::MatrixXf factor;
  damping_ladder ladder(first_damping);
  for (;;) {
    factor = inputs.h.sum();
    // Without any input there is nothing to make up for, and any diagonal will do.
    float const added = mean > 0.0F ? static_cast<float>(ladder.damping()) * mean : 1.0F;
    for (index_t i = 0; i < in; ++i) factor(i, i) += added;
    if (linalg::cholesky_lower(factor, threads)) break;
    if (!ladder.raise()) throw_not_positive_definite(inputs.h, ladder.damping());
  }
  matrix correction = matrix::Zero(weight.rows(), in);
  linalg::add_product(correction, linalg::sign::plus, weight, inputs.error, threads);
  linalg::for_row_tiles(weight.rows(), threads, [&](index_t first, index_t count) {
    auto rows = correction.middleRows(first, count);
    factor.triangularView<Eigen::Lower>().transpose().solveInPlace<Eigen::OnTheRight>(rows);
    factor.triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(rows);
  });
  return correction;
}

/// Where |W x - (W + s P) x~|^2 summed over tokens is least: s = tr(W C P') / tr(P S P').
inline double best_strength(matrix const& weight, matrix const& correction, input_sums const& on, double most,
                            int threads) {
  double const square = linalg::quadratic_form(correction, on.h.sum(), threads);
  if (!(square > 0.0)) return 0.0;
  matrix target = matrix::Zero(weight.rows(), weight.cols());
  linalg::add_product(target, linalg::sign::plus, weight, on.error, threads);
  double along = 0.0;
  for (index_t row = 0; row < weight.rows(); ++row) {
    double of_row = 0.0;
    for (index_t i = 0; i < weight.cols(); ++i) {
      of_row += static_cast<double>(target(row, i)) * static_cast<double>(correction(row, i));
    }
    along += of_row;
  }
  return std::clamp(along / square, 0.0, most);
}

inline void check_input_sums(input_sums const& given, index_t in, std::string const& which) {
  check_hessian(given.h, in, which.c_str());
  if (given.error.rows() != in) {
    throw error("compensate: the weight has " + std::to_string(in) + " columns, the input error of the " +
                which + " " + std::to_string(given.error.rows()));
  }
}

GPTQ_SOLVER_FUNCTION double add_correction(matrix& weight, input_sums const& inputs, double strength,
                                           double damping, int threads, input_sums const* held_out) {
  for (auto const& [name, value] : {std::pair("strength", strength), std::pair("damping", damping)}) {
    if (!(value >= 0.0 && value <= 1.0)) {
      throw error(std::string("compensate: ") + name + " is " + std::to_string(value) +
                  ", not between 0 and 1");
    }
  }
  check_weight(weight, weight.cols());
  check_input_sums(inputs, weight.cols(), "hessian");
  if (held_out != nullptr) check_input_sums(*held_out, weight.cols(), "held-out hessian");
  if (strength == 0.0) return strength;
  matrix const correction = find_correction(weight, inputs, damping, threads);
  if (held_out != nullptr) strength = best_strength(weight, correction, *held_out, strength, threads);
  linalg::add_scaled(weight.data(), static_cast<float>(strength), correction.data(), weight.size());
  return strength;
}

#endif

}  // namespace gptq::solver
