#include "accuracy_limit.hpp"

#include <cmath>
#include <numbers>

#include <gptq/error.hpp>
#include <gptq/linalg/products.hpp>

namespace accuracy {

double least_loss(std::span<float const> scales, gptq::index_t out, gptq::index_t group_columns,
                  gptq::hessian const& h, double damping) {
  gptq::index_t const in = h.in_features();
  Eigen::MatrixXf factor = static_cast<float>(h.scale()) * h.sum();
  auto const mean = static_cast<float>(factor.diagonal().cast<double>().mean());
  for (gptq::index_t i = 0; i < in; ++i) {
    if (factor(i, i) == 0.0F) factor(i, i) = mean;  // a dead input counts as an average one
  }
  factor.diagonal().array() += static_cast<float>(damping) * mean;
  if (!gptq::linalg::cholesky_lower(factor, 1)) throw gptq::error("least_loss: not positive definite");
  double const log_determinant = factor.diagonal().cast<double>().array().log().sum();
  gptq::index_t const groups = static_cast<gptq::index_t>(scales.size()) / out;
  auto const k = static_cast<double>(in);
  double sum = 0.0;
  for (gptq::index_t row = 0; row < out; ++row) {
    double log_volume = log_determinant;
    for (gptq::index_t column = 0; column < in; ++column) {
      float const scale = scales[static_cast<std::size_t>(row * groups + column / group_columns)];
      log_volume += std::log(std::abs(static_cast<double>(scale)));
    }
    double const square = std::exp(2.0 / k * (log_volume + std::lgamma(k / 2.0 + 1.0))) / std::numbers::pi;
    sum += k / (k + 2.0) * square;
  }
  return 0.5 * sum;
}

}  // namespace accuracy
