// Better codes and scales for a quantized weight: coordinate descent in the Hessian's own metric.
//
// With M the damped Hessian, D = W - Q and g = D M, taking code j of a row to another level moves d_j by t
// and the row's loss d M d' by 2 t g_j + t^2 M_jj: the best level is the one nearest to q_j + g_j / M_jj.
// With the codes of a group at levels l, its best scale is s + (l g') / (l M l'), and with a stored zero
// point the same holds one step to either side of it. Each of these changes is made only when it lowers the
// loss.
//
// A pass goes once through all columns, block by block: D M for the block (a product of N K columns of
// operations), then its groups one after the other, a strip of rows at a time. It costs 2 N K^2 operations,
// twice the column sweep, and 2 N K^2 more where groups are larger than a block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <Eigen/Core>

#include <gptq/grids/level_rounding.hpp>
#include <gptq/linalg/products.hpp>
#include <gptq/linalg/strips.hpp>
#include <gptq/solver/grid_steps.hpp>
#include <gptq/solver/solution.hpp>

namespace gptq::solver {

/// Sums of the rows of a metric block, by columns: what its products with ones are.
inline Eigen::VectorXf row_sums(linalg::view metric) {
  return linalg::as_map<linalg::columns_map_const>(metric).rowwise().sum();
}

class coordinate_descent {
 public:
  /// @param difference  W - Q, original column order; kept up to date
  /// @param extra       [K] what damping and dead inputs add to the diagonal of h.sum()
  /// @param result      codes, scales and zeros in original column order; kept up to date
  coordinate_descent(matrix& difference, hessian const& h, Eigen::VectorXf const& extra,
                     format_values const& format, int threads, solution& result)
      : difference_(difference),
        sum_(h.sum()),
        extra_(extra),
        format_(format),
        threads_(threads),
        result_(result),
        rows_(difference.rows()),
        columns_(difference.cols()) {}

  /// Goes once through all columns: codes if asked to, then the scale and zero point of each group.
  /// @param gained  [N] what the loss d M d' of each row fell by is added
  void pass(bool codes, std::vector<double>& gained) {
    bool const inside = format_.group_columns <= largest_block;  // whether blocks hold whole groups
    if (codes || inside) {
      index_t const size =
          inside ? block_columns / format_.group_columns * format_.group_columns : block_columns;
      index_t const step = std::max(size, inside ? format_.group_columns : size);
      for (index_t first = 0; first < columns_; first += step) {
        block_pass(first, std::min(step, columns_ - first), codes, inside, gained);
      }
    }
    if (!inside) {
      for (index_t group = 0; group < format_.groups; ++group) fit_large_group(group, gained);
    }
  }

 private:
  static constexpr index_t block_columns = 256;
  static constexpr index_t largest_block = 256;
  class strip_pass;

  /// M for the columns first..first+count, both triangles.
  Eigen::MatrixXf metric_block(index_t first, index_t count) const {
    Eigen::MatrixXf m(count, count);
    for (index_t j = 0; j < count; ++j) {
      for (index_t i = j; i < count; ++i) m(i, j) = m(j, i) = sum_(first + i, first + j);
      m(j, j) += extra_(first + j);
    }
    return m;
  }

  /// target += D M for rows of D and the columns first..first+count, of which M is `metric`.
  void add_gradient(linalg::mutable_view target, linalg::view difference, linalg::view metric, index_t first,
                    index_t count) const {
    index_t const end = first + count;
    index_t const after = columns_ - end;
    linalg::add_product(target, linalg::sign::plus, difference.middle_columns(0, first),
                        sum_.block(first, 0, count, first).transposed(), threads_);
    linalg::add_product(target, linalg::sign::plus, difference.middle_columns(first, count), metric,
                        threads_);
    linalg::add_product(target, linalg::sign::plus, difference.middle_columns(end, after),
                        sum_.block(end, first, after, count), threads_);
  }

  void block_pass(index_t first, index_t count, bool codes, bool grids, std::vector<double>& gained);
  void fit_large_group(index_t group, std::vector<double>& gained);
  void fit_large_group_rows(index_t group, index_t first_row, index_t rows, linalg::view metric,
                            Eigen::VectorXf const& ones, std::vector<double>& gained);

