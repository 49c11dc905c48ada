// Groups of columns as act-order checkpoints name them: the group of each column.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <gptq/config.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

/// The columns group by group, in their own order within a group; empty where that is their own order.
/// @param g_idx  [in] int32, at any address
/// @param name   of g_idx, for errors
/// @throws gptq::error unless each group has `group_columns` columns, the last one those that are left
inline std::vector<std::int32_t> column_order(std::span<std::byte const> g_idx, index_t in,
                                              index_t group_columns, index_t groups,
                                              std::string const& name) {
  std::vector<std::int32_t> group(static_cast<std::size_t>(in));
  std::memcpy(group.data(), g_idx.data(), g_idx.size());
  std::vector<index_t> count(static_cast<std::size_t>(groups));
  for (index_t column = 0; column < in; ++column) {
    std::int32_t const g = group[static_cast<std::size_t>(column)];
    if (g < 0 || g >= groups) {
      throw error(name + " of column " + std::to_string(column) + " is " + std::to_string(g) +
                  ", but there are " + std::to_string(groups) + " groups");
    }
    ++count[static_cast<std::size_t>(g)];
  }
  for (index_t g = 0; g < groups; ++g) {
    index_t const expected = std::min(group_columns, in - g * group_columns);
    if (count[static_cast<std::size_t>(g)] != expected) {
      throw error(name + " gives group " + std::to_string(g) + " " +
                  std::to_string(count[static_cast<std::size_t>(g)]) + " columns, not " +
                  std::to_string(expected));
    }
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(in));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return group[static_cast<std::size_t>(a)] < group[static_cast<std::size_t>(b)];
  });
  if (std::is_sorted(order.begin(), order.end())) order.clear();
  return order;
}

}  // namespace gptq::checkpoint::detail
