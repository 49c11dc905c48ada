// The GPTQ column sweep.
//
// GPTQ (Frantar et al., 2022) quantizes columns one by one and lets the columns not yet quantized make up for
// the error so far. It is done here without an inverse. With the damped Hessian H = R R', R upper triangular,
// column j has to be quantized at
//
//   w_now[j] = w[j] + (1 / R_jj) * sum over i < j of (w[i] - q[i]) R_ij
//
// and the loss is 1/2 sum ((w_now[j] - q[j]) R_jj)^2 = 1/2 tr(D H D') for D = W - Q: the same numbers that
// the published code gets from the Cholesky factor of the inverse, for K^3 / 3 + N K^2 operations in place of
// 4/3 K^3 + N K^2. R is the Cholesky factor of H with its indices reversed, so all the work below is done in
// reversed column order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <gptq/linalg/products.hpp>
#include <gptq/linalg/threads.hpp>
#include <gptq/solver/descent.hpp>
#include <gptq/solver/grid_search.hpp>
#include <gptq/solver/solution.hpp>

namespace gptq::detail {

/// GPTQ of one weight. Positions p = 0..K-1 number the columns in the order they are quantized; the matrices
/// below are indexed by a = K-1-p, the reversed order in which R becomes the lower triangular factor L.
class solver {
 public:
  solver(matrix&& weight, hessian const& h, format_values const& format, quantize_options const& options,
         recipe const& how = {})
      : work_(std::move(weight)),
        hessian_(h),
        format_(format),
        options_(options),
        how_(how),
        columns_(work_.cols()),
        result_(work_.rows(), work_.cols(), format) {}

  solution solve() {
    prepare_columns();
    if (how_.group_aware && format_.groups > 1) {
      first_sweep_in_both_orders();
    } else {
      first_sweep();
    }
    stopwatch const columns;
    for (int round = 1; round <= how_.rounds; ++round) sweep_again(round == how_.rounds ? how_.beam : 1);
    descend();
    result_.report.loss = 0.5 * std::accumulate(losses_.begin(), losses_.end(), 0.0);
    result_.report.seconds_columns += columns.seconds();
    return std::move(result_);
  }

  /// After solve(): tr(D S D') on the calibration tokens, D = W - Q. The loss is that of the damped Hessian:
  /// what damping and dead inputs put on the diagonal is taken out again.
  double noise() const {
    double sum = 2.0 * result_.report.loss;
    for (index_t a = 0; a < columns_; ++a) {
      index_t const column = original(columns_ - 1 - a);
      sum -=
          added_to_diagonal(column) * work_.col(in_original_order_ ? column : a).cast<double>().squaredNorm();
    }
    return std::max(0.0, sum) / hessian_.scale();
  }

  /// After solve(), once: W - Q in original column order.
  matrix const& difference() {
    to_original_order();
    for (auto const& [column, weights] : dead_weights_) work_.col(column) += weights;
    return work_;
  }

 private:
  index_t original(index_t position) const { return order_[static_cast<std::size_t>(position)]; }
  bool is_dead(index_t column) const { return hessian_.sum()(column, column) == 0.0F; }
  /// Whether groups are runs of positions whose grid is found when the first of them is reached.
  bool dynamic_groups() const {
    return in_group_aware_order_ || (!how_.search && !options_.static_groups && format_.groups > 1);
  }
  bool act_order() const { return how_.search || options_.act_order; }
  bool keeps_order() const { return !in_group_aware_order_ && act_order() && dynamic_groups(); }
  /// What damping, and the input's being dead, adds to H_ii.
  double added_to_diagonal(index_t column) const {
    return added_diagonal_ + (is_dead(column) ? dead_diagonal_ : 0.0);
  }