  matrix& difference_;
  linalg::view sum_;
  Eigen::VectorXf const& extra_;
  format_values const& format_;
  int threads_;
  solution& result_;
  index_t rows_;
  index_t columns_;
};

/// A block of columns of a strip of rows.
class coordinate_descent::strip_pass {
 public:
  strip_pass(coordinate_descent& all, linalg::view metric, linalg::view gradient, index_t first,
             index_t first_row)
      : all_(all),
        metric_(metric),
        first_(first),
        first_row_(first_row),
        rows_(gradient.rows),
        width_(metric.columns),
        gradient_(width_),
        moved_(width_),
        levels_(width_),
        centered_(width_),
        product_(width_) {
    linalg::copy(gradient, gradient_.block(0, width_, rows_));
  }

  void run(bool codes, bool grids) {
    detail::with_rounding(all_.format_.levels, [&](auto const& rounding) { run(codes, grids, rounding); });
  }

  /// By how much decoded weights have risen.
  linalg::strip const& moved() const { return moved_; }
  double gained(index_t r) const { return gained_[r]; }

 private:
  template <class Rounding>
  void run(bool codes, bool grids, Rounding const& rounding) {
    index_t const size = all_.format_.group_columns;
    for (index_t c0 = 0; c0 < width_;) {
      index_t const group = (first_ + c0) / size;
      index_t const c1 = std::min((group + 1) * size - first_, width_);
      load(group, c0, c1, rounding);
      add(gradient_, -1.0F, moved_, c0, c1, 0, c0);
      if (codes) {
        for (index_t s0 = c0; s0 < c1; s0 += 32) {
          index_t const s1 = std::min(s0 + 32, c1);
          add(gradient_, -1.0F, moved_, s0, s1, c0, s0);
          for (index_t c = s0; c < s1; ++c) {
            add(gradient_, -1.0F, moved_, c, c + 1, s0, c);
            choose_codes(c, rounding);
          }
        }
      }
      if (grids) {
        if (codes) finish_gradient(c0, c1);
        fit(c0, c1);
      }
      store(group, c0, c1, rounding);
      c0 = c1;
    }
  }

  /// target[c0..c1] += alpha source[d0..d1] M
  void add(linalg::strip& target, float alpha, linalg::strip const& source, index_t c0, index_t c1,
           index_t d0, index_t d1) const {
    linalg::add_strip_product(target.column(c0), alpha, source.column(d0), d1 - d0,
                              metric_.data + c0 * width_ + d0, width_, c1 - c0);
  }

  /// While codes are chosen, a column knows only what moved before it: now all that moved in its group.
  void finish_gradient(index_t c0, index_t c1) {
    for (index_t s0 = c0; s0 < c1; s0 += 32) {
      index_t const s1 = std::min(s0 + 32, c1);
      for (index_t c = s0; c < s1; ++c) add(gradient_, -1.0F, moved_, c, c + 1, c, s1);
      add(gradient_, -1.0F, moved_, s0, s1, s1, c1);
    }
  }

  template <class Rounding>
  void load(index_t group, index_t c0, index_t c1, Rounding const& rounding) {
    for (index_t r = 0; r < linalg::strip_rows; ++r) {
      grid const g = r < rows_ ? all_.result_.grid_at(first_row_ + r, group) : grid{};
      scale_[r] = g.scale;
      zero_[r] = all_.format_.levels.zero_point(g);
    }
    for (index_t r = 0; r < rows_; ++r) {
      std::uint8_t const* const codes = all_.result_.codes.data() + (first_row_ + r) * all_.columns_ + first_;
      for (index_t c = c0; c < c1; ++c) levels_(r, c) = rounding.loaded(codes[c]) - zero_[r];
    }
  }

  template <class Rounding>
  void store(index_t group, index_t c0, index_t c1, Rounding const& rounding) {
    for (index_t r = 0; r < rows_; ++r) {
      all_.result_.set_grid(first_row_ + r, group, {scale_[r], static_cast<int>(zero_[r])});
      std::uint8_t* const codes = all_.result_.codes.data() + (first_row_ + r) * all_.columns_ + first_;
      for (index_t c = c0; c < c1; ++c) {
        codes[c] = rounding.stored(levels_(r, c) + zero_[r]);
      }
    }
  }

  /// The best codes of one column, everything else as it is.
  template <class Rounding>
  void choose_codes(index_t c, Rounding const rounding) {
    float const curvature = metric_(c, c);
    if (!(curvature > 0.0F)) return;
    float const* const slope = gradient_.column(c);
    float* const level = levels_.column(c);
    float* const rise = moved_.column(c);
    float changes[linalg::strip_rows];
    for (index_t r = 0; r < linalg::strip_rows; ++r) {
      float const target = scale_[r] * level[r] + slope[r] / curvature;
      float const code = rounding.nearest(target, detail::safe_divisor(scale_[r]), zero_[r]);
      float const by = scale_[r] * (code - zero_[r] - level[r]);
      float const change = by * (by * curvature - 2.0F * slope[r]);
      bool const better = change < 0.0F;
      level[r] = better ? code - zero_[r] : level[r];
      rise[r] += better ? by : 0.0F;
      changes[r] = better ? change : 0.0F;
    }
    for (index_t r = 0; r < linalg::strip_rows; ++r) gained_[r] -= static_cast<double>(changes[r]);
  }

