// The damped Hessian of a layer, and its factor in the order of the sweep.
#pragma once

#include <cmath>
#include <memory>
#include <string>

#include <Eigen/Core>

#include <gptq/linalg/products.hpp>
#include <gptq/solver/damping.hpp>
#include <gptq/solver/order.hpp>
#include <gptq/solver/shared_factors.hpp>

namespace gptq::solver {

/// H with damping. A dead input, one that was zero on every token, counts as an average one, so that no
/// choice of unit for the activations matters.
class damped_hessian {
 public:
  explicit damped_hessian(hessian const& h) : h_(h) {
    index_t const columns = h.in_features();
    Eigen::VectorXd diagonal(columns);
    for (index_t i = 0; i < columns; ++i) {
      diagonal(i) = static_cast<double>(h.sum()(i, i)) * h.scale();
      live_ += is_dead(i) ? 0 : 1;
    }
    average_ = live_ == 0 ? 1.0 : diagonal.sum() / static_cast<double>(live_);
  }

  hessian const& undamped() const { return h_; }
  bool is_dead(index_t column) const { return h_.sum()(column, column) == 0.0F; }
  index_t live_columns() const { return live_; }
  void set_damping(double damping) { damping_ = damping * average_; }

  /// What damping, and its being dead, adds to H_ii of an input.
  double added(index_t column) const { return damping_ + (is_dead(column) ? average_ : 0.0); }
  /// H_ii, damped.
  float diagonal(index_t column) const {
    float const undamped = static_cast<float>(h_.scale()) * h_.sum()(column, column);
    double const live = is_dead(column) ? average_ : double{undamped};
    return static_cast<float>(live + damping_);
  }

 private:
  hessian const& h_;
  index_t live_ = 0;
  double average_ = 0.0;  ///< of diag(H), dead inputs left out or, as they count as average ones, included
  double damping_ = 0.0;  ///< as it is added
};

[[noreturn]] inline void throw_not_positive_definite(hessian const& h, double damping) {
  index_t const n = h.in_features();
  double least = INFINITY, most = -INFINITY, sum = 0.0;
  index_t dead = 0;
  for (index_t i = 0; i < n; ++i) {
    double const diagonal = static_cast<double>(h.sum()(i, i)) * h.scale();
    least = std::min(least, diagonal);
    most = std::max(most, diagonal);
    sum += diagonal;
    dead += diagonal == 0.0 ? 1 : 0;
  }
  throw error("quantize: the Hessian of " + std::to_string(n) +
              " inputs is not positive definite with damping " + std::to_string(damping) +
              " (diagonal from " + std::to_string(least) + " to " + std::to_string(most) + ", mean " +
              std::to_string(sum / static_cast<double>(n)) + "; " + std::to_string(dead) + " dead inputs; " +
              std::to_string(h.tokens()) + " tokens)");
}

/// The Cholesky factor L of the damped Hessian, rows and columns in the reversed order of quantization,
/// scaled to a unit diagonal: H = L diag(diagonal)^2 L'.
struct factor {
  Eigen::MatrixXf lower;
  Eigen::VectorXf diagonal;
  double damping = 0.0;
  int damping_raised = 0;
};

/// Factorizes with the given damping, or the least one after it with which H is positive definite, which then
/// is h's. Throws gptq::error when there is none.
inline factor factorize(damped_hessian& h, column_order const& order, double first_damping, int threads) {
  factor f;
  auto const& sum = h.undamped().sum();
  auto const scale = static_cast<float>(h.undamped().scale());
  index_t const columns = sum.rows();
  f.lower.resize(columns, columns);
  damping_ladder ladder(first_damping);
  for (;;) {
    h.set_damping(ladder.damping());
    linalg::parallel_for(columns, threads, [&](index_t b) {
      index_t const j = order.column(columns - 1 - b);
      for (index_t a = b + 1; a < columns; ++a) {
        index_t const i = order.column(columns - 1 - a);
        f.lower(a, b) = scale * (i > j ? sum(i, j) : sum(j, i));
      }
      f.lower(b, b) = h.diagonal(j);
    });
    if (linalg::cholesky_lower(f.lower, threads)) break;
    if (!ladder.raise()) throw_not_positive_definite(h.undamped(), ladder.damping());
  }
  f.damping = ladder.damping();
  f.damping_raised = ladder.raised();
  f.diagonal.resize(columns);
  for (index_t a = 0; a < columns; ++a) {
    float* const column = &f.lower(0, a);
    float const diagonal = column[a];
    f.diagonal(a) = diagonal;
    for (index_t i = a; i < columns; ++i) column[i] /= diagonal;
  }
  return f;
}

/// The same, or what it gave before for the same order and damping, if `factors` is there to remember.
inline std::shared_ptr<factor const> find_factor(shared_factors* factors, damped_hessian& h,
                                                 column_order const& order, double first_damping,
                                                 int threads) {
  if (factors != nullptr) {
    for (auto const& known : factors->known) {
      if (known.first_damping != first_damping || known.columns != order.columns) continue;
      h.set_damping(known.f->damping);
      return known.f;
    }
  }
  auto const f = std::make_shared<factor const>(factorize(h, order, first_damping, threads));
  if (factors != nullptr) factors->known.push_back({order.columns, first_damping, f});
  return f;
}

}  // namespace gptq::solver
