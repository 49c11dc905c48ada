// What the quantized layers before have done to a layer's inputs, and how its weight makes up for it.
//
//   gptq::hessian h(in_features);
//   gptq::input_error e(in_features);
//   for (gptq::index_t i = 0; i < sequences; ++i) {
//     h.add(quantized_x[i]);           // [tokens, in_features], as the inputs arrive in the quantized model
//     e.add(x[i], quantized_x[i]);     // and what they are in the unquantized one, the same tokens
//   }
//   auto layer = gptq::quantize<q4>(gptq::compensate(weight, h, e).weight, h);
//
// A layer in a quantized model reads x~ in place of x. With S = sum of x~ x~' and C = sum of (x - x~) x~',
// the outputs W x are met best on what it reads by W (I + C S^-1), and
//
//   sum |W x - Q x~|^2 = tr(D S D') + what no weight can do anything about    for D = W (I + C S^-1) - Q
//
// so that this is the weight to quantize, under the Hessian of x~. (Arai, Ichikawa, "Quantization Error
// Propagation", 2025; the same correction is the start of GPTAQ, Li et al., 2025, and Qronos, Zhang et al.,
// 2025.) C is known from the calibration tokens alone, and a part of it is noise: `strength` is how much of
// the correction is made, and tokens that it does not come from can choose it.
#pragma once

#include <utility>

#include <Eigen/Core>

#include <gptq/error.hpp>
#include <gptq/hessian.hpp>
#include <gptq/solver/compensation.hpp>

namespace gptq {

/// C = sum over tokens of (x - x~) x~', in float32; K x K floats of memory. Of the same tokens as a Hessian
/// of x~.
class input_error {
 public:
  /// @param in_features  width of the inputs; throws gptq::error unless it is positive
  /// @param threads      for add(); 0: one a core. The result does not depend on it (but see
  ///   linalg/products.hpp)
  explicit input_error(index_t in_features, int threads = 0)
      : sum_(linalg::zeros("input_error", in_features)), threads_(threads) {}

  /// An already accumulated C[in, in], as sum() gives it. Throws gptq::error when it is not square.
  static input_error from_sum(Eigen::Ref<Eigen::MatrixXf const> const& sum) {
    if (sum.rows() != sum.cols() || sum.rows() == 0) throw error("input_error: the sum is not square");
    return input_error(Eigen::MatrixXf(sum), 0);
  }

  /// Adds a sequence: the inputs of the unquantized model, and those of the quantized one, [tokens, in] each;
  /// no tokens add nothing. Throws gptq::error when shapes do not agree, or for a NaN or an infinity, naming
  /// its token and input; nothing is added then.
  void add(Eigen::Ref<matrix const> const& x, Eigen::Ref<matrix const> const& quantized_x) {
    solver::add_input_error(sum_, x, quantized_x, threads_);
  }

  index_t in_features() const { return sum_.rows(); }
  /// C[in, in].
  Eigen::MatrixXf const& sum() const { return sum_; }

 private:
  input_error(Eigen::MatrixXf&& sum, int threads) : sum_(std::move(sum)), threads_(threads) {}

  Eigen::MatrixXf sum_;
  int threads_;
};

/// What can be chosen about compensate().
struct compensate_options {
  /// How much of the correction is made, 0..1; with held-out tokens, at most.
  double strength = 1.0;
  /// Added to diag(S), as a fraction of its mean, 0..1. Raised as in quantize_options.
  double damping = 0.01;
  /// 0: one a core.
  int threads = 0;
};

/// What compensate() makes of a weight.
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
/// @throws gptq::error when shapes do not agree, an option is out of range, an entry is not finite, a Hessian
///   has seen no tokens, or S is not positive definite even with damping 1
inline compensated_weight compensate(matrix weight, hessian const& h, input_error const& error,
                                     compensate_options const& options = {},
                                     held_out_inputs const* held_out = nullptr) {
  compensated_weight result{std::move(weight), 0.0};
  solver::input_sums const inputs{h, error.sum()};
  if (held_out == nullptr) {
    result.strength = solver::add_correction(result.weight, inputs, options.strength, options.damping,
                                             options.threads, nullptr);
  } else {
    solver::input_sums const others{held_out->h, held_out->error.sum()};
    result.strength = solver::add_correction(result.weight, inputs, options.strength, options.damping,
                                             options.threads, &others);
  }
  return result;
}

}  // namespace gptq
