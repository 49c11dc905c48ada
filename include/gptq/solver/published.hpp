// The published GPTQ solver, step by step and in its own float32 order of operations, defects included: what
// quantize_options::reference runs. It exists to be compared with; solver.hpp is faster and has no defects.
//
// Source: IST-DASLab/gptq and GPTQ-for-LLaMa, fasterquant(). Defects kept:
//  - a group that starts inside a block takes its grid from weights without that block's own feedback;
//  - a group without negative weights gets, in schemes without a zero point, half the scale it needs
//  (grid.hpp);
//  - inputs that are always zero count as 1 in diag(H), whatever its size, in damping and in act-order.
#pragma once

#include <algorithm>
#include <utility>

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <gptq/solver/solution.hpp>

namespace gptq::detail {

class published_solver {
 public:
  published_solver(matrix weight, hessian const& h, format_values const& format,
                   quantize_options const& options)
      : difference_(weight),
        weight_(std::move(weight)),
        hessian_(h),
        format_(format),
        options_(options),
        columns_(weight_.cols()),
        result_(weight_.rows(), weight_.cols(), format) {}

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
  double noise() const { return quadratic_form(difference_, hessian_.sum(), options_.threads); }

  /// After solve(): W - Q in original column order.
  matrix const& difference() const { return difference_; }

 private:
  bool dynamic_groups() const { return !options_.static_groups && !format_.whole_row; }
  index_t original(index_t position) const { return order_[static_cast<std::size_t>(position)]; }
  index_t group_of(index_t position) const {
    return (dynamic_groups() ? position : original(position)) / format_.group_columns;
  }

  void prepare_columns() {
    // A whole row's grid is found before dead inputs are zeroed, all others after.
    if (format_.whole_row) find_all_grids(weight_, format_, options_.threads, result_);
    damped_ = hessian_.sum().selfadjointView<Eigen::Lower>();
    damped_ *= static_cast<float>(hessian_.scale());
    for (index_t i = 0; i < columns_; ++i) {
      if (damped_(i, i) != 0.0F) continue;
      damped_(i, i) = 1.0F;
      weight_.col(i).setZero();
      ++result_.report.dead_columns;
    }
    if (options_.static_groups && !format_.whole_row)
      find_all_grids(weight_, format_, options_.threads, result_);

    order_ = identity_order(columns_);
    if (options_.act_order) {
      std::stable_sort(order_.begin(), order_.end(),
                       [&](index_t a, index_t b) { return damped_(a, a) > damped_(b, b); });
      matrix const weight = weight_;
      Eigen::MatrixXf const damped = damped_;
      for (index_t i = 0; i < columns_; ++i) {
        weight_.col(i) = weight.col(original(i));
        for (index_t j = 0; j < columns_; ++j) damped_(i, j) = damped(original(i), original(j));
      }
      if (dynamic_groups()) result_.order = order_;
    }
  }

  /// upper_ becomes U with inverse(H + damping) = U' U. In double, so that only the sweep rounds as the
  /// published code does: its factorization's own rounding depends on the LAPACK behind it.
  void factorize() {
    double const mean = damped_.diagonal().cast<double>().mean();
    damped_.diagonal().array() += static_cast<float>(options_.damping * mean);
    Eigen::MatrixXd h = damped_.cast<double>();
    Eigen::LLT<Eigen::MatrixXd> const llt(h);
    if (llt.info() != Eigen::Success) throw_not_positive_definite(hessian_, options_.damping);
    h = llt.solve(Eigen::MatrixXd::Identity(columns_, columns_));
    upper_ = Eigen::LLT<Eigen::MatrixXd, Eigen::Upper>(h).matrixU().toDenseMatrix().cast<float>();
    result_.report.damping = options_.damping;
  }

  void sweep() {
    index_t const rows = weight_.rows();
    double loss = 0.0;
    for (index_t i1 = 0; i1 < columns_; i1 += options_.block_size) {
      index_t const count = std::min<index_t>(options_.block_size, columns_ - i1);
      Eigen::MatrixXf block = weight_.middleCols(i1, count);
      Eigen::MatrixXf errors(rows, count);
      for (index_t i = 0; i < count; ++i) {
        index_t const position = i1 + i;
        index_t const group = group_of(position);
        if (dynamic_groups() && position % format_.group_columns == 0) find_group_grids(position);
        float const diagonal = upper_(position, position);
        for (index_t row = 0; row < rows; ++row) {
          grid const g = result_.grid_at(row, group);
          int const code = format_.levels.encode(block(row, i), g);
          float const decoded = format_.levels.decode(code, g);
          errors(row, i) = (block(row, i) - decoded) / diagonal;
          difference_(row, original(position)) -= decoded;
          loss += 0.5 * double{errors(row, i)} * double{errors(row, i)};
          index_t const stored = result_.order.empty() ? original(position) : position;
          result_.codes[static_cast<std::size_t>(row * columns_ + stored)] = static_cast<std::uint8_t>(code);
        }
        for (index_t j = i; j < count; ++j) block.col(j) -= errors.col(i) * upper_(position, i1 + j);
      }
      index_t const later = columns_ - i1 - count;
      add_product(weight_.rightCols(later), -1.0F, errors, upper_.block(i1, i1 + count, count, later),
                  options_.threads);
    }
    result_.report.loss = loss;
  }

  void find_group_grids(index_t first) {
    index_t const count = std::min(format_.group_columns, columns_ - first);
    for (index_t row = 0; row < weight_.rows(); ++row) {
      result_.set_grid(row, first / format_.group_columns,
                       format_.find({weight_.row(row).data() + first, static_cast<std::size_t>(count)}));
    }
  }

  matrix difference_;  ///< W, then W - Q, original column order
  matrix weight_;
  hessian const& hessian_;
  format_values const& format_;
  quantize_options const& options_;
  index_t columns_;
  solution result_;
  std::vector<std::int32_t> order_;
  Eigen::MatrixXf damped_;
  Eigen::MatrixXf upper_;
};

}  // namespace gptq::detail
