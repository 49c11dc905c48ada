// What the quantized layers before have done to a layer's inputs, and how its weight makes up for it.
//
//   gptq::hessian h(in_features);
//   gptq::input_error e(in_features);
//   for (...) h.add(quantized_x), e.add(x, quantized_x);    // the same tokens, in float and as they arrive
//   auto layer = gptq::quantize<q4>(gptq::compensate(weight, h, e).weight, h);
//
// A layer in a quantized model reads x~ in place of x. With S = sum of x~ x~' and C = sum of (x - x~) x~',
// the outputs W x are met best on what it reads by W (I + C S^-1), and
//
//   sum |W x - Q x~|^2 = tr(D S D') + what no weight can do anything about,    D = W (I + C S^-1) - Q,
//
// so that this is the weight to quantize, under the Hessian of x~. (Arai, Ichikawa, "Quantization Error
// Propagation", 2025; the same correction is the start of GPTAQ, Li et al., 2025, and Qronos, Zhang et al.,
// 2025.) C is known from the calibration tokens alone, and a part of it is noise: `strength` is how much of
// the correction is made, and tokens that it does not come from can choose it.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include <Eigen/Core>

#include <gptq/error.hpp>
#include <gptq/hessian.hpp>
#include <gptq/linalg/products.hpp>
#include <gptq/solver/solution.hpp>
#include <gptq/solver/solver_function.hpp>

namespace gptq {

/// C = sum over tokens of (x - x~) x~', in float32; K x K floats of memory. Of the same tokens as a Hessian
/// of x~.
class input_error {
 public:
  /// @param in_features  width of the inputs, positive
  /// @param threads      for add(); 0: one a core. The result does not depend on it (but see
  /// linalg/products.hpp)
  explicit input_error(index_t in_features, int threads = 0);

  /// Adds a sequence: the inputs of the unquantized model, and those of the quantized one, [tokens, in] each.
  /// Throws gptq::error when shapes do not agree, or for a NaN or an infinity; nothing is added then.
  void add(Eigen::Ref<matrix const> const& x, Eigen::Ref<matrix const> const& quantized_x);

  index_t in_features() const { return sum_.rows(); }
  /// C[in, in].
  Eigen::MatrixXf const& sum() const { return sum_; }

