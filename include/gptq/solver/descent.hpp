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
#include <numeric>
#include <vector>

#include <Eigen/Core>

#include <gptq/linalg/products.hpp>
#include <gptq/linalg/threads.hpp>
#include <gptq/solver/solution.hpp>

namespace gptq::detail {

class refinement {
 public:
  /// @param difference  W - Q, original column order; kept up to date
  /// @param extra       [K] what damping and dead inputs add to the diagonal of h.sum()
  /// @param result      codes, scales and zeros in original column order; kept up to date
  refinement(matrix& difference, hessian const& h, Eigen::VectorXf const& extra, format_values const& format,
             int threads, solution& result)
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

  /// M for the columns first..first+count, both triangles.
  Eigen::MatrixXf metric_block(index_t first, index_t count) const {
    Eigen::MatrixXf m = sum_.block(first, first, count, count).selfadjointView<Eigen::Lower>();
    m.diagonal() += extra_.segment(first, count);
    return m;
  }

  /// target += source[N, count] M[first..first+count, onto..onto+width] for two runs of columns that are
  /// the same or do not overlap.
  template <class Target, class Source>
  void add_metric_product(Target&& target, Source const& source, index_t first, index_t count, index_t onto,
                          index_t width) const {
    if (first >= onto) {
      add_product(target, 1.0F, source, sum_.block(first, onto, count, width), threads_);
    } else {
      add_product(target, 1.0F, source, sum_.block(onto, first, width, count).transpose(), threads_);
    }
  }

  void block_pass(index_t first, index_t count, bool codes, bool grids, std::vector<double>& gained) {
    Eigen::MatrixXf const metric = metric_block(first, count);
    index_t const end = first + count;
    Eigen::MatrixXf gradient = Eigen::MatrixXf::Zero(rows_, count);
    add_metric_product(gradient, difference_.leftCols(first), 0, first, first, count);
    add_product(gradient, 1.0F, difference_.middleCols(first, count), metric, threads_);
    add_metric_product(gradient, difference_.rightCols(columns_ - end), end, columns_ - end, first, count);
    for_strips(rows_, threads_, [&](index_t first_row, index_t rows) {
      strip s(*this, metric, first, first_row, rows);
      s.gradient.topRows(rows) = gradient.middleRows(first_row, rows);
      if (format_.levels.is_half_step()) {
        s.template run<true>(codes, grids);
      } else {
        s.template run<false>(codes, grids);
      }
      difference_.block(first_row, first, rows, count) -= s.moved.topRows(rows);
      for (index_t r = 0; r < rows; ++r) gained[static_cast<std::size_t>(first_row + r)] += s.gained[r];
    });
  }

  /// A block of columns of a strip of rows. `moved` is by how much decoded weights have risen.
  struct strip {
    strip(refinement& all, Eigen::MatrixXf const& m, index_t first_column, index_t row, index_t count)
        : of(all), metric(m), first(first_column), first_row(row), rows(count), width(m.cols()) {
      gradient.setZero(strip_rows, width);
      moved.setZero(strip_rows, width);
      levels.setZero(strip_rows, width);
      centered.resize(strip_rows, width);
      product.resize(strip_rows, width);
    }

    template <bool HalfStep>
    void run(bool codes, bool grids) {
      index_t const size = of.format_.group_columns;
      for (index_t c0 = 0; c0 < width;) {
        index_t const group = (first + c0) / size;
        index_t const c1 = std::min((group + 1) * size - first, width);
        load(group, c0, c1);
        add(gradient, -1.0F, moved, c0, c1, 0, c0);
        if (codes) {
          for (index_t s0 = c0; s0 < c1; s0 += 32) {
            index_t const s1 = std::min(s0 + 32, c1);
            add(gradient, -1.0F, moved, s0, s1, c0, s0);
            for (index_t c = s0; c < s1; ++c) {
              add(gradient, -1.0F, moved, c, c + 1, s0, c);
              choose_codes<HalfStep>(c);
            }
          }
        }
        if (grids) {
          if (codes) finish_gradient(c0, c1);
          fit(c0, c1);
        }
        store(group, c0, c1);
        c0 = c1;
      }
    }

