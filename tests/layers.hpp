// Random weights and activations for the tests that use Eigen.
#pragma once

#include <gptq/hessian.hpp>

#include "support.hpp"

namespace test {

inline gptq::matrix normal_matrix(index_t rows, index_t columns, random& random) {
  gptq::matrix m(rows, columns);
  for (index_t i = 0; i < m.size(); ++i) m.data()[i] = random.normal();
  return m;
}

/// Activations as layers see them: neighbouring inputs correlate, and some are ten times larger than others.
inline gptq::matrix correlated_inputs(index_t tokens, index_t in, random& random) {
  std::vector<float> sizes(static_cast<std::size_t>(in));
  for (float& size : sizes) size = std::exp2(1.5F * random.uniform());
  gptq::matrix x(tokens, in);
  for (index_t t = 0; t < tokens; ++t) {
    float state = random.normal();
    for (index_t i = 0; i < in; ++i) {
      state = 0.8F * state + 0.6F * random.normal();
      x(t, i) = state * sizes[static_cast<std::size_t>(i)];
    }
  }
  return x;
}

/// H = 2 / sequences S in double, both triangles.
inline Eigen::MatrixXd full_hessian(gptq::hessian const& h) {
  Eigen::MatrixXd full = h.sum().cast<double>().selfadjointView<Eigen::Lower>();
  return full * h.scale();
}

}  // namespace test
