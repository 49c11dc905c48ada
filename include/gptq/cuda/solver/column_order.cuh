// The order in which columns are quantized.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cuda_runtime.h>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/problem.cuh>

namespace gptq::cuda::detail {

/// Sorts `order`, 0, 1, ..., by values[order], stably. By digits, since the device waits for it.
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

[[noreturn]] inline void throw_not_finite(index_t row, index_t column, float value) {
  throw error("quantize: entry (" + std::to_string(row) + ", " + std::to_string(column) +
              ") of the hessian is " + std::to_string(value));
}

/// The positions of a sweep, and what decides them.
struct column_order {
  device_array<float> diagonal;  ///< [columns] of S; where all inputs are dead, ones
  index_t dead_columns = 0;
  bool all_dead = false;
  double dead_diagonal = 0.0;                ///< what a dead input counts as: the mean of the others
  std::vector<std::int32_t> columns;         ///< original column of each position
  std::vector<std::int32_t> groups;          ///< of each position; here, because copies may be made later
  device_array<std::int32_t> columns_there;  ///< the same on the device
  device_array<std::int32_t> groups_there;

  explicit column_order(problem const& p) : diagonal(p.ctx, p.columns) {
    check(cudaMemcpy2DAsync(diagonal.data(), sizeof(float), p.h.sum(), at(p.columns + 1) * sizeof(float),
                            sizeof(float), at(p.columns), cudaMemcpyDeviceToDevice, p.ctx.stream()),
          "copying a diagonal");
    std::vector<float> host(at(p.columns));
    diagonal.download(host.data());
    double sum = 0.0;
    for (index_t i = 0; i < p.columns; ++i) {
      float const d = host[at(i)];
      if (!std::isfinite(d)) throw_not_finite(i, i, d);
      if (d == 0.0F) ++dead_columns;
      sum += static_cast<double>(d) * p.h.scale();
    }
    all_dead = dead_columns == p.columns;
    // A dead input counts as an average one, so that no choice of unit for the activations matters.
    dead_diagonal = all_dead ? 1.0 : sum / static_cast<double>(p.columns - dead_columns);
    // Nothing is passed on then, and no weight becomes zero: all are rounded to nearest.
    if (all_dead) {
      std::vector<float> const ones(at(p.columns), 1.0F);
      diagonal.upload(ones.data());
      p.ctx.synchronize();  // the copy may be made later
    }
    columns.resize(at(p.columns));
    std::iota(columns.begin(), columns.end(), 0);
    if (p.options.act_order) sort_descending(host, columns);
    columns_there = device_array<std::int32_t>(p.ctx, p.columns);
    columns_there.upload(columns.data());
    groups.resize(at(p.columns));
    for (index_t i = 0; i < p.columns; ++i) {
      groups[at(i)] = static_cast<std::int32_t>((p.dynamic_groups() ? i : index_t{columns[at(i)]}) /
                                                p.format.group_columns);
    }
    groups_there = device_array<std::int32_t>(p.ctx, p.columns);
    groups_there.upload(groups.data());
  }
};

}  // namespace gptq::cuda::detail
