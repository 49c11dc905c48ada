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
//
// Columns are swept in blocks of options.block_size, between two products with the errors of the block
// before; several blocks make up an outer block, between two products over everything before. Within a block,
// strips of rows are independent.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <gptq/grids/level_rounding.hpp>
#include <gptq/linalg/strips.hpp>
#include <gptq/solver/beam.hpp>
#include <gptq/solver/grid_search.hpp>
#include <gptq/solver/state.hpp>

namespace gptq::solver {

/// The least that a column counts for in the metric of the sweep.
inline float least_metric(factor const& f) {
  return least_share_of_metric * f.diagonal.squaredNorm() / static_cast<float>(f.diagonal.size());
}

/// A run of positions that is swept column by column, between two products of block size.
struct block {
  index_t first;  ///< position
  index_t end;
  index_t reach;  ///< end of the last group that starts in it: its grid needs the weights up to there
};

/// A block of a strip of rows, one column after the other. Position p is column b.reach - 1 - p of the strip:
/// the block itself is its last columns.
class sweep_strip {
 public:
  /// @param now  [rows, b.reach - b.first] w_now of the block's positions and of those up to its reach,
  ///             without the block's own feedback
  sweep_strip(layer_state& state, block const& b, linalg::view now, index_t first_row)
      : s_(state),
        b_(b),
        first_row_(first_row),
        rows_(now.rows),
        width_(b.reach - b.first),
        a0_(state.columns() - b.reach),
        now_(width_),
        difference_(width_),
        codes_(static_cast<std::size_t>(width_ * linalg::strip_rows)) {
    linalg::copy(now, now_.block(0, width_, rows_));
    linalg::copy(linalg::view(s_.work).block(first_row, a0_, rows_, width_),
                 difference_.block(0, width_, rows_));
  }

  /// Leaves codes and W - Q in the state and adds each row's sum of ((w_now - q) R_jj)^2 to its loss.
  void run() {
    index_t const size = s_.format.group_columns;
    for (index_t first = b_.first; first < b_.end;) {
      index_t const end = segment_end(first);
      index_t const c0 = b_.reach - end;
      index_t const c1 = b_.reach - first;
      if (s_.order.grids_on_the_way && first % size == 0) {
        index_t const group_end = std::min(first + size, s_.columns());
        add(now_, 1.0F, difference_, b_.reach - group_end, c1, width_);
        find_group_grids(b_.reach - group_end, c1, first);
      } else {
        add(now_, 1.0F, difference_, c0, c1, width_);
      }
      quantize_segment(c0, c1);
      first = end;
    }
    store();
  }

 private:
  /// A segment has known grids: where grids are found on the way, what the block holds of one group.
  index_t segment_end(index_t first) const {
    index_t const size = s_.format.group_columns;
    return s_.order.grids_on_the_way ? std::min(b_.end, (first / size + 1) * size) : b_.end;
  }

  /// target[c0..c1] += alpha source[c1..end] L
  void add(linalg::strip& target, float alpha, linalg::strip const& source, index_t c0, index_t c1,
           index_t end) const {
    float const* const factor = s_.f->lower.data() + (a0_ + c0) * s_.columns() + a0_ + c1;
    linalg::add_strip_product(target.column(c0), alpha, source.column(c1), end - c1, factor, s_.columns(),
                              c1 - c0);
  }

  void quantize_segment(index_t c0, index_t c1) {
    detail::with_rounding(s_.format.levels,
                          [&](auto const& rounding) { quantize_segment(c0, c1, rounding); });
  }

  template <class Rounding>
  void quantize_segment(index_t c0, index_t c1, Rounding const& rounding) {
    for (index_t s1 = c1; s1 > c0;) {
      index_t const s0 = std::max(c0, s1 - 32);
      add(now_, 1.0F, difference_, s0, s1, c1);
      for (index_t c = s1 - 1; c >= s0; --c) {
        add(now_, 1.0F, difference_, c, c + 1, s1);
        load_grids(s_.order.group(b_.reach - 1 - c, s_.format.group_columns));
        quantize_column(c, rounding);
      }
      s1 = s0;
    }
  }