 private:
  Eigen::MatrixXf sum_;
  int threads_;
};

struct compensate_options {
  /// How much of the correction is made, 0..1; with held-out tokens, at most.
  double strength = 1.0;
  /// Added to diag(S), as a fraction of its mean. Raised as in quantize_options.
  double damping = 0.01;
  int threads = 0;
};

struct compensated_weight {
  matrix weight;          ///< W + strength * W C (S + damping)^-1, [out, in]
  double strength = 0.0;  ///< as it was chosen
};

/// What quantized inputs and what they were, on the same held-out tokens.
struct held_out_inputs {
  hessian const& h;
  input_error const& error;
};

/// The weight[out, in] to quantize for inputs like those of `h` so that its outputs come near to those on the
/// inputs of the unquantized model. Memory besides the weight and the result: K x K and N x K floats.
/// @param held_out  other tokens, on which the strength shall have the least squared error of the outputs;
///   may be null: then it is the given one
/// @throws gptq::error when shapes do not agree, an option is out of range, an entry is not finite, or S is
///   not positive definite even with damping 1
compensated_weight compensate(matrix weight, hessian const& h, input_error const& error,
                              compensate_options const& options = {},
                              held_out_inputs const* held_out = nullptr);

// ---- implementation -------------------------------------------------------------------------------------

#if !defined(GPTQ_SOLVER_ELSEWHERE)

GPTQ_SOLVER_FUNCTION input_error::input_error(index_t in_features, int threads) : threads_(threads) {
  if (in_features <= 0) {
    throw error("input_error: in_features is " + std::to_string(in_features) + ", not positive");
  }
  sum_.setZero(in_features, in_features);
}

GPTQ_SOLVER_FUNCTION void input_error::add(Eigen::Ref<matrix const> const& x,
                                           Eigen::Ref<matrix const> const& quantized_x) {
  for (auto const* const given : {&x, &quantized_x}) {
    if (given->cols() != in_features() || given->rows() != x.rows()) {
      throw error("input_error: activations are " + std::to_string(x.rows()) + " x " +
                  std::to_string(x.cols()) + " and, quantized, " + std::to_string(quantized_x.rows()) +
                  " x " + std::to_string(quantized_x.cols()) + "; both have to be " +
                  std::to_string(in_features()) + " wide and of the same tokens");
    }
    if (!detail::all_rows_finite(*given)) throw error("input_error: an activation is not finite");
  }
  matrix const difference = x - quantized_x;
  detail::add_product(sum_, 1.0F, difference.transpose(), quantized_x, threads_);
}

namespace detail {

/// W C (S + damping)^-1.
inline matrix correction_of(matrix const& weight, hessian const& h, input_error const& error,
                            compensate_options const& options) {
  auto const mean = static_cast<float>(h.sum().diagonal().cast<double>().mean());
  Eigen::MatrixXf factor;
  for (double damping = options.damping;;) {
    factor = h.sum();
    // Without any input there is nothing to make up for, and any diagonal will do.
    factor.diagonal().array() += mean > 0.0F ? static_cast<float>(damping) * mean : 1.0F;
    if (cholesky_lower(factor, options.threads)) break;
    if (damping >= 1.0) throw_not_positive_definite(h, damping);
    damping = std::min(1.0, std::max(10.0 * damping, 1e-4));
  }
  matrix correction = matrix::Zero(weight.rows(), weight.cols());
  add_product(correction, 1.0F, weight, error.sum(), options.threads);
  for_row_tiles(weight.rows(), options.threads, [&](index_t first, index_t count) {
    auto rows = correction.middleRows(first, count);
    factor.triangularView<Eigen::Lower>().transpose().solveInPlace<Eigen::OnTheRight>(rows);
    factor.triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(rows);
  });
  return correction;
}

/// Where |W x - (W + s P) x~|^2 summed over held-out tokens is least: s = tr(W C P') / tr(P S P').
inline double best_strength(matrix const& weight, matrix const& correction, held_out_inputs const& on,
                            double most, int threads) {
  double const square = quadratic_form(correction, on.h.sum(), threads);
  if (!(square > 0.0)) return 0.0;
  matrix target = matrix::Zero(weight.rows(), weight.cols());
  add_product(target, 1.0F, weight, on.error.sum(), threads);
  double along = 0.0;
  for (index_t row = 0; row < weight.rows(); ++row) {
    along += target.row(row).cast<double>().dot(correction.row(row).cast<double>());
  }
  return std::clamp(along / square, 0.0, most);
}

inline void check_inputs(hessian const& h, input_error const& e, index_t in, char const* which) {
  check_hessian(h, in, which);
  if (e.in_features() != in) {
    throw error(std::string("compensate: the weight has ") + std::to_string(in) +
                " columns, the input error of the " + which + " " + std::to_string(e.in_features()));
  }
}

}  // namespace detail

GPTQ_SOLVER_FUNCTION compensated_weight compensate(matrix weight, hessian const& h, input_error const& error,
                                                   compensate_options const& options,
                                                   held_out_inputs const* held_out) {
  for (auto const& [name, value] :
       {std::pair("strength", options.strength), std::pair("damping", options.damping)}) {
    if (!(value >= 0.0 && value <= 1.0)) {
      throw gptq::error(std::string("compensate: ") + name + " is " + std::to_string(value) +
                        ", not between 0 and 1");
    }
  }
  detail::check_weight(weight);
  detail::check_inputs(h, error, weight.cols(), "hessian");
  if (held_out != nullptr)
    detail::check_inputs(held_out->h, held_out->error, weight.cols(), "held-out hessian");
  compensated_weight result{std::move(weight), options.strength};
  if (options.strength == 0.0) return result;
  matrix const correction = detail::correction_of(result.weight, h, error, options);
  if (held_out != nullptr) {
    result.strength =
        detail::best_strength(result.weight, correction, *held_out, options.strength, options.threads);
  }
  result.weight += static_cast<float>(result.strength) * correction;
  return result;
}

#endif

}  // namespace gptq
