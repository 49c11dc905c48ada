// In which order columns are quantized, and what that means for their groups.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <gptq/solver/problem.hpp>

namespace gptq::solver {

struct column_order {
  std::vector<std::int32_t> columns;  ///< the original column of each position
  bool grids_on_the_way = false;      ///< a group's grid is found when the sweep reaches it, not beforehand
  bool stored = false;    ///< groups are runs of positions, not of original columns: the layer has the order
  bool searched = false;  ///< grids that are found on the way are searched for in the sweep's metric

  index_t column(index_t position) const { return columns[static_cast<std::size_t>(position)]; }
  /// The group of the column at a position.
  index_t group(index_t position, index_t group_columns) const {
    return (stored ? position : column(position)) / group_columns;
  }
};

inline std::vector<std::int32_t> identity_order(index_t columns) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

/// The largest diag(H) first.
inline std::vector<std::int32_t> order_by_diagonal(hessian const& h) {
  std::vector<std::int32_t> order = identity_order(h.in_features());
  auto const& sum = h.sum();
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return sum(a, a) > sum(b, b); });
  return order;
}

/// Groups that count for most first, and within them columns that do: groups stay runs of columns, so that
/// their grids can be found when the sweep has reached them, and no order needs to be stored. One that is
/// shorter comes last. (Gafni, Karnieli, Hanani, "Dual Precision Quantization for Efficient and Accurate Deep
/// Neural Networks Inference", 2025.)
inline column_order group_aware_order(hessian const& h, format_values const& format) {
  auto const& sum = h.sum();
  index_t const columns = h.in_features();
  std::vector<float> largest(static_cast<std::size_t>(format.groups));  // diag(H) of each group
  for (index_t column = 0; column < columns; ++column) {
    float& diagonal = largest[static_cast<std::size_t>(column / format.group_columns)];
    diagonal = std::max(diagonal, sum(column, column));
  }
  if (columns % format.group_columns != 0) largest.back() = -1.0F;
  std::vector<std::int32_t> order = identity_order(columns);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
    index_t const group_a = a / format.group_columns;
    index_t const group_b = b / format.group_columns;
    if (group_a == group_b) return sum(a, a) > sum(b, b);
    float const x = largest[static_cast<std::size_t>(group_a)];
    float const y = largest[static_cast<std::size_t>(group_b)];
    return x > y || (x == y && group_a < group_b);
  });
  return {.columns = std::move(order), .grids_on_the_way = true, .searched = true};
}

/// The order that the options ask for; with `search`, groups are static and columns ordered by diag(H).
inline column_order chosen_order(hessian const& h, format_values const& format,
                                 quantize_options const& options, bool search) {
  bool const by_diagonal = search || options.act_order;
  column_order order{by_diagonal ? order_by_diagonal(h) : identity_order(h.in_features())};
  order.grids_on_the_way = !search && !options.static_groups && format.groups > 1;
  order.stored = by_diagonal && order.grids_on_the_way;
  return order;
}

}  // namespace gptq::solver