  template <class Rounding>
  void quantize_column(index_t c, Rounding const rounding) {
    float const diagonal = s_.f->diagonal(a0_ + c);
    float const* const now = now_.column(c);
    float* const difference = difference_.column(c);
    std::uint8_t* const codes = codes_.data() + c * linalg::strip_rows;
    double* const losses = s_.losses.data() + first_row_;
    float errors[linalg::strip_rows];
    [[maybe_unused]] float chosen[linalg::strip_rows];
    for (index_t r = 0; r < rows_; ++r) {
      float const scale = scale_[r];
      float const zero = zero_[r];
      float const code = rounding.nearest(now[r], detail::safe_divisor(scale), zero);
      float const decoded = scale * (code - zero);
      errors[r] = (now[r] - decoded) * diagonal;
      difference[r] -= decoded;
      if constexpr (Rounding::by_table) {
        chosen[r] = code;
      } else {
        codes[r] = rounding.stored(code);
      }
    }
    if constexpr (Rounding::by_table) {
      for (index_t r = 0; r < rows_; ++r) codes[r] = rounding.stored(chosen[r]);
    }
    for (index_t r = 0; r < rows_; ++r) losses[r] += double{errors[r]} * double{errors[r]};
  }

  void load_grids(index_t group) {
    if (loaded_ == group) return;
    loaded_ = group;
    for (index_t r = 0; r < rows_; ++r) {
      grid const g = s_.result.grid_at(first_row_ + r, group);
      scale_[r] = g.scale;
      zero_[r] = s_.format.levels.zero_point(g);
    }
  }

  /// w_now assumes that the columns before it are final. The published weights, from which groups take their
  /// grids, assume that the columns not yet quantized will move to where the loss is least: w + d with d L =
  /// w_now - w over the columns c0..c1 that follow the quantized ones. Those of the group lie in c0..c1 of
  /// the result.
  linalg::strip expected_weights(index_t c0, index_t c1) const {
    linalg::strip moved(width_);
    for (index_t i = c0 * linalg::strip_rows; i < c1 * linalg::strip_rows; ++i) {
      moved.column(0)[i] = now_.column(0)[i] - difference_.column(0)[i];
    }
    for (index_t s1 = c1; s1 > c0;) {
      index_t const s0 = std::max(c0, s1 - 32);
      add(moved, -1.0F, moved, s0, s1, c1);
      for (index_t c = s1 - 2; c >= s0; --c) add(moved, -1.0F, moved, c, c + 1, s1);
      s1 = s0;
    }
    for (index_t i = c0 * linalg::strip_rows; i < c1 * linalg::strip_rows; ++i) {
      moved.column(0)[i] += difference_.column(0)[i];
    }
    return moved;
  }

  /// Finds the grids of the group that starts at position `first`, whose weights lie in c0..c1 in reversed
  /// order.
  void find_group_grids(index_t c0, index_t c1, index_t first) {
    linalg::strip const weights = expected_weights(c0, c1);
    auto const count = static_cast<std::size_t>(c1 - c0);
    std::vector<float> group(count);
    std::vector<float> metric;
    if (s_.order.searched) {
      float const least = least_metric(*s_.f);
      for (index_t c = c1 - 1; c >= c0; --c) {
        float const diagonal = s_.f->diagonal(a0_ + c);
        metric.push_back(diagonal * diagonal + least);
      }
    }
    for (index_t r = 0; r < rows_; ++r) {
      for (std::size_t i = 0; i < count; ++i) group[i] = weights(r, c1 - 1 - static_cast<index_t>(i));
      s_.result.set_grid(
          first_row_ + r, s_.order.group(first, s_.format.group_columns),
          s_.order.searched ? search_grid(group, metric.data(), s_.format) : s_.format.find(group));
    }
  }

  void store() {
    index_t const ahead = b_.reach - b_.end;
    index_t const count = width_ - ahead;
    linalg::copy(difference_.block(ahead, count, rows_),
                 linalg::mutable_view(s_.work).block(first_row_, a0_ + ahead, rows_, count));
    for (index_t r = 0; r < rows_; ++r) {
      std::uint8_t* const row = s_.result.codes.data() + (first_row_ + r) * s_.columns();
      for (index_t c = ahead; c < width_; ++c) {
        index_t const position = b_.reach - 1 - c;
        row[s_.order.stored ? position : s_.order.column(position)] =
            codes_[static_cast<std::size_t>(c * linalg::strip_rows + r)];
      }
    }
  }

