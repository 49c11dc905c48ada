// In which order columns are quantized, and what that means for their groups: the twin of solver/order.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/hessian_diagonal.cuh>
#include <gptq/cuda/solver/problem.cuh>

namespace gptq::cuda::detail {

/// Sorts `order` by values[order], the largest first, stably. By digits, since the device waits for it.
inline void sort_descending(std::span<float const> values, std::vector<std::int32_t>& order) {
  std::vector<std::uint32_t> keys(values.size());  // they grow as values fall; the same for 0 and -0
  for (std::size_t i = 0; i < keys.size(); ++i) {
    auto const bits = std::bit_cast<std::uint32_t>(values[i] + 0.0F);
    keys[i] = bits >> 31 != 0 ? bits : ~(bits | 0x80000000u);
  }
  std::vector<std::int32_t> sorted(order.size());
  constexpr int digit_bits = 8;
  for (int shift = 0; shift < 32; shift += digit_bits) {
    auto const digit = [&](std::int32_t i) {
      return keys[static_cast<std::size_t>(i)] >> shift & ((1u << digit_bits) - 1);
    };
    std::array<std::size_t, (1u << digit_bits) + 1> first{};
    for (std::int32_t const i : order) ++first[digit(i) + 1];
    std::partial_sum(first.begin(), first.end(), first.begin());
    for (std::int32_t const i : order) sorted[first[digit(i)]++] = i;
    order.swap(sorted);
  }
}

/// The positions of a sweep.
struct column_order {
  std::vector<std::int32_t> columns;  ///< original column of each position
  std::vector<std::int32_t> groups;   ///< of each position
  bool grids_on_the_way = false;      ///< a group's grid is found when the sweep reaches it, not beforehand
  bool stored = false;    ///< groups are runs of positions, not of original columns: the layer has the order
  bool searched = false;  ///< grids are searched for in the sweep's metric
  device_array<std::int32_t> columns_there;  ///< the same on the device
  device_array<std::int32_t> groups_there;

  /// What the options ask for.
  static column_order chosen(problem const& p, hessian_diagonal const& diagonal) {
    column_order order(p);
    if (p.options.act_order) sort_descending(diagonal.values, order.columns);
    order.grids_on_the_way = !p.options.static_groups && p.format.groups > 1;
    order.stored = p.options.act_order && order.grids_on_the_way && !diagonal.all_dead;
    order.upload(p);
    return order;
  }

  /// The largest diag(H) first, and grids that are found beforehand.
  static column_order by_diagonal(problem const& p, hessian_diagonal const& diagonal) {
    column_order order(p);
    sort_descending(diagonal.values, order.columns);
    order.searched = true;
    order.upload(p);
    return order;
  }

  /// Groups that count for most first, and within them columns that do; a group that is shorter comes last.
  static column_order group_aware(problem const& p, hessian_diagonal const& diagonal) {
    column_order order(p);
    index_t const size = p.format.group_columns;
    std::vector<float> largest(at(p.format.groups));  // diag(H) of each group
    for (index_t i = 0; i < p.columns; ++i) {
      largest[at(i / size)] = std::max(largest[at(i / size)], diagonal.values[at(i)]);
    }
    if (p.columns % size != 0) largest.back() = -1.0F;
    std::vector<std::int32_t> groups(at(p.format.groups));
    std::iota(groups.begin(), groups.end(), 0);
    sort_descending(largest, groups);
    std::vector<index_t> next(at(p.format.groups));  // position of a group's next column
    index_t first = 0;
    for (std::int32_t const group : groups) {
      next[at(group)] = first;
      first += std::min(size, p.columns - group * size);
    }
    std::vector<std::int32_t> sorted = order.columns;
    sort_descending(diagonal.values, sorted);
    for (std::int32_t const column : sorted) order.columns[at(next[at(column / size)]++)] = column;
    order.grids_on_the_way = true;
    order.searched = true;
    order.upload(p);
    return order;
  }

 private:
  explicit column_order(problem const& p) : columns(at(p.columns)), groups(at(p.columns)) {
    std::iota(columns.begin(), columns.end(), 0);
  }

  /// The vectors stay: copies may be made later.
  void upload(problem const& p) {
    for (index_t i = 0; i < p.columns; ++i) {
      groups[at(i)] =
          static_cast<std::int32_t>((stored ? i : index_t{columns[at(i)]}) / p.format.group_columns);
    }
    columns_there = device_array<std::int32_t>(p.ctx, p.columns);
    columns_there.upload(columns.data());
    groups_there = device_array<std::int32_t>(p.ctx, p.columns);
    groups_there.upload(groups.data());
  }
};

}  // namespace gptq::cuda::detail