  /// Dead inputs, grids known beforehand, the order of the columns.
  void prepare_columns() {
    for (index_t column = 0; column < columns_; ++column) {
      if (!is_dead(column)) continue;
      dead_weights_.emplace_back(column, work_.col(column));
      work_.col(column).setZero();
    }
    result_.report.dead_columns = static_cast<index_t>(dead_weights_.size());
    if (!dynamic_groups() && !how_.search) find_all_grids(work_, format_, options_.threads, result_);
    // A dead input counts as an average one, so that no choice of unit for the activations matters.
    Eigen::VectorXd const diagonal = hessian_.sum().diagonal().cast<double>() * hessian_.scale();
    index_t const live = columns_ - result_.report.dead_columns;
    dead_diagonal_ = live == 0 ? 1.0 : diagonal.sum() / static_cast<double>(live);
    order_ = identity_order(columns_);
    if (act_order()) {
      std::stable_sort(order_.begin(), order_.end(),
                       [&](index_t a, index_t b) { return diagonal(a) > diagonal(b); });
    }
    if (keeps_order()) result_.order = order_;
    to_sweep_order();
  }

  void to_sweep_order() {
    if (!in_original_order_) return;
    move_columns([](index_t a, index_t column) { return std::pair(a, column); });
    in_original_order_ = false;
  }
  void to_original_order() {
    if (in_original_order_) return;
    move_columns([](index_t a, index_t column) { return std::pair(column, a); });
    in_original_order_ = true;
  }

  /// Rearranges the columns of work_: entry `to` becomes entry `from` for (to, from) = where(a, original
  /// column).
  template <class Where>
  void move_columns(Where&& where) {
    for_strips(work_.rows(), options_.threads, [&](index_t first_row, index_t rows) {
      Eigen::RowVectorXf moved(columns_);
      for (index_t row = first_row; row < first_row + rows; ++row) {
        for (index_t a = 0; a < columns_; ++a) {
          auto const [to, from] = where(a, original(columns_ - 1 - a));
          moved(to) = work_(row, from);
        }
        work_.row(row) = moved;
      }
    });
  }