  layer_state& s_;
  block const& b_;
  index_t first_row_;
  index_t rows_;
  index_t width_;
  index_t a0_;
  linalg::strip now_;
  linalg::strip difference_;
  std::vector<std::uint8_t> codes_;
  index_t loaded_ = -1;  ///< the group whose grids these are
  float scale_[linalg::strip_rows];
  float zero_[linalg::strip_rows];
};

/// W in state.work, in the order of the sweep, becomes W - Q, with `beam` candidates a row.
class sweep {
 public:
  explicit sweep(layer_state& state, int beam = 1) : s_(state), beam_(beam) {}

  void run() {
    index_t const rows = s_.rows();
    index_t const columns = s_.columns();
    s_.losses.assign(static_cast<std::size_t>(rows), 0.0);
    Eigen::MatrixXf
        outer;  // w_now of the positions first..end, without their own feedback, in reversed order
    for (index_t first = 0; first < columns;) {
      index_t const end = outer_block_end(first);
      outer.resize(rows, end - first);
      linalg::mutable_view const now = outer;
      linalg::view const weights = linalg::view(s_.work).middle_columns(columns - end, end - first);
      linalg::for_strips(rows, s_.threads(), [&](index_t first_row, index_t count) {
        linalg::copy(weights.middle_rows(first_row, count), now.middle_rows(first_row, count));
      });
      add_feedback(now, 0, first, first, end);
      for (index_t at = first; at < end;) {
        block const b = next_block(at, end);
        run_block(b, now.middle_columns(end - b.reach, b.reach - b.first));
        add_feedback(now.middle_columns(0, end - b.end), b.first, b.end, b.end, end);
        at = b.end;
      }
      first = end;
    }
  }

 private:
  /// The end of a run of about `size` positions from `first` on: where grids are found on the way, where a
  /// group ends if one does.
  index_t run_end(index_t first, index_t size, index_t limit) const {
    index_t const end = std::min(first + size, limit);
    if (!s_.order.grids_on_the_way || end == limit) return end;
    index_t const boundary = end / s_.format.group_columns * s_.format.group_columns;
    return boundary > first ? boundary : end;
  }

  /// It begins and ends with a group.
  index_t outer_block_end(index_t first) const {
    index_t const size = index_t{4} * s_.options.block_size;
    return run_end(first, s_.order.grids_on_the_way ? std::max(size, s_.format.group_columns) : size,
                   s_.columns());
  }

  block next_block(index_t first, index_t limit) const {
    index_t const end = run_end(first, s_.options.block_size, limit);
    if (!s_.order.grids_on_the_way) return {first, end, end};
    index_t const size = s_.format.group_columns;
    index_t const last_start = (end - 1) / size * size;
    index_t const reach = last_start < first ? end : std::min(last_start + size, s_.columns());
    return {first, end, reach};
  }

  /// now += what the quantized positions p0..p1 owe to positions q0..q1, which are the columns of `now`.
  void add_feedback(linalg::mutable_view now, index_t p0, index_t p1, index_t q0, index_t q1) const {
    index_t const columns = s_.columns();
    linalg::add_product(now, linalg::sign::plus, linalg::view(s_.work).middle_columns(columns - p1, p1 - p0),
                        linalg::view(s_.f->lower).block(columns - p1, columns - q1, p1 - p0, q1 - q0),
                        s_.threads());
  }

  void run_block(block const& b, linalg::view now) {
    linalg::for_strips(s_.rows(), s_.threads(), [&](index_t first_row, index_t count) {
      if (beam_ > 1) {
        beam_strip(s_, b.first, b.end, beam_).run(now.middle_rows(first_row, count), first_row);
      } else {
        sweep_strip(s_, b, now.middle_rows(first_row, count), first_row).run();
      }
    });
  }

  layer_state& s_;
  int beam_;
};

}  // namespace gptq::solver
