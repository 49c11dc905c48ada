// A layer in the middle of being quantized: what sweeps and coordinate descent read and change.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include <gptq/linalg/strips.hpp>
#include <gptq/solver/factor.hpp>
#include <gptq/solver/order.hpp>
#include <gptq/solver/solution.hpp>

namespace gptq::solver {

/// Positions p = 0..K-1 number the columns in the order they are quantized. During a sweep, `work` and the
/// factor are indexed by a = K-1-p, the reversed order in which the factor of sweep.hpp is a lower triangular
/// one.
struct layer_state {
  layer_state(matrix&& weight, hessian const& hessian, format_values const& values,
              quantize_options const& chosen)
      : work(std::move(weight)),
        h(hessian),
        format(values),
        options(chosen),
        result(work.rows(), work.cols(), values),
        losses(static_cast<std::size_t>(work.rows())) {}

  index_t rows() const { return work.rows(); }
  index_t columns() const { return work.cols(); }
  int threads() const { return options.threads; }
  /// The original column of work's column a during a sweep.
  index_t column(index_t a) const { return order.column(columns() - 1 - a); }
  double loss() const { return std::accumulate(losses.begin(), losses.end(), 0.0); }

  void to_sweep_order() {
    if (!in_original_order) return;
    move_columns([](index_t a, index_t column) { return std::pair(a, column); });
    in_original_order = false;
  }
  void to_original_order() {
    if (in_original_order) return;
    move_columns([](index_t a, index_t column) { return std::pair(column, a); });
    in_original_order = true;
  }

  /// work += Q, in original column order.
  void add_decoded() {
    linalg::for_strips(rows(), threads(), [&](index_t first, index_t count) {
      for (index_t row = first; row < first + count; ++row) {
        std::uint8_t const* const codes = result.codes.data() + row * columns();
        float* const weights = work.data() + row * columns();
        for (index_t i = 0; i < columns(); ++i) {
          weights[i] += format.levels.decode(codes[i], result.grid_at(row, i / format.group_columns));
        }
      }
    });
  }

  matrix work;  ///< W, then W - Q
  bool in_original_order = true;
  damped_hessian h;
  format_values const& format;
  quantize_options const& options;
  column_order order;
  std::shared_ptr<factor const> f;
  solution result;
  std::vector<double> losses;  ///< d H d' of every row, d of W - Q and H damped

 private:
  /// Rearranges the columns of work: entry `to` becomes entry `from` for (to, from) = moves(a, original
  /// column).
  template <class Moves>
  void move_columns(Moves const& moves) {
    linalg::for_strips(rows(), threads(), [&](index_t first, index_t count) {
      std::vector<float> moved(static_cast<std::size_t>(columns()));
      for (index_t row = first; row < first + count; ++row) {
        float* const weights = work.data() + row * columns();
        for (index_t a = 0; a < columns(); ++a) {
          auto const [to, from] = moves(a, column(a));
          moved[static_cast<std::size_t>(to)] = weights[from];
        }
        std::copy(moved.begin(), moved.end(), weights);
      }
    });
  }
};

/// The rows of a layer as a sweep left them, in original column order, to be had back where another one does
/// no better.
class kept_rows {
 public:
  /// @param difference  W - Q
  kept_rows(layer_state const& state, matrix difference)
      : result_(state.result), losses_(state.losses), difference_(std::move(difference)) {}

  /// Puts the rows back that had lost no more before. Losses under different damping do not compare: none
  /// then.
  void restore_better(layer_state& state) const {
    if (state.result.report.damping != result_.report.damping) return;
    index_t const columns = state.columns();
    linalg::for_strips(state.rows(), state.threads(), [&](index_t first, index_t count) {
      for (index_t row = first; row < first + count; ++row) {
        auto const at = static_cast<std::size_t>(row);
        if (state.losses[at] < losses_[at]) continue;
        state.losses[at] = losses_[at];
        std::copy_n(difference_.data() + row * columns, columns, state.work.data() + row * columns);
        std::copy_n(result_.codes.begin() + row * columns, columns,
                    state.result.codes.begin() + row * columns);
        for (index_t group = 0; group < state.format.groups; ++group) {
          state.result.set_grid(row, group, result_.grid_at(row, group));
        }
      }
    });
  }

 private:
  solution result_;
  std::vector<double> losses_;
  matrix difference_;
};

}  // namespace gptq::solver