  /// The best grid of a group for the codes it has.
  void fit(index_t c0, index_t c1) {
    bool const zero_points = all_.format_.levels.has_zero_point;
    float center[linalg::strip_rows] = {};  // a whole number in the middle of a row's levels
    if (zero_points) {
      for (index_t r = 0; r < rows_; ++r) {
        float sum = 0.0F;
        for (index_t c = c0; c < c1; ++c) sum += levels_(r, c);
        center[r] = std::round(sum / static_cast<float>(c1 - c0));
      }
    }
    for (index_t c = c0; c < c1; ++c) {
      for (index_t r = 0; r < linalg::strip_rows; ++r) centered_(r, c) = levels_(r, c) - center[r];
    }
    std::fill(product_.column(c0), product_.column(c1), 0.0F);
    add(product_, 1.0F, centered_, c0, c1, c0, c1);
    Eigen::VectorXf const ones = row_sums(metric_.block(c0, c0, c1 - c0, c1 - c0));
    group_sums sums;
    sums.one_one = static_cast<double>(ones.sum());
    for (index_t r = 0; r < rows_; ++r) {
      sums.center = static_cast<double>(center[r]);
      sums.level_level = dot(centered_, product_, r, c0, c1);
      sums.level_slope = dot(centered_, gradient_, r, c0, c1);
      if (zero_points) {
        sums.level_one = 0.0;
        sums.one_slope = 0.0;
        for (index_t c = c0; c < c1; ++c) {
          sums.level_one += static_cast<double>(centered_(r, c)) * static_cast<double>(ones(c - c0));
          sums.one_slope += static_cast<double>(gradient_(r, c));
        }
      }
      grid_change const best = best_grid(sums, {scale_[r], static_cast<int>(zero_[r])}, all_.format_.rules());
      if (best.change < 0.0) change_grid(r, best, c0, c1);
    }
  }

  void change_grid(index_t r, grid_change const& best, index_t c0, index_t c1) {
    gained_[r] -= best.change;
    float const by = all_.format_.levels.has_zero_point ? static_cast<float>(best.to.zero) - zero_[r] : 0.0F;
    for (index_t c = c0; c < c1; ++c) {
      float const level = levels_(r, c) - by;
      moved_(r, c) += best.to.scale * level - scale_[r] * levels_(r, c);
      levels_(r, c) = level;
    }
    scale_[r] = best.to.scale;
    zero_[r] += by;
  }

  static double dot(linalg::strip const& a, linalg::strip const& b, index_t r, index_t c0, index_t c1) {
    double sum = 0.0;
    for (index_t c = c0; c < c1; ++c) sum += static_cast<double>(a(r, c)) * static_cast<double>(b(r, c));
    return sum;
  }