    /// target[c0..c1] += alpha source[d0..d1] M
    void add(strip_matrix& target, float alpha, strip_matrix const& source, index_t c0, index_t c1,
             index_t d0, index_t d1) const {
      add_strip_product(target.col(c0).data(), alpha, source.data() + d0 * strip_rows, d1 - d0,
                        metric.data() + c0 * width + d0, width, c1 - c0);
    }

    /// While codes are chosen, a column knows only what moved before it: now all that moved in its group.
    void finish_gradient(index_t c0, index_t c1) {
      for (index_t s0 = c0; s0 < c1; s0 += 32) {
        index_t const s1 = std::min(s0 + 32, c1);
        for (index_t c = s0; c < s1; ++c) add(gradient, -1.0F, moved, c, c + 1, c, s1);
        add(gradient, -1.0F, moved, s0, s1, s1, c1);
      }
    }

    void load(index_t group, index_t c0, index_t c1) {
      for (index_t r = 0; r < strip_rows; ++r) {
        grid const g = r < rows ? of.result_.grid_at(first_row + r, group) : grid{};
        scale[r] = g.scale;
        zero[r] = of.format_.levels.zero_point(g);
      }
      for (index_t r = 0; r < rows; ++r) {
        std::uint8_t const* const codes = of.result_.codes.data() + (first_row + r) * of.columns_ + first;
        for (index_t c = c0; c < c1; ++c) levels(r, c) = static_cast<float>(codes[c]) - zero[r];
      }
    }

    void store(index_t group, index_t c0, index_t c1) {
      for (index_t r = 0; r < rows; ++r) {
        of.result_.set_grid(first_row + r, group, {scale[r], static_cast<int>(zero[r])});
        std::uint8_t* const codes = of.result_.codes.data() + (first_row + r) * of.columns_ + first;
        for (index_t c = c0; c < c1; ++c) {
          codes[c] = static_cast<std::uint8_t>(static_cast<int>(levels(r, c) + zero[r]));
        }
      }
    }

    /// The best codes of one column, everything else as it is.
    template <bool HalfStep>
    void choose_codes(index_t c) {
      auto const lowest = static_cast<float>(of.format_.levels.min_code);
      auto const highest = static_cast<float>(of.format_.levels.max_code);
      float const curvature = metric(c, c);
      if (!(curvature > 0.0F)) return;
      float const* const slope = gradient.col(c).data();
      float* const level = levels.col(c).data();
      float* const rise = moved.col(c).data();
      float changes[strip_rows];
      for (index_t r = 0; r < strip_rows; ++r) {
        float const target = scale[r] * level[r] + slope[r] / curvature;
        float const code = nearest_code<HalfStep>(target, safe_divisor(scale[r]), zero[r], lowest, highest);
        float const by = scale[r] * (code - zero[r] - level[r]);
        float const change = by * (by * curvature - 2.0F * slope[r]);
        bool const better = change < 0.0F;
        level[r] = better ? code - zero[r] : level[r];
        rise[r] += better ? by : 0.0F;
        changes[r] = better ? change : 0.0F;
      }
      for (index_t r = 0; r < strip_rows; ++r) gained[r] -= static_cast<double>(changes[r]);
    }

