// What both solvers share: their view of a format, their result, the checks of their input.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <gptq/error.hpp>
#include <gptq/format.hpp>
#include <gptq/grid.hpp>
#include <gptq/hessian.hpp>
#include <gptq/layer.hpp>
#include <gptq/linalg/products.hpp>
#include <gptq/options.hpp>

namespace gptq::detail {

class stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(clock::now() - start_).count(); }

 private:
  using clock = std::chrono::steady_clock;
  clock::time_point start_ = clock::now();
};

inline double decibels(double relative_error) { return -10.0 * std::log10(relative_error); }

/// What a quality consists of.
struct recipe {
  bool search = false;  ///< grids in the sweep's metric, static groups and act-order, instead of the options'
  bool group_aware =
      false;       ///< with these, another sweep in group-aware order; each row keeps the better one
  int rounds = 0;  ///< scales fitted to the codes and another sweep with them; whatever is better stays
  int beam = 1;    ///< candidates a row in the last of these sweeps
  int passes = 0;  ///< coordinate descent on codes and grids, at most
  bool choose_damping = false;  ///< by the error on held-out tokens, where there are some
  int guards =
      0;  ///< what is taken instead, where it has the smaller error on held-out tokens: the published
          ///< default (1), or the better one of it and the published best, whose search takes long (2)
};

inline recipe recipe_of(quality q) {
  switch (q) {
    case quality::reference:
    case quality::plain:
      return {};
    case quality::fast:
      return {.search = true, .group_aware = true, .passes = 2, .guards = 1};
    case quality::best:
      return {.search = true,
              .group_aware = true,
              .rounds = 2,
              .beam = 6,
              .passes = 4,
              .choose_damping = true,
              .guards = 2};
  }
  return {};
}

/// A format as values: what the solver, which is compiled once, needs to know of it.
struct format_values {
  code_levels levels{};
  index_t group_columns = 0;
  index_t groups = 0;
  grid_options grids{};
  int bits = 0;
  bool whole_row = false;  ///< one group a row, whatever the number of columns
  grid (*own_grid)(std::span<float const>, int bits) = nullptr;

  grid find(std::span<float const> weights) const {
    if (own_grid == nullptr || grids.rule != grid_rule::published) {
      return find_grid(weights, levels, grids);
    }
    grid g = own_grid(weights, bits);
    if (levels.has_zero_point && (g.zero < 0 || g.zero >= 1 << bits)) {
      throw error("quantize: the scheme's find_grid gave the zero point " + std::to_string(g.zero) +
                  ", which does not fit into " + std::to_string(bits) + " bits");
    }
    g.scale = stored_scale(g.scale, grids.scales);
    return g;
  }
};

template <storage_format Format>
format_values values_of(index_t in, quantize_options const& options) {
  format_values values;
  values.levels = Format::levels;
  values.group_columns = Format::group_columns(in);
  values.groups = Format::groups(in);
  values.grids = {options.grid, options.mse, options.quality == quality::reference, Format::scales};
  values.bits = Format::bits;
  values.whole_row = Format::group_size == whole_row;
  if constexpr (requires(std::span<float const> w) {
                  { Format::scheme::find_grid(w, 0) } -> std::same_as<grid>;
                }) {
    values.own_grid = &Format::scheme::find_grid;
  }
  return values;
}

inline void check_weight(Eigen::Ref<matrix const> const& weight) {
  if (weight.rows() == 0 || weight.cols() == 0) {
    throw error("quantize: the weight is empty (" + std::to_string(weight.rows()) + " x " +
                std::to_string(weight.cols()) + ")");
  }
  if (all_rows_finite(weight)) return;
  for (index_t row = 0; row < weight.rows(); ++row) {
    for (index_t column = 0; column < weight.cols(); ++column) {
      if (!std::isfinite(weight(row, column))) {
        throw error("quantize: weight at row " + std::to_string(row) + ", column " + std::to_string(column) +
                    " is " + std::to_string(weight(row, column)));
      }
    }
  }
}