  coordinate_descent& all_;
  linalg::view metric_;
  index_t first_;
  index_t first_row_;
  index_t rows_;
  index_t width_;
  linalg::strip gradient_;
  linalg::strip moved_;
  linalg::strip levels_;    ///< code - zero
  linalg::strip centered_;  ///< levels, less the middle of each row's in the group
  linalg::strip product_;   ///< centered M
  float scale_[linalg::strip_rows];
  float zero_[linalg::strip_rows];
  double gained_[linalg::strip_rows] = {};
};

inline void coordinate_descent::block_pass(index_t first, index_t count, bool codes, bool grids,
                                           std::vector<double>& gained) {
  Eigen::MatrixXf const metric = metric_block(first, count);
  Eigen::MatrixXf gradient(rows_, count);
  std::fill_n(gradient.data(), gradient.size(), 0.0F);
  add_gradient(gradient, difference_, metric, first, count);
  linalg::for_strips(rows_, threads_, [&](index_t first_row, index_t rows) {
    strip_pass pass(*this, metric, linalg::view(gradient).middle_rows(first_row, rows), first, first_row);
    pass.run(codes, grids);
    for (index_t r = 0; r < rows; ++r) {
      float* const difference = difference_.data() + (first_row + r) * columns_ + first;
      for (index_t c = 0; c < count; ++c) difference[c] -= pass.moved()(r, c);
      gained[static_cast<std::size_t>(first_row + r)] += pass.gained(r);
    }
  });
}

/// The best grids of a group that no block holds: its levels times M is a product of its own.
inline void coordinate_descent::fit_large_group(index_t group, std::vector<double>& gained) {
  constexpr index_t rows_at_once = 256;
  index_t const first = group * format_.group_columns;
  index_t const count = std::min(format_.group_columns, columns_ - first);
  Eigen::MatrixXf const metric = metric_block(first, count);
  Eigen::VectorXf const ones = row_sums(metric);
  for (index_t row = 0; row < rows_; row += rows_at_once) {
    fit_large_group_rows(group, row, std::min(rows_at_once, rows_ - row), metric, ones, gained);
  }
}

inline void coordinate_descent::fit_large_group_rows(index_t group, index_t first_row, index_t rows,
                                                     linalg::view metric, Eigen::VectorXf const& ones,
                                                     std::vector<double>& gained) {
  index_t const first = group * format_.group_columns;
  index_t const count = metric.columns;
  bool const whole_row = count == columns_;
  matrix levels(rows, count);  // less their center
  std::vector<float> center(static_cast<std::size_t>(rows));
  auto const load = [&](index_t r0, index_t n, auto const& rounding) {
    for (index_t r = r0; r < r0 + n; ++r) {
      std::uint8_t const* const codes = result_.codes.data() + (first_row + r) * columns_ + first;
      float const zero = format_.levels.zero_point(result_.grid_at(first_row + r, group));
      float* const row = levels.data() + r * count;
      float sum = 0.0F;
      for (index_t c = 0; c < count; ++c) sum += row[c] = rounding.loaded(codes[c]) - zero;
      if (!format_.levels.has_zero_point) continue;
      center[static_cast<std::size_t>(r)] = std::round(sum / static_cast<float>(count));
      for (index_t c = 0; c < count; ++c) row[c] -= center[static_cast<std::size_t>(r)];
    }
  };
  linalg::for_strips(rows, threads_, [&](index_t r0, index_t n) {
    detail::with_rounding(format_.levels, [&](auto const& rounding) { load(r0, n, rounding); });
  });
  matrix inside(rows, count);
  std::fill_n(inside.data(), inside.size(), 0.0F);
  linalg::add_product(inside, linalg::sign::plus, levels, metric, threads_);
  // A group that is the whole row needs no gradient: l g' = (l M) d'.
  matrix gradient;
  if (!whole_row) {
    gradient.resize(rows, count);
    std::fill_n(gradient.data(), gradient.size(), 0.0F);
    add_gradient(gradient, linalg::view(difference_).middle_rows(first_row, rows), metric, first, count);
  }
  double one_one = 0.0;
  for (index_t c = 0; c < count; ++c) one_one += static_cast<double>(ones(c));
  linalg::for_strips(rows, threads_, [&](index_t r0, index_t n) {
    for (index_t r = r0; r < r0 + n; ++r) {
      float const* const level = levels.data() + r * count;
      float const* const product = inside.data() + r * count;
      float* const difference = difference_.data() + (first_row + r) * columns_ + first;
      float const* const slope = whole_row ? nullptr : gradient.data() + r * count;
      group_sums sums;
      sums.center = static_cast<double>(center[static_cast<std::size_t>(r)]);
      sums.one_one = one_one;
      for (index_t c = 0; c < count; ++c) {
        auto const l = static_cast<double>(level[c]);
        auto const one = static_cast<double>(ones(c));
        sums.level_level += l * static_cast<double>(product[c]);
        sums.level_one += l * one;
        if (whole_row) {
          sums.level_slope += static_cast<double>(product[c]) * static_cast<double>(difference[c]);
          sums.one_slope += one * static_cast<double>(difference[c]);
        } else {
          sums.level_slope += l * static_cast<double>(slope[c]);
          sums.one_slope += static_cast<double>(slope[c]);
        }
      }
      grid const from = result_.grid_at(first_row + r, group);
      grid_change const best = best_grid(sums, from, format_.rules());
      if (!(best.change < 0.0)) continue;
      gained[static_cast<std::size_t>(first_row + r)] -= best.change;
      auto const by = static_cast<float>(best.to.zero - from.zero);
      float const middle = center[static_cast<std::size_t>(r)];
      for (index_t c = 0; c < count; ++c) {
        difference[c] -= best.to.scale * (level[c] + (middle - by)) - from.scale * (level[c] + middle);
      }
      result_.set_grid(first_row + r, group, best.to);
    }
  });
}

}  // namespace gptq::solver