    /// The best scale of a group, and the best of the zero points next to its own, for the codes it has.
    void fit(index_t c0, index_t c1) {
      float center[strip_rows] = {};
      if (of.format_.levels.has_zero_point) {
        for (index_t r = 0; r < rows; ++r) center[r] = center_of(levels.row(r).segment(c0, c1 - c0));
      }
      for (index_t c = c0; c < c1; ++c) {
        for (index_t r = 0; r < strip_rows; ++r) centered(r, c) = levels(r, c) - center[r];
      }
      product.middleCols(c0, c1 - c0).setZero();
      add(product, 1.0F, centered, c0, c1, c0, c1);
      Eigen::VectorXf const ones = metric.block(c0, c0, c1 - c0, c1 - c0).rowwise().sum();
      group_sums sums{};
      sums.one_one = static_cast<double>(ones.sum());
      for (index_t r = 0; r < rows; ++r) {
        sums.center = static_cast<double>(center[r]);
        sums.level_level = dot(centered, product, r, c0, c1);
        sums.level_slope = dot(centered, gradient, r, c0, c1);
        if (of.format_.levels.has_zero_point) {
          sums.level_one = 0.0;
          sums.one_slope = 0.0;
          for (index_t c = c0; c < c1; ++c) {
            sums.level_one += static_cast<double>(centered(r, c)) * static_cast<double>(ones(c - c0));
            sums.one_slope += static_cast<double>(gradient(r, c));
          }
        }
        grid_change const best = best_grid(sums, {scale[r], static_cast<int>(zero[r])}, of.format_);
        if (!(best.change < 0.0)) continue;
        gained[r] -= best.change;
        auto const by = of.format_.levels.has_zero_point ? static_cast<float>(best.to.zero) - zero[r] : 0.0F;
        for (index_t c = c0; c < c1; ++c) {
          float const level = levels(r, c) - by;
          moved(r, c) += best.to.scale * level - scale[r] * levels(r, c);
          levels(r, c) = level;
        }
        scale[r] = best.to.scale;
        zero[r] += by;
      }
    }

    static double dot(strip_matrix const& a, strip_matrix const& b, index_t r, index_t c0, index_t c1) {
      double sum = 0.0;
      for (index_t c = c0; c < c1; ++c) sum += static_cast<double>(a(r, c)) * static_cast<double>(b(r, c));
      return sum;
    }

    refinement& of;
    Eigen::MatrixXf const& metric;
    index_t first;
    index_t first_row;
    index_t rows;
    index_t width;
    strip_matrix gradient;
    strip_matrix moved;
    strip_matrix levels;    ///< code - zero
    strip_matrix centered;  ///< levels, less the middle of each row's in the group
    strip_matrix product;   ///< centered M
    float scale[strip_rows];
    float zero[strip_rows];
    double gained[strip_rows] = {};
  };

  /// A whole number in the middle of a group's levels.
  template <class Levels>
  static float center_of(Levels const& levels) {
    return std::round(levels.mean());
  }

  /// Products of a group's levels l, less their center, of ones and of the gradient g in the metric. Levels
  /// that are all much the same, and the change of such ones, would be lost in the rounding of l M l'.
  struct group_sums {
    double center;
    double level_level;  ///< l M l'
    double level_one;    ///< l M 1'
    double one_one;      ///< 1 M 1'
    double level_slope;  ///< l g'
    double one_slope;    ///< 1 g'
  };

  struct grid_change {
    grid to;
    double change = 0.0;  ///< of the row's loss
  };

  static grid_change best_grid(group_sums const& s, grid from, format_values const& format) {
    grid_change best{from};
    auto const old = static_cast<double>(from.scale);
    int const reach = format.levels.has_zero_point && format.own_grid == nullptr ? 1 : 0;
    for (int by = -reach; by <= reach; ++by) {
      grid to{from.scale, from.zero + by};
      if (reach > 0 && (to.zero < 0 || to.zero >= 1 << format.bits)) continue;
      // Levels l + center become l + level, and the scale s becomes t: decoded weights rise by
      // v = (t - s) l + (t level - s center), and the loss changes by v M v' - 2 v g'.
      double const level = s.center - by;
      double const square = s.level_level + level * (2.0 * s.level_one + level * s.one_one);
      if (!(square > 0.0)) continue;
      double const slope = s.level_slope + level * s.one_slope;
      double const along = s.level_level + (s.center + level) * s.level_one + s.center * level * s.one_one;
      to.scale = stored_scale(static_cast<float>((slope + old * along) / square), format.grids.scales);
      if (!std::isfinite(to.scale) || to.scale == 0.0F) continue;
      double const stretch = static_cast<double>(to.scale) - old;
      double const shift = static_cast<double>(to.scale) * level - old * s.center;
      double const change = stretch * (stretch * s.level_level - 2.0 * s.level_slope) +
                            shift * (shift * s.one_one + 2.0 * stretch * s.level_one - 2.0 * s.one_slope);
      if (change < best.change) best = {to, change};
    }
    return best;
  }