inline void check_hessian(hessian const& h, index_t in, char const* which) {
  if (h.in_features() != in) {
    throw error(std::string("quantize: the weight has ") + std::to_string(in) + " columns, the " + which +
                " " + std::to_string(h.in_features()));
  }
  if (h.sequences() == 0) throw error(std::string("quantize: the ") + which + " has seen no activations");
  for (index_t j = 0; j < in; ++j) {
    if (all_finite(h.sum().col(j).data() + j, in - j)) continue;
    for (index_t i = j; i < in; ++i) {
      if (!std::isfinite(h.sum()(i, j))) {
        throw error(std::string("quantize: entry (") + std::to_string(i) + ", " + std::to_string(j) +
                    ") of the " + which + " is " + std::to_string(h.sum()(i, j)));
      }
    }
  }
}

inline void check_options(quantize_options const& options, code_levels const& levels) {
  check_grid_rule(options.grid, levels);
  if (options.block_size <= 0) {
    throw error("quantize: block_size is " + std::to_string(options.block_size) + ", not positive");
  }
  if (!(options.damping >= 0.0) || !std::isfinite(options.damping)) {
    throw error("quantize: damping is " + std::to_string(options.damping) + ", not a finite number >= 0");
  }
}

inline void check_scale(float scale, index_t row, index_t group) {
  if (!std::isfinite(scale)) {
    throw error("quantize: the scale of row " + std::to_string(row) + ", group " + std::to_string(group) +
                " is beyond the range of its type (65504 for float16): store the scales as float32");
  }
}

/// Codes, grids and order without the format's type.
struct solution {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> order;
  quantize_report report;

  solution(index_t rows, index_t columns, format_values const& format)
      : codes(static_cast<std::size_t>(rows * columns)),
        scales(static_cast<std::size_t>(rows * format.groups)),
        zeros(format.levels.has_zero_point ? scales.size() : 0),
        groups_(format.groups) {}

  void set_grid(index_t row, index_t group, grid g) {
    check_scale(g.scale, row, group);
    auto const at = static_cast<std::size_t>(row * groups_ + group);
    scales[at] = g.scale;
    if (!zeros.empty()) zeros[at] = static_cast<std::uint8_t>(g.zero);
  }
  grid grid_at(index_t row, index_t group) const {
    auto const at = static_cast<std::size_t>(row * groups_ + group);
    return {scales[at], zeros.empty() ? 0 : int{zeros[at]}};
  }

 private:
  index_t groups_;
};

template <storage_format Format>
quantized_layer<Format> layer_of(solution&& s, index_t out, index_t in) {
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  layer.codes = std::move(s.codes);
  layer.scales = std::move(s.scales);
  layer.zeros = std::move(s.zeros);
  layer.order = std::move(s.order);
  layer.report = s.report;
  return layer;
}

/// Calls strip(first, count) for strips of rows, on threads.
template <class Strip>
void for_strips(index_t rows, int threads, Strip&& strip) {
  parallel_for((rows + strip_rows - 1) / strip_rows, threads,
               [&](index_t i) { strip(i * strip_rows, std::min(strip_rows, rows - i * strip_rows)); });
}

/// The grids of all groups of weights in original column order.
inline void find_all_grids(matrix const& weight, format_values const& format, int threads, solution& result) {
  for_strips(weight.rows(), threads, [&](index_t first_row, index_t rows) {
    for (index_t row = first_row; row < first_row + rows; ++row) {
      for (index_t group = 0; group < format.groups; ++group) {
        index_t const first = group * format.group_columns;
        auto const columns = static_cast<std::size_t>(std::min(format.group_columns, weight.cols() - first));
        result.set_grid(row, group, format.find({weight.row(row).data() + first, columns}));
      }
    }
  });
}

inline std::vector<std::int32_t> identity_order(index_t columns) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

[[noreturn]] inline void throw_not_positive_definite(hessian const& h, double damping) {
  Eigen::VectorXd const diagonal = h.sum().diagonal().cast<double>() * h.scale();
  throw error("quantize: the Hessian of " + std::to_string(h.in_features()) +
              " inputs is not positive definite with damping " + std::to_string(damping) +
              " (diagonal from " + std::to_string(diagonal.minCoeff()) + " to " +
              std::to_string(diagonal.maxCoeff()) + ", mean " + std::to_string(diagonal.mean()) + "; " +
              std::to_string((diagonal.array() == 0.0).count()) + " dead inputs; " +
              std::to_string(h.tokens()) + " tokens)");
}

}  // namespace gptq::detail