  /// Groups that count for most first, and within them columns that do: groups stay runs of columns, so that
  /// their grids can be found when the sweep has reached them, and no order needs to be stored. One that is
  /// shorter comes last. (Gafni, Karnieli, Hanani, "Dual Precision Quantization for Efficient and Accurate
  /// Deep Neural Networks Inference", 2025.)
  std::vector<std::int32_t> group_aware_order() const {
    Eigen::VectorXd const diagonal = hessian_.sum().diagonal().cast<double>();
    std::vector<double> largest(static_cast<std::size_t>(format_.groups));
    for (index_t column = 0; column < columns_; ++column) {
      double& its = largest[static_cast<std::size_t>(column / format_.group_columns)];
      its = std::max(its, diagonal(column));
    }
    if (columns_ % format_.group_columns != 0) largest.back() = -1.0;
    std::vector<std::int32_t> order = identity_order(columns_);
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
      index_t const of_a = a / format_.group_columns;
      index_t const of_b = b / format_.group_columns;
      if (of_a == of_b) return diagonal(a) > diagonal(b);
      double const x = largest[static_cast<std::size_t>(of_a)];
      double const y = largest[static_cast<std::size_t>(of_b)];
      return x > y || (x == y && of_a < of_b);
    });
    return order;
  }

  void first_sweep() {
    stopwatch const factorization;
    factorize();
    result_.report.seconds_factorization += factorization.seconds();
    stopwatch const columns;
    if (how_.search && !in_group_aware_order_) search_grids();
    sweep(1);
    result_.report.seconds_columns += columns.seconds();
  }

  /// The first sweep in group-aware order, then in the order of prepare_columns(); every row keeps what loses
  /// less. Each order has its own factor, and the first one's grids are of the weights that the sweep has
  /// moved.
  void first_sweep_in_both_orders() {
    to_original_order();
    matrix weight = work_;
    std::vector<std::int32_t> order = group_aware_order();
    order.swap(order_);
    in_group_aware_order_ = true;
    to_sweep_order();
    first_sweep();
    to_original_order();
    solution const before = result_;
    std::vector<double> const losses = losses_;
    work_.swap(weight);
    matrix const& difference = weight;
    order.swap(order_);
    in_group_aware_order_ = false;
    to_sweep_order();
    first_sweep();
    to_original_order();
    // Losses under different damping do not compare.
    if (result_.report.damping == before.report.damping) keep_better(before, losses, difference);
    to_sweep_order();
  }

  /// Puts the rows back that had lost less before.
  void keep_better(solution const& before, std::vector<double> const& losses, matrix const& difference) {
    for_strips(work_.rows(), options_.threads, [&](index_t first_row, index_t rows) {
      for (index_t row = first_row; row < first_row + rows; ++row) {
        auto const at = static_cast<std::size_t>(row);
        if (losses_[at] < losses[at]) continue;
        losses_[at] = losses[at];
        work_.row(row) = difference.row(row);
        std::copy_n(before.codes.begin() + row * columns_, columns_, result_.codes.begin() + row * columns_);
        for (index_t group = 0; group < format_.groups; ++group) {
          result_.set_grid(row, group, before.grid_at(row, group));
        }
      }
    });
  }

  /// factor_ becomes L scaled to a unit diagonal, diagonal_ its diagonal, for the reversed, damped Hessian.
  void factorize() {
    double damping = options_.damping;
    for (result_.report.damping_raised = 0;; ++result_.report.damping_raised) {
      added_diagonal_ = damping * dead_diagonal_;  // the mean of the diagonal, dead inputs included
      fill_factor();
      if (cholesky_lower(factor_, options_.threads)) break;
      if (damping >= 1.0) throw_not_positive_definite(hessian_, damping);
      damping = std::min(1.0, std::max(10.0 * damping, 1e-4));
    }
    result_.report.damping = damping;
    diagonal_ = factor_.diagonal();
    for (index_t a = 0; a < columns_; ++a) factor_.col(a).tail(columns_ - a) /= diagonal_(a);
  }

  void fill_factor() {
    factor_.resize(columns_, columns_);
    auto const& sum = hessian_.sum();
    auto const scale = static_cast<float>(hessian_.scale());
    parallel_for(columns_, options_.threads, [&](index_t b) {
      index_t const j = original(columns_ - 1 - b);
      for (index_t a = b; a < columns_; ++a) {
        index_t const i = original(columns_ - 1 - a);
        factor_(a, b) = scale * (i > j ? sum(i, j) : sum(j, i));
      }
      double const live = is_dead(j) ? dead_diagonal_ : double{factor_(b, b)};
      factor_(b, b) = static_cast<float>(live + added_diagonal_);
    });
  }

  /// A run of positions that is swept column by column, between two products of block size.
  struct block {
    index_t first;  ///< position
    index_t end;
    index_t reach;  ///< end of the last group that starts in it: its grid needs the weights up to there
  };

  /// The end of a run of about `size` positions from `first` on: with dynamic groups, where a group ends if
  /// one does.
  index_t run_end(index_t first, index_t size, index_t limit) const {
    index_t const end = std::min(first + size, limit);
    if (!dynamic_groups() || end == limit) return end;
    index_t const boundary = end / format_.group_columns * format_.group_columns;
    return boundary > first ? boundary : end;
  }

  /// Some blocks, swept between two products over everything before; it begins and ends with a group.
  index_t panel_end(index_t first) const {
    index_t const size = index_t{4} * options_.block_size;
    return run_end(first, dynamic_groups() ? std::max(size, format_.group_columns) : size, columns_);
  }

  block next_block(index_t first, index_t limit) const {
    index_t const end = run_end(first, options_.block_size, limit);
    if (!dynamic_groups()) return {first, end, end};
    index_t const last_start = (end - 1) / format_.group_columns * format_.group_columns;
    index_t const reach = last_start < first ? end : std::min(last_start + format_.group_columns, columns_);
    return {first, end, reach};
  }

  /// W in work_ becomes W - Q, with `beam` candidates a row.
  void sweep(int beam) {
    index_t const rows = work_.rows();
    losses_.assign(static_cast<std::size_t>(rows), 0.0);
    Eigen::MatrixXf
        panel;  // w_now of the positions first..end, without their own feedback, in reversed order
    for (index_t first = 0; first < columns_;) {
      index_t const end = panel_end(first);
      panel.resize(rows, end - first);
      auto const weights = work_.middleCols(columns_ - end, end - first);
      for_strips(rows, options_.threads, [&](index_t first_row, index_t count) {
        panel.middleRows(first_row, count) = weights.middleRows(first_row, count);
      });
      add_feedback(panel, 0, first, first, end);
      for (index_t at = first; at < end;) {
        block const b = next_block(at, end);
        auto const now = panel.middleCols(end - b.reach, b.reach - b.first);
        for_strips(rows, options_.threads, [&](index_t first_row, index_t count) {
          bool const half_step = format_.levels.is_half_step();
          if (beam > 1) {
            half_step ? beam_strip<true>(b, now, first_row, count, beam)
                      : beam_strip<false>(b, now, first_row, count, beam);
          } else {
            half_step ? sweep_strip<true>(b, now, first_row, count)
                      : sweep_strip<false>(b, now, first_row, count);
          }
        });
        auto rest = panel.leftCols(end - b.end);
        add_feedback(rest, b.first, b.end, b.end, end);
        at = b.end;
      }
      first = end;
    }
  }

  /// now += what the quantized positions p0..p1 owe to positions q0..q1, which are the columns of `now`.
  template <class Now>
  void add_feedback(Now& now, index_t p0, index_t p1, index_t q0, index_t q1) const {
    add_product(now, 1.0F, work_.middleCols(columns_ - p1, p1 - p0),
                factor_.block(columns_ - p1, columns_ - q1, p1 - p0, q1 - q0), options_.threads);
  }

  /// Quantizes the columns of a block for a strip of rows, leaves W - Q in work_ and adds each row's sum of
  /// ((w_now - q) R_jj)^2 to its loss. `all_now` holds w_now of the positions b.first..b.reach, without the
  /// block's own feedback.
  template <bool HalfStep, class Now>
  void sweep_strip(block const& b, Now const& all_now, index_t first_row, index_t rows) {
    // Position p is column b.reach - 1 - p of these; the block itself is their last columns.
    index_t const a0 = columns_ - b.reach;
    index_t const width = b.reach - b.first;
    strip_matrix now(strip_rows, width);
    strip_matrix difference(strip_rows, width);
    now.bottomRows(strip_rows - rows).setZero();
    difference.bottomRows(strip_rows - rows).setZero();
    now.topRows(rows) = all_now.middleRows(first_row, rows);
    difference.topRows(rows) = work_.block(first_row, a0, rows, width);
    Eigen::Matrix<std::uint8_t, strip_rows, Eigen::Dynamic> codes(strip_rows, width);
    // target[c0..c1] += alpha source[c1..end] L
    auto const add = [&](strip_matrix& target, float alpha, strip_matrix const& source, index_t c0,
                         index_t c1, index_t end) {
      add_strip_product(target.col(c0).data(), alpha, source.data() + c1 * strip_rows, end - c1,
                        factor_.data() + (a0 + c0) * columns_ + a0 + c1, columns_, c1 - c0);
    };
    // w_now assumes that the columns before it are final. The published weights, from which groups take their
    // grids, assume that the columns not yet quantized will move to where the loss is least: w + d with
    // d L = w_now - w over the columns c0..c1 that follow the quantized ones.
    auto const expected_weights = [&](index_t c0, index_t c1) {
      strip_matrix moved(strip_rows, width);
      moved.middleCols(c0, c1 - c0) = now.middleCols(c0, c1 - c0) - difference.middleCols(c0, c1 - c0);
      for (index_t s1 = c1; s1 > c0;) {
        index_t const s0 = std::max(c0, s1 - 32);
        add(moved, -1.0F, moved, s0, s1, c1);
        for (index_t c = s1 - 2; c >= s0; --c) add(moved, -1.0F, moved, c, c + 1, s1);
        s1 = s0;
      }
      moved.middleCols(c0, c1 - c0) += difference.middleCols(c0, c1 - c0);
      return strip_matrix(moved.middleCols(c0, c1 - c0));
    };
    grid_lanes grids;
    double* const losses = losses_.data() + first_row;
    for (index_t first = b.first; first < b.end;) {
      index_t const end = segment_end(b, first);
      index_t const c0 = b.reach - end;
      index_t const c1 = b.reach - first;
      if (dynamic_groups() && first % format_.group_columns == 0) {
        index_t const group_end = std::min(first + format_.group_columns, columns_);
        add(now, 1.0F, difference, b.reach - group_end, c1, width);
        find_group_grids(expected_weights(b.reach - group_end, c1), first, first_row, rows);
      } else {
        add(now, 1.0F, difference, c0, c1, width);
      }
      for (index_t s1 = c1; s1 > c0;) {
        index_t const s0 = std::max(c0, s1 - 32);
        add(now, 1.0F, difference, s0, s1, c1);
        for (index_t c = s1 - 1; c >= s0; --c) {
          add(now, 1.0F, difference, c, c + 1, s1);
          load_grids(grids, group_of(b.reach - 1 - c), first_row, rows);
          quantize_column<HalfStep>(grids, diagonal_(a0 + c), rows, now.col(c).data(),
                                    difference.col(c).data(), codes.col(c).data(), losses);
        }
        s1 = s0;
      }
      first = end;
    }
    index_t const ahead = b.reach - b.end;
    work_.block(first_row, columns_ - b.end, rows, width - ahead) =
        difference.topRightCorner(rows, width - ahead);
    for (index_t r = 0; r < rows; ++r) {
      std::uint8_t* const row = result_.codes.data() + (first_row + r) * columns_;
      for (index_t c = ahead; c < width; ++c) {
        index_t const position = b.reach - 1 - c;
        row[keeps_order() ? position : original(position)] = codes(r, c);
      }
    }
  }

  /// The same with up to `beam` candidates for the codes of each row: every column extends each of them by
  /// its two nearest levels, and those that lose least so far stay. The best one is what the block leaves
  /// behind.
  template <bool HalfStep, class Now>
  void beam_strip(block const& b, Now const& all_now, index_t first_row, index_t rows, int beam) {
    index_t const a0 = columns_ - b.end;
    index_t const width = b.end - b.first;
    auto const lowest = static_cast<float>(format_.levels.min_code);
    auto const highest = static_cast<float>(format_.levels.max_code);
    // Row c: what column c passes on to those that follow it, which are the ones before it in this order.
    matrix const factor = factor_.block(a0, a0, width, width);
    matrix now(beam, width);  // w_now, a row a candidate, with the feedback of its own codes
    matrix next(beam, width);
    struct candidate {
      double loss;
      int parent;
      float code;
    };
    std::vector<candidate> alive;
    std::vector<candidate> extended;
    std::vector<float> others(static_cast<std::size_t>(beam));
    std::vector<candidate> history(static_cast<std::size_t>(width * beam));
    auto const extend = [&](candidate const& with) {  // keeps `extended` sorted, ties in order of arrival
      if (extended.size() == static_cast<std::size_t>(beam)) {
        if (!(with.loss < extended.back().loss)) return;
        extended.pop_back();
      }
      auto at = extended.end();
      while (at != extended.begin() && with.loss < std::prev(at)->loss) --at;
      extended.insert(at, with);
    };
    for (index_t r = 0; r < rows; ++r) {
      index_t const row = first_row + r;
      now.row(0) = all_now.row(row).tail(width);
      alive.assign(1, {0.0, 0, 0.0F});
      index_t group = -1;
      grid g;
      for (index_t c = width - 1; c >= 0; --c) {
        if (index_t const its = group_of(b.end - 1 - c); its != group) g = result_.grid_at(row, group = its);
        float const zero = format_.levels.zero_point(g);
        float const divisor = safe_divisor(g.scale);
        float const diagonal = diagonal_(a0 + c);
        extended.clear();
        auto const cost = [&](std::size_t i, float code) {
          float const e = (now(static_cast<index_t>(i), c) - g.scale * (code - zero)) * diagonal;
          return alive[i].loss + double{e} * double{e};
        };
        for (std::size_t i = 0; i < alive.size(); ++i) {
          float const x = now(static_cast<index_t>(i), c);
          float const code = nearest_code<HalfStep>(x, divisor, zero, lowest, highest);
          extend({cost(i, code), static_cast<int>(i), code});
          // The level on the other side of x, or the next one inwards where there is none. It rarely is among
          // the best: it comes after all of the nearest ones.
          float const outwards = (x > g.scale * (code - zero)) == (g.scale > 0.0F) ? 1.0F : -1.0F;
          bool const inside = code + outwards >= lowest && code + outwards <= highest;
          others[i] = code + (inside ? outwards : -outwards);
        }
        for (std::size_t i = 0; i < alive.size(); ++i) {
          extend({cost(i, others[i]), static_cast<int>(i), others[i]});
        }
        float const weight = work_(row, a0 + c);
        for (std::size_t i = 0; i < extended.size(); ++i) {
          candidate const& x = extended[i];
          history[static_cast<std::size_t>(c * beam) + i] = x;
          float const error = weight - g.scale * (x.code - zero);
          float const* const from = now.data() + x.parent * width;
          float* const to = next.data() + static_cast<index_t>(i) * width;
          float const* const share = factor.data() + c * width;
          for (index_t k = 0; k < c; ++k) to[k] = from[k] + error * share[k];
        }
        now.swap(next);
        alive.swap(extended);
      }
      losses_[static_cast<std::size_t>(row)] += alive.front().loss;
      std::uint8_t* const codes = result_.codes.data() + row * columns_;
      int parent = 0;
      for (index_t c = 0; c < width; ++c) {
        candidate const& x = history[static_cast<std::size_t>(c * beam + parent)];
        index_t const column = original(b.end - 1 - c);
        codes[column] = static_cast<std::uint8_t>(static_cast<int>(x.code));
        work_(row, a0 + c) -= format_.levels.decode(static_cast<int>(x.code),
                                                    result_.grid_at(row, column / format_.group_columns));
        parent = x.parent;
      }
    }
  }

  float least_metric() const { return 0.1F * diagonal_.squaredNorm() / static_cast<float>(columns_); }

  /// The grids of all groups in the metric of the sweep. Feedback moves weights, those of columns that count
  /// for next to nothing furthest: these count for a tenth of the average, or their range would be given
  /// away.
  void search_grids() {
    float const least = least_metric();
    std::vector<float> metric(static_cast<std::size_t>(columns_));
    for (index_t a = 0; a < columns_; ++a) {
      metric[static_cast<std::size_t>(original(columns_ - 1 - a))] = diagonal_(a) * diagonal_(a) + least;
    }
    auto const search = format_.levels.is_half_step() ? search_grid<true> : search_grid<false>;
    for_strips(work_.rows(), options_.threads, [&](index_t first_row, index_t rows) {
      std::vector<float> weights(static_cast<std::size_t>(columns_));
      for (index_t row = first_row; row < first_row + rows; ++row) {
        for (index_t a = 0; a < columns_; ++a) {
          weights[static_cast<std::size_t>(original(columns_ - 1 - a))] = work_(row, a);
        }
        for (index_t group = 0; group < format_.groups; ++group) {
          auto const first = static_cast<std::size_t>(group * format_.group_columns);
          std::size_t const count =
              std::min(static_cast<std::size_t>(format_.group_columns), weights.size() - first);
          result_.set_grid(row, group,
                           search({weights.data() + first, count}, metric.data() + first, format_));
        }
      }
    });
  }

  Eigen::VectorXf extra_diagonal() const {
    Eigen::VectorXf extra(columns_);
    for (index_t i = 0; i < columns_; ++i) {
      extra(i) = static_cast<float>(added_to_diagonal(i) / hessian_.scale());
    }
    return extra;
  }

  /// Coordinate descent from where the sweeps ended, until a pass gains less than a thousandth.
  void descend() {
    if (how_.passes == 0) return;
    to_original_order();
    Eigen::VectorXf const extra = extra_diagonal();
    refinement refine(work_, hessian_, extra, format_, options_.threads, result_);
    for (int pass = 0; pass < how_.passes; ++pass) {
      if (improve(refine, true) < 1e-3) break;
    }
  }

  /// One pass; returns by what share of it the loss fell.
  double improve(refinement& refine, bool codes) {
    double const before = std::accumulate(losses_.begin(), losses_.end(), 0.0);
    std::vector<double> gained(losses_.size());
    refine.pass(codes, gained);
    for (std::size_t row = 0; row < losses_.size(); ++row) losses_[row] -= hessian_.scale() * gained[row];
    double const after = std::accumulate(losses_.begin(), losses_.end(), 0.0);
    return before > 0.0 ? 1.0 - after / before : 0.0;
  }

  /// Fits the grids to the codes, sweeps again with these grids, and keeps of every row what is better.
  void sweep_again(int beam) {
    to_original_order();
    {
      Eigen::VectorXf const extra = extra_diagonal();
      refinement refine(work_, hessian_, extra, format_, options_.threads, result_);
      improve(refine, false);
    }
    solution const before = result_;
    std::vector<double> const losses = losses_;
    matrix const difference = work_;
    add_decoded(work_, 0, work_.rows());
    to_sweep_order();
    sweep(beam);
    to_original_order();
    keep_better(before, losses, difference);
  }

  /// target += Q, original column order.
  void add_decoded(matrix& target, index_t first_row, index_t rows) const {
    for_strips(rows, options_.threads, [&](index_t first, index_t count) {
      for (index_t row = first_row + first; row < first_row + first + count; ++row) {
        std::uint8_t const* const codes = result_.codes.data() + row * columns_;
        for (index_t column = 0; column < columns_; ++column) {
          target(row, column) +=
              format_.levels.decode(codes[column], result_.grid_at(row, column / format_.group_columns));
        }
      }
    });
  }

  /// Scales and zero points of one group for a strip of rows.
  struct grid_lanes {
    index_t group = -1;
    float scale[strip_rows];
    float zero[strip_rows];
  };

  index_t group_of(index_t position) const {
    return (keeps_order() ? position : original(position)) / format_.group_columns;
  }

  /// A segment of a block has known grids: with dynamic groups, what the block holds of one group.
  index_t segment_end(block const& b, index_t first) const {
    if (!dynamic_groups()) return b.end;
    return std::min(b.end, (first / format_.group_columns + 1) * format_.group_columns);
  }

  /// Finds the grids of the group that starts at position `first`, from the weights of a strip of rows, which
  /// lie in reversed order.
  void find_group_grids(strip_matrix const& weights, index_t first, index_t first_row, index_t rows) {
    Eigen::VectorXf group(weights.cols());
    auto const count = static_cast<std::size_t>(group.size());
    Eigen::VectorXf metric;
    if (in_group_aware_order_) {
      metric = diagonal_.segment(columns_ - first - group.size(), group.size()).reverse().array().square() +
               least_metric();
    }
    auto const search = format_.levels.is_half_step() ? search_grid<true> : search_grid<false>;
    for (index_t r = 0; r < rows; ++r) {
      group = weights.row(r).reverse();
      result_.set_grid(first_row + r, group_of(first),
                       in_group_aware_order_ ? search({group.data(), count}, metric.data(), format_)
                                             : format_.find({group.data(), count}));
    }
  }

  void load_grids(grid_lanes& lanes, index_t group, index_t first_row, index_t rows) const {
    if (lanes.group == group) return;
    lanes.group = group;
    for (index_t r = 0; r < rows; ++r) {
      grid const g = result_.grid_at(first_row + r, group);
      lanes.scale[r] = g.scale;
      lanes.zero[r] = format_.levels.zero_point(g);
    }
  }

  /// Quantizes one column of a strip of rows and adds what it costs to their losses.
  template <bool HalfStep>
  void quantize_column(grid_lanes const& grids, float diagonal, index_t rows, float const* now,
                       float* difference, std::uint8_t* codes, double* losses) const {
    auto const lowest = static_cast<float>(format_.levels.min_code);
    auto const highest = static_cast<float>(format_.levels.max_code);
    float errors[strip_rows];
    for (index_t r = 0; r < rows; ++r) {
      float const scale = grids.scale[r];
      float const zero = grids.zero[r];
      float const code = nearest_code<HalfStep>(now[r], safe_divisor(scale), zero, lowest, highest);
      float const decoded = scale * (code - zero);
      errors[r] = (now[r] - decoded) * diagonal;
      difference[r] -= decoded;
      codes[r] = static_cast<std::uint8_t>(static_cast<int>(code));
    }
    for (index_t r = 0; r < rows; ++r) losses[r] += double{errors[r]} * double{errors[r]};
  }

  matrix work_;                    ///< W, then W - Q
  bool in_original_order_ = true;  ///< the columns of work_, or else reversed
  bool in_group_aware_order_ = false;
  hessian const& hessian_;
  format_values const& format_;
  quantize_options const& options_;
  recipe how_;
  index_t columns_;
  solution result_;
  std::vector<double> losses_;                                     ///< d H d' of every row
  std::vector<std::int32_t> order_;                                ///< original column of each position
  std::vector<std::pair<index_t, Eigen::VectorXf>> dead_weights_;  ///< by original column
  Eigen::MatrixXf factor_;
  Eigen::VectorXf diagonal_;
  double dead_diagonal_ = 0.0;
  double added_diagonal_ = 0.0;
};

}  // namespace gptq::detail
