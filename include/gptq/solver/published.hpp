// The published GPTQ solver, step by step and in its own float32 order of operations, defects included: what
// quality::reference runs. It exists to be compared with; layer_solver.hpp is faster and has no defects.
//
// Source: IST-DASLab/gptq and GPTQ-for-LLaMa, fasterquant(). Defects kept:
//  - a group that starts inside a block takes its grid from weights without that block's own feedback;
//  - a group without negative weights gets, in schemes without a zero point, half the scale it needs
//    (grid.hpp);
//  - inputs that are always zero count as 1 in diag(H), whatever its size, in damping and in act-order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <gptq/linalg/inverse_factor.hpp>
#include <gptq/linalg/products.hpp>
#include <gptq/solver/factor.hpp>
#include <gptq/solver/order.hpp>
#include <gptq/solver/solution.hpp>

namespace gptq::solver {

class published_solver {
 public:
  published_solver(matrix&& weight, hessian const& h, format_values const& format,
                   quantize_options const& options)
      : difference_(weight),
        weight_(std::move(weight)),
        h_(h),
        format_(format),
        options_(options),
        rows_(weight_.rows()),
        columns_(weight_.cols()),
        result_(rows_, columns_, format) {}

  solution solve() {
    prepare_columns();
    stopwatch const factorization;
    factorize();
    result_.report.seconds_factorization = factorization.seconds();
    stopwatch const columns;
    sweep();
    result_.report.seconds_columns = columns.seconds();
    return std::move(result_);
  }

  /// After solve(): tr(D S D') on the calibration tokens, D = W - Q.
  double noise() const { return linalg::quadratic_form(difference_, h_.sum(), options_.threads); }

  /// After solve(): W - Q in original column order.
  matrix const& difference() const { return difference_; }

 private:
  bool dynamic_groups() const { return !options_.static_groups && !format_.whole_row; }
  index_t original(index_t position) const { return order_[static_cast<std::size_t>(position)]; }

  /// H_ij of two original columns, dead inputs on the diagonal as 1.
  float undamped(index_t i, index_t j) const {
    float const h = h_.sum()(std::max(i, j), std::min(i, j)) * static_cast<float>(h_.scale());
    return i == j && h == 0.0F ? 1.0F : h;
  }

  void prepare_columns() {
    // A whole row's grid is found before dead inputs are zeroed, all others after.
    if (format_.whole_row) find_all_grids(weight_, format_, options_.threads, result_);
    for (index_t i = 0; i < columns_; ++i) {
      if (h_.sum()(i, i) * static_cast<float>(h_.scale()) != 0.0F) continue;
      for (index_t row = 0; row < rows_; ++row) weight_(row, i) = 0.0F;
      ++result_.report.dead_columns;
    }
    if (options_.static_groups && !format_.whole_row)
      find_all_grids(weight_, format_, options_.threads, result_);
    order_ = identity_order(columns_);
    if (!options_.act_order) return;
    std::stable_sort(order_.begin(), order_.end(),
                     [&](index_t a, index_t b) { return undamped(a, a) > undamped(b, b); });
    std::vector<float> row_before(static_cast<std::size_t>(columns_));
    for (index_t row = 0; row < rows_; ++row) {
      float* const weights = weight_.data() + row * columns_;
      std::copy_n(weights, columns_, row_before.begin());
      for (index_t i = 0; i < columns_; ++i) weights[i] = row_before[static_cast<std::size_t>(original(i))];
    }
    if (dynamic_groups()) result_.order = order_;
  }

  /// upper_ becomes U with inverse(H + damping) = U' U. In double, so that only the sweep rounds as the
  /// published code does: its factorization's own rounding depends on the LAPACK behind it. With the indices
  /// reversed, H is L L' and U is the inverse of L.
  void factorize() {
    double mean = 0.0;
    for (index_t i = 0; i < columns_; ++i) mean += static_cast<double>(undamped(original(i), original(i)));
    mean /= static_cast<double>(columns_);
    auto const added = static_cast<float>(options_.damping * mean);
    linalg::square_of_doubles damped(columns_);
    for (index_t b = 0; b < columns_; ++b) {
      index_t const j = original(columns_ - 1 - b);
      for (index_t a = b; a < columns_; ++a) {
        float const h = undamped(original(columns_ - 1 - a), j);
        damped.column(b)[a] = static_cast<double>(a == b ? h + added : h);
      }
    }
    if (!linalg::cholesky_in_double(damped, options_.threads))
      throw_not_positive_definite(h_, options_.damping);
    linalg::square_of_doubles const inverse = linalg::inverse_of_lower(damped, options_.threads);
    upper_.resize(columns_, columns_);
    for (index_t j = 0; j < columns_; ++j) {
      for (index_t i = 0; i <= j; ++i) {
        upper_(i, j) = static_cast<float>(inverse.column(columns_ - 1 - j)[columns_ - 1 - i]);
      }
    }
    result_.report.damping = options_.damping;
  }

  void sweep() {
    double loss = 0.0;
    Eigen::MatrixXf now;
    Eigen::MatrixXf errors;
    for (index_t first = 0; first < columns_; first += options_.block_size) {
      index_t const count = std::min<index_t>(options_.block_size, columns_ - first);
      now.resize(rows_, count);
      errors.resize(rows_, count);
      linalg::copy(linalg::view(weight_).middle_columns(first, count), now);
      for (index_t i = 0; i < count; ++i) {
        quantize_column(first + i, &now(0, i), &errors(0, i), loss);
        for (index_t j = i; j < count; ++j) {
          linalg::add_scaled(&now(0, j), -upper_(first + i, first + j), &errors(0, i), rows_);
        }
      }
      index_t const end = first + count;
      index_t const later = columns_ - end;
      linalg::add_product(linalg::mutable_view(weight_).middle_columns(end, later), linalg::sign::minus,
                          errors, linalg::view(upper_).block(first, end, count, later), options_.threads);
    }
    result_.report.loss = loss;
  }

  /// Quantizes the column at a position, as it is now, and adds what that costs to the loss.
  void quantize_column(index_t position, float const* now, float* errors, double& loss) {
    index_t const column = original(position);
    index_t const group = (dynamic_groups() ? position : column) / format_.group_columns;
    if (dynamic_groups() && position % format_.group_columns == 0) find_group_grids(position);
    float const diagonal = upper_(position, position);
    index_t const stored = result_.order.empty() ? column : position;
    for (index_t row = 0; row < rows_; ++row) {
      grid const g = result_.grid_at(row, group);
      int const code = format_.levels.encode(now[row], g);
      float const decoded = format_.levels.decode(code, g);
      errors[row] = (now[row] - decoded) / diagonal;
      difference_(row, column) -= decoded;
      loss += 0.5 * double{errors[row]} * double{errors[row]};
      result_.codes[static_cast<std::size_t>(row * columns_ + stored)] = static_cast<std::uint8_t>(code);
    }
  }

  void find_group_grids(index_t first) {
    auto const count = static_cast<std::size_t>(std::min(format_.group_columns, columns_ - first));
    for (index_t row = 0; row < rows_; ++row) {
      result_.set_grid(row, first / format_.group_columns, format_.find({&weight_(row, first), count}));
    }
  }

  matrix difference_;  ///< W, then W - Q, original column order
  matrix weight_;
  hessian const& h_;
  format_values const& format_;
  quantize_options const& options_;
  index_t rows_;
  index_t columns_;
  solution result_;
  std::vector<std::int32_t> order_;
  Eigen::MatrixXf upper_;
};

}  // namespace gptq::solver