  /// The same for a group that no block holds: its levels times M is a product of its own.
  void fit_large_group(index_t group, std::vector<double>& gained) {
    index_t const first = group * format_.group_columns;
    index_t const count = std::min(format_.group_columns, columns_ - first);
    constexpr index_t panel_rows = 256;
    Eigen::MatrixXf const metric = metric_block(first, count);
    Eigen::VectorXf const ones = metric.rowwise().sum();
    for (index_t first_row = 0; first_row < rows_; first_row += panel_rows) {
      index_t const rows = std::min(panel_rows, rows_ - first_row);
      matrix levels(rows, count);  // less their center
      Eigen::VectorXf center = Eigen::VectorXf::Zero(rows);
      for_strips(rows, threads_, [&](index_t r0, index_t n) {
        for (index_t r = r0; r < r0 + n; ++r) {
          std::uint8_t const* const codes = result_.codes.data() + (first_row + r) * columns_ + first;
          float const zero = format_.levels.zero_point(result_.grid_at(first_row + r, group));
          for (index_t c = 0; c < count; ++c) levels(r, c) = static_cast<float>(codes[c]) - zero;
          if (format_.levels.has_zero_point) center(r) = center_of(levels.row(r));
          levels.row(r).array() -= center(r);
        }
      });
      matrix inside = matrix::Zero(rows, count);
      add_product(inside, 1.0F, levels, metric, threads_);
      // A group that is the whole row needs no gradient: l g' = (l M) d'.
      auto const difference = difference_.middleRows(first_row, rows);
      matrix gradient;
      if (count < columns_) {
        index_t const end = first + count;
        gradient.setZero(rows, count);
        add_metric_product(gradient, difference.leftCols(first), 0, first, first, count);
        add_product(gradient, 1.0F, difference.middleCols(first, count), metric, threads_);
        add_metric_product(gradient, difference.rightCols(columns_ - end), end, columns_ - end, first, count);
      }
      for_strips(rows, threads_, [&](index_t r0, index_t n) {
        for (index_t r = r0; r < r0 + n; ++r) {
          auto const dot = [&](auto const& a, auto const& b) {
            return a.template cast<double>().dot(b.template cast<double>());
          };
          group_sums sums{static_cast<double>(center(r)),
                          dot(levels.row(r), inside.row(r)),
                          dot(levels.row(r), ones.transpose()),
                          ones.cast<double>().sum(),
                          0.0,
                          0.0};
          if (count < columns_) {
            sums.level_slope = dot(levels.row(r), gradient.row(r));
            sums.one_slope = gradient.row(r).cast<double>().sum();
          } else {
            sums.level_slope = dot(inside.row(r), difference.row(r));
            sums.one_slope = dot(ones.transpose(), difference.row(r));
          }
          grid const from = result_.grid_at(first_row + r, group);
          grid_change const best = best_grid(sums, from, format_);
          if (!(best.change < 0.0)) continue;
          gained[static_cast<std::size_t>(first_row + r)] -= best.change;
          auto const by = static_cast<float>(best.to.zero - from.zero);
          difference_.row(first_row + r).segment(first, count) -=
              (best.to.scale * (levels.row(r).array() + (center(r) - by)) -
               from.scale * (levels.row(r).array() + center(r)))
                  .matrix();
          result_.set_grid(first_row + r, group, best.to);
        }
      });
    }
  }

  matrix& difference_;
  Eigen::MatrixXf const& sum_;
  Eigen::VectorXf const& extra_;
  format_values const& format_;
  int threads_;
  solution& result_;
  index_t rows_;
  index_t columns_;
};

}  // namespace gptq::detail
