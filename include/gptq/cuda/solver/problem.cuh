// What is to be solved: layers that share an input, with the checks of a request, and its solution.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/hessian.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/solver/sweep.cuh>
#include <gptq/format.hpp>
#include <gptq/grid.hpp>
#include <gptq/layer.hpp>
#include <gptq/solver/grid_steps.hpp>
#include <gptq/solver/recipe.hpp>

namespace gptq::cuda::detail {

/// A format as values: the solver is compiled once.
struct sweep_format {
  code_levels levels;
  grid_options grids;
  int bits;
  index_t group_columns;
  index_t groups;

  gptq::solver::grid_rules rules() const { return {levels, grids, bits, false}; }
};

template <storage_format Format>
sweep_format format_values(index_t in, quantize_options const& options) {
  return {Format::levels,
          {options.grid, options.mse, false, Format::scales},
          Format::bits,
          Format::group_columns(in),
          Format::groups(in)};
}

inline void check_request(std::span<weight_view const> weights, hessian const& h, code_levels const& levels,
                          quantize_options const& options) {
  if (weights.empty()) throw invalid_argument("quantize: no layers");
  index_t rows = 0;
  for (weight_view const& w : weights) {
    if (w.out <= 0) {
      throw invalid_argument("quantize: a weight of " + std::to_string(w.out) + " rows");
    }
    if (w.data == nullptr) throw invalid_argument("quantize: a weight is a null pointer");
    rows += w.out;
  }
  constexpr index_t most = 1 << 28;
  if (rows > most || h.in_features() > 200 * 1024) {
    throw invalid_argument("quantize: " + std::to_string(rows) + " x " + std::to_string(h.in_features()) +
                           " is beyond what is supported: 2^28 rows, 204800 columns");
  }
  if (h.sequences() == 0) throw invalid_argument("quantize: the hessian has seen no activations");
  if (options.quality == quality::reference) {
    throw invalid_argument(
        "quantize: quality reference is gptq::quantize's; on the GPU there are plain, fast and best");
  }
  try {
    check_grid_rule(options.grid, levels);
  } catch (error const& e) {
    throw invalid_argument(e.what());
  }
  if (!(options.damping >= 0.0) || !std::isfinite(options.damping)) {
    throw invalid_argument("quantize: damping is " + std::to_string(options.damping) +
                           ", not a finite number >= 0");
  }
}

/// The rows of all layers one after the other.
struct problem {
  std::span<weight_view const> weights;
  std::vector<index_t> first_rows;  ///< of each layer, and after the last one
  hessian const& h;
  context& ctx;
  sweep_format format;
  quantize_options options;
  device gpu = device::current();
  index_t columns;
  index_t ld;    ///< of matrices of the sweep: columns rounded up to 8
  index_t rows;  ///< of all layers

  /// Throws invalid_argument.
  problem(std::span<weight_view const> given, hessian const& of_input, sweep_format const& values,
          quantize_options const& chosen)
      : weights(given),
        h(of_input),
        ctx(of_input.context()),
        format(values),
        options(chosen),
        columns(of_input.in_features()),
        ld((columns + 7) / 8 * 8) {
    check_request(given, of_input, values.levels, chosen);
    first_rows.push_back(0);
    for (weight_view const& w : weights) first_rows.push_back(first_rows.back() + w.out);
    rows = first_rows.back();
  }

  /// Calls visit(weight, its first row).
  template <class Visit>
  void visit_weights(Visit&& visit) const {
    for (std::size_t layer = 0; layer < weights.size(); ++layer) visit(weights[layer], first_rows[layer]);
  }
};

inline std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
inline unsigned grid_size(index_t blocks) { return static_cast<unsigned>(blocks); }

/// Codes, grids and order without the format's type, of all rows.
struct solution {
  device_array<std::uint8_t> codes;
  device_array<float> scales;
  device_array<std::uint8_t> zeros;  ///< empty without a stored zero point
  std::vector<std::int32_t> order;
  std::vector<quantize_report> reports;  ///< of each layer
};

/// Some rows of a solution.
inline void download_rows(solution const& s, index_t first, index_t rows, index_t columns, index_t groups,
                          std::vector<std::uint8_t>& codes, std::vector<float>& scales,
                          std::vector<std::uint8_t>& zeros) {
  codes.resize(at(rows * columns));
  scales.resize(at(rows * groups));
  zeros.resize(s.zeros.size() == 0 ? 0 : scales.size());
  s.codes.download(codes.data(), first * columns, rows * columns);
  s.scales.download(scales.data(), first * groups, rows * groups);
  if (!zeros.empty()) s.zeros.download(zeros.data(), first * groups, rows * groups);
}

}  // namespace gptq::cuda::detail
