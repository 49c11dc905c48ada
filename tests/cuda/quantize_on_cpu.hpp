// The same layers on the CPU, behind a header without Eigen.
#pragma once

#include <cstdint>
#include <vector>

#include <gptq/format.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>

#include "support.hpp"

namespace test {

/// Schemes, widths, groups inside a block of 128 columns, as large as one, larger, and whole rows; groups
/// that do not divide a block; both types of scales.
using cuda_formats =
    gptq::format_list<gptq::format<gptq::symmetric, 4, 128>, gptq::format<gptq::asymmetric, 4, 32>,
                      gptq::format<gptq::fixed_zero, 3, 64>, gptq::format<gptq::half_step, 2, 128>,
                      gptq::format<gptq::asymmetric, 8, 256>, gptq::format<gptq::half_step, 4, 24>,
                      gptq::format<gptq::fixed_zero, 4, gptq::whole_row>,
                      gptq::format<five_levels, 3, 1024, float>>;

/// What a layer is quantized with: here and on the device the very same numbers.
struct layer_input {
  index_t out;
  index_t in;
  index_t tokens;               ///< in one sequence
  std::vector<float> weight;    ///< [out, in]
  std::vector<float> sum;       ///< S of hessian.hpp, of which the lower triangle by columns is there
  std::vector<float> held_out;  ///< likewise, of as many other tokens; empty: none
};

/// S of activations[tokens, in].
std::vector<float> sum_on_cpu(std::vector<float> const& activations, index_t in);

/// For the formats above.
template <class Format>
gptq::quantized_layer<Format> quantize_on_cpu(layer_input const& input,
                                              gptq::quantize_options const& options);

/// By rounding to nearest. For the formats above.
template <class Format>
gptq::quantized_layer<Format> round_on_cpu(layer_input const& input, gptq::quantize_options const& options);

/// What a sweep needs to know of the input, in float64.
struct exact_hessian {
  exact_hessian(layer_input const& input, gptq::quantize_options const& options);

  std::vector<std::int32_t> order;  ///< original column of each position
  double added_diagonal = 0.0;      ///< damping
  double dead_diagonal = 0.0;       ///< what a dead input counts as
  std::vector<double> damped;       ///< H in reversed order, [in, in]
  std::vector<double> factor;       ///< L of it, by columns
};

/// What float64 finds in a layer that was quantized elsewhere, given its codes and grids.
struct exact_findings {
  double loss;          ///< as quantize_report has it, from D H D' itself
  double output_error;  ///< likewise
  /// How much farther from w_now, which the codes before it decide, a code's level is than the nearest one,
  /// at most: in steps from one level to the next.
  double farthest = 0.0;
  int other_codes = 0;  ///< that are not the nearest ones: ties, as long as the farthest is close
  int wrong_grids =
      0;  ///< that do not come of the weights that their group has when the sweep has reached it
};

/// For the formats above; quality plain.
template <class Format>
exact_findings examine(layer_input const& input, exact_hessian const& h,
                       gptq::quantize_options const& options, gptq::quantized_layer<Format> const& layer);

}  // namespace test
