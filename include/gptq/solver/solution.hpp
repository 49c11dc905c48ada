// What a solver makes of a layer: codes, grids and order without the format's type.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <gptq/layer.hpp>
#include <gptq/linalg/strips.hpp>
#include <gptq/solver/problem.hpp>

namespace gptq::solver {

struct solution {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> order;
  float matrix_scale = 1.0F;  ///< what scales of type e4m3 are multiples of
  quantize_report report;

  solution(index_t rows, index_t columns, format_values const& format)
      : codes(static_cast<std::size_t>(rows * columns)),
        scales(static_cast<std::size_t>(rows * format.groups)),
        zeros(format.levels.has_zero_point ? scales.size() : 0),
        matrix_scale(format.grids.matrix_scale),
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
quantized_layer<Format> as_layer(solution&& s, index_t out, index_t in) {
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  layer.codes = std::move(s.codes);
  layer.scales = std::move(s.scales);
  layer.matrix_scale = s.matrix_scale;
  layer.zeros = std::move(s.zeros);
  layer.order = std::move(s.order);
  layer.report = s.report;
  return layer;
}

class stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(clock::now() - start_).count(); }

 private:
  using clock = std::chrono::steady_clock;
  clock::time_point start_ = clock::now();
};

inline double decibels(double relative_error) { return -10.0 * std::log10(relative_error); }

/// noise / signal; not measured where the outputs are all zero, so that no number relates to them.
inline double relative_error(double noise, double signal) {
  return signal > 0.0 ? noise / signal : quantize_report::not_measured;
}

/// The grids of all groups of weights[rows, columns] in original column order.
GPTQ_SOLVER_FUNCTION void find_all_grids(linalg::view weight, format_values const& format, int threads,
                                         solution& result);

#if !defined(GPTQ_SOLVER_ELSEWHERE)
GPTQ_SOLVER_FUNCTION void find_all_grids(linalg::view weight, format_values const& format, int threads,
                                         solution& result) {
  linalg::for_strips(weight.rows, threads, [&](index_t first_row, index_t rows) {
    for (index_t row = first_row; row < first_row + rows; ++row) {
      for (index_t group = 0; group < format.groups; ++group) {
        index_t const first = group * format.group_columns;
        auto const columns = static_cast<std::size_t>(std::min(format.group_columns, weight.columns - first));
        result.set_grid(row, group, format.find({&weight(row, first), columns}));
      }
    }
  });
}
#endif

}  // namespace gptq::solver
