// GPTQ of one layer as a recipe says: order, factor, sweeps, coordinate descent.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <gptq/solver/descent.hpp>
#include <gptq/solver/grid_search.hpp>
#include <gptq/solver/state.hpp>
#include <gptq/solver/sweep.hpp>

namespace gptq::solver {

class layer_solver {
 public:
  layer_solver(matrix&& weight, hessian const& h, format_values const& format,
               quantize_options const& options, recipe const& steps = {}, shared_factors* factors = nullptr)
      : s_(std::move(weight), h, format, options), steps_(steps), factors_(factors) {}

  solution solve() {
    zero_dead_columns();
    if (!steps_.search && (s_.options.static_groups || s_.format.groups == 1)) {
      find_all_grids(s_.work, s_.format, s_.threads(), s_.result);
    }
    column_order order = chosen_order(s_.h.undamped(), s_.format, s_.options, steps_.search);
    if (order.stored) s_.result.order = order.columns;
    if (steps_.group_aware && s_.format.groups > 1) {
      first_sweep_in_both_orders(std::move(order));
    } else {
      first_sweep(std::move(order));
    }
    stopwatch const columns;
    for (int round = 1; round <= steps_.rounds; ++round)
      sweep_again(round == steps_.rounds ? steps_.beam : 1);
    descend();
    s_.result.report.loss = 0.5 * s_.loss();
    s_.result.report.seconds_columns += columns.seconds();
    return std::move(s_.result);
  }

  /// After solve(): tr(D S D') on the calibration tokens, D = W - Q. The loss is that of the damped Hessian:
  /// what damping and dead inputs put on the diagonal is taken out again.
  double noise() const {
    double sum = 2.0 * s_.result.report.loss;
    for (index_t a = 0; a < s_.columns(); ++a) {
      index_t const column = s_.column(a);
      float const* const difference = s_.work.data() + (s_.in_original_order ? column : a);
      double square = 0.0;
      for (index_t row = 0; row < s_.rows(); ++row) {
        auto const d = static_cast<double>(difference[row * s_.columns()]);
        square += d * d;
      }
      sum -= s_.h.added(column) * square;
    }
    return std::max(0.0, sum) / s_.h.undamped().scale();
  }

  /// After solve(), once: W - Q in original column order.
  matrix const& difference() {
    s_.to_original_order();
    for (auto const& [column, weights] : dead_weights_) {
      for (index_t row = 0; row < s_.rows(); ++row) {
        s_.work.data()[row * s_.columns() + column] += weights[static_cast<std::size_t>(row)];
      }
    }
    return s_.work;
  }

 private:
  void zero_dead_columns() {
    for (index_t column = 0; column < s_.columns(); ++column) {
      if (!s_.h.is_dead(column)) continue;
      std::vector<float> weights(static_cast<std::size_t>(s_.rows()));
      for (index_t row = 0; row < s_.rows(); ++row) {
        std::swap(weights[static_cast<std::size_t>(row)], s_.work.data()[row * s_.columns() + column]);
      }
      dead_weights_.emplace_back(column, std::move(weights));
    }
    s_.result.report.dead_columns = static_cast<index_t>(dead_weights_.size());
  }

  void first_sweep(column_order order) {
    s_.order = std::move(order);
    s_.to_sweep_order();
    stopwatch const factorization;
    s_.f.reset();  // before there is another one
    s_.f = find_factor(factors_, s_.h, s_.order, s_.options.damping, s_.threads());
    s_.result.report.damping = s_.f->damping;
    s_.result.report.damping_raised = s_.f->damping_raised;
    s_.result.report.seconds_factorization += factorization.seconds();
    stopwatch const columns;
    if (steps_.search && !s_.order.grids_on_the_way) search_all_grids();
    sweep(s_).run();
    s_.result.report.seconds_columns += columns.seconds();
  }

  /// The first sweep in group-aware order, then in the given one; every row keeps what loses less. Each order
  /// has its own factor, and the first one's grids are of the weights that the sweep has moved.
  void first_sweep_in_both_orders(column_order order) {
    matrix weight = s_.work;
    first_sweep(group_aware_order(s_.h.undamped(), s_.format));
    s_.to_original_order();
    s_.work.swap(weight);
    kept_rows const before(s_, std::move(weight));
    first_sweep(std::move(order));
    s_.to_original_order();
    before.restore_better(s_);
  }

  /// Fits the grids to the codes, sweeps again with these grids, and keeps of every row what is better.
  void sweep_again(int beam) {
    s_.to_original_order();
    improve(false);
    kept_rows const before(s_, s_.work);
    s_.add_decoded();
    s_.to_sweep_order();
    sweep(s_, beam).run();
    s_.to_original_order();
    before.restore_better(s_);
  }

  /// Coordinate descent from where the sweeps ended, until a pass gains too little.
  void descend() {
    if (steps_.passes == 0) return;
    s_.to_original_order();
    for (int pass = 0; pass < steps_.passes; ++pass) {
      if (improve(true) < least_gain_of_a_pass) break;
    }
  }

  /// One pass of coordinate descent; returns by what share of it the loss fell.
  double improve(bool codes) {
    Eigen::VectorXf extra(s_.columns());
    double const scale = s_.h.undamped().scale();
    for (index_t i = 0; i < s_.columns(); ++i) extra(i) = static_cast<float>(s_.h.added(i) / scale);
    double const before = s_.loss();
    std::vector<double> gained(s_.losses.size());
    coordinate_descent(s_.work, s_.h.undamped(), extra, s_.format, s_.threads(), s_.result)
        .pass(codes, gained);
    for (std::size_t row = 0; row < gained.size(); ++row) s_.losses[row] -= scale * gained[row];
    return before > 0.0 ? 1.0 - s_.loss() / before : 0.0;
  }

  /// The grids of all groups in the metric of the sweep.
  void search_all_grids() {
    float const least = least_metric(*s_.f);
    index_t const columns = s_.columns();
    std::vector<float> metric(static_cast<std::size_t>(columns));
    for (index_t a = 0; a < columns; ++a) {
      metric[static_cast<std::size_t>(s_.column(a))] = s_.f->diagonal(a) * s_.f->diagonal(a) + least;
    }
    linalg::for_strips(s_.rows(), s_.threads(), [&](index_t first_row, index_t rows) {
      std::vector<float> weights(static_cast<std::size_t>(columns));
      for (index_t row = first_row; row < first_row + rows; ++row) {
        for (index_t a = 0; a < columns; ++a) {
          weights[static_cast<std::size_t>(s_.column(a))] = s_.work.data()[row * columns + a];
        }
        for (index_t group = 0; group < s_.format.groups; ++group) {
          index_t const first = group * s_.format.group_columns;
          auto const count = static_cast<std::size_t>(std::min(s_.format.group_columns, columns - first));
          s_.result.set_grid(row, group,
                             search_grid({weights.data() + first, count}, metric.data() + first, s_.format));
        }
      }
    });
  }

  layer_state s_;
  recipe steps_;
  shared_factors* factors_;
  std::vector<std::pair<index_t, std::vector<float>>> dead_weights_;  ///< by original column
};

}  // namespace gptq::solver
