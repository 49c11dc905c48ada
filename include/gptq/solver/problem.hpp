// What a layer's solver is given, as values: it is compiled once and not once a format. And the checks of
// that.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <span>
#include <string>

#include <gptq/error.hpp>
#include <gptq/format.hpp>
#include <gptq/grid.hpp>
#include <gptq/hessian.hpp>
#include <gptq/options.hpp>
#include <gptq/solver/grid_steps.hpp>
#include <gptq/solver/recipe.hpp>

namespace gptq::solver {

/// A format as values.
struct format_values {
  code_levels levels{};
  index_t group_columns = 0;
  index_t groups = 0;  ///< a row
  grid_options grids{};
  int bits = 0;
  bool whole_row = false;  ///< one group a row, whatever the number of columns
  grid (*own_grid)(std::span<float const>, int bits) = nullptr;  ///< the scheme's, if it has one

  /// The grid of a group by the rule of the options, or the scheme's own.
  grid find(std::span<float const> weights) const;
  /// What decides which other grids are tried.
  grid_rules rules() const { return {levels, grids, bits, own_grid != nullptr}; }
};

/// The values of a format for rows of `in` columns.
template <storage_format Format>
format_values describe(index_t in, quantize_options const& options) {
  format_values values;
  values.levels = Format::levels;
  values.group_columns = Format::group_columns(in);
  values.groups = Format::groups(in);
  values.grids = {options.grid, options.mse, options.quality == quality::reference && !Format::is_code_book,
                  Format::scales};
  values.bits = Format::bits;
  values.whole_row = Format::group_size == whole_row;
  if constexpr (requires(std::span<float const> w) {
                  { Format::scheme::find_grid(w, 0) } -> std::same_as<grid>;
                }) {
    values.own_grid = &Format::scheme::find_grid;
  }
  return values;
}

/// The same with what scales of type e4m3 are multiples of: the power of two with which those of these weights are at
/// most half of the largest e4m3, so that weights may still grow while columns are swept.
GPTQ_SOLVER_FUNCTION format_values with_matrix_scale(format_values format, linalg::view weight);

/// All of these throw gptq::error, naming what is wrong and where. `which` says what a Hessian is for.
GPTQ_SOLVER_FUNCTION void check_weight(linalg::view weight, index_t in);
GPTQ_SOLVER_FUNCTION void check_hessian(hessian const& h, index_t in, char const* which);
GPTQ_SOLVER_FUNCTION void check_options(quantize_options const& options, code_levels const& levels);
GPTQ_SOLVER_FUNCTION void check_scale(float scale, index_t row, index_t group);

#if !defined(GPTQ_SOLVER_ELSEWHERE)

GPTQ_SOLVER_FUNCTION format_values with_matrix_scale(format_values format, linalg::view weight) {
  if (format.grids.scales != scale_type::e4m3) return format;
  float amax = 0.0F;
  for (index_t row = 0; row < weight.rows; ++row) {
    for (index_t column = 0; column < weight.columns; ++column) {
      amax = std::max(amax, std::abs(weight(row, column)));
    }
  }
  code_levels const& levels = format.levels;
  float const top = levels.has_zero_point ? static_cast<float>(levels.max_code - levels.min_code) / 2.0F
                                          : std::min(-levels.lowest(), levels.highest());
  if (amax > 0.0F) format.grids.matrix_scale = std::exp2(std::ceil(std::log2(amax / top / 224.0F)));
  return format;
}

GPTQ_SOLVER_FUNCTION grid format_values::find(std::span<float const> weights) const {
  if (own_grid == nullptr || grids.rule != grid_rule::published) return find_grid(weights, levels, grids);
  grid g = own_grid(weights, bits);
  if (levels.has_zero_point && (g.zero < 0 || g.zero >= 1 << bits)) {
    throw error("quantize: the scheme's find_grid gave the zero point " + std::to_string(g.zero) +
                ", which does not fit into " + std::to_string(bits) + " bits");
  }
  g.scale = grids.stored(g.scale);
  return g;
}

GPTQ_SOLVER_FUNCTION void check_weight(linalg::view weight, index_t in) {
  if (weight.rows == 0 || weight.columns == 0) {
    throw error("quantize: the weight is empty (" + std::to_string(weight.rows) + " x " +
                std::to_string(weight.columns) + ")");
  }
  if (weight.columns != in) {
    throw error("quantize: the weight has " + std::to_string(weight.columns) + " columns, the hessian " +
                std::to_string(in));
  }
  if (linalg::all_finite(weight)) return;
  for (index_t row = 0; row < weight.rows; ++row) {
    for (index_t column = 0; column < weight.columns; ++column) {
      if (!std::isfinite(weight(row, column))) {
        throw error("quantize: weight at row " + std::to_string(row) + ", column " + std::to_string(column) +
                    " is " + std::to_string(weight(row, column)));
      }
    }
  }
}

GPTQ_SOLVER_FUNCTION void check_hessian(hessian const& h, index_t in, char const* which) {
  std::string const name = which;
  if (h.in_features() != in) {
    throw error("quantize: the weight has " + std::to_string(in) + " columns, the " + name + " " +
                std::to_string(h.in_features()));
  }
  if (h.sequences() == 0 || !(h.tokens() > 0.0)) throw error("quantize: the " + name + " has seen no tokens");
  linalg::view const sum = h.sum();
  for (index_t j = 0; j < in; ++j) {
    if (linalg::all_finite(sum.block(j, j, in - j, 1))) continue;
    for (index_t i = j; i < in; ++i) {
      if (!std::isfinite(sum(i, j))) {
        throw error("quantize: entry (" + std::to_string(i) + ", " + std::to_string(j) + ") of the " + name +
                    " is " + std::to_string(sum(i, j)));
      }
    }
  }
}

GPTQ_SOLVER_FUNCTION void check_options(quantize_options const& options, code_levels const& levels) {
  check_grid_rule(options.grid, levels);
  if (options.block_size <= 0) {
    throw error("quantize: block_size is " + std::to_string(options.block_size) + ", not positive");
  }
  if (!(options.damping >= 0.0) || !std::isfinite(options.damping)) {
    throw error("quantize: damping is " + std::to_string(options.damping) + ", not a finite number >= 0");
  }
}

GPTQ_SOLVER_FUNCTION void check_scale(float scale, index_t row, index_t group) {
  if (!std::isfinite(scale)) {
    throw error("quantize: the scale of row " + std::to_string(row) + ", group " + std::to_string(group) +
                " is beyond the range of its type (65504 for float16): store the scales as float32");
  }
}

#endif

}  // namespace gptq::solver
