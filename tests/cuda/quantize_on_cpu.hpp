// The same layers on the CPU, behind a header without Eigen.
#pragma once

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

/// What a layer is quantized with.
struct layer_input {
  index_t out;
  index_t in;
  std::vector<float> weight;       ///< [out, in]
  std::vector<float> activations;  ///< [tokens, in], one sequence
};

/// S of hessian.hpp, of which the lower triangle by columns is there.
std::vector<float> sum_on_cpu(layer_input const& input);

/// For the formats above.
template <class Format>
gptq::quantized_layer<Format> quantize_on_cpu(layer_input const& input,
                                              gptq::quantize_options const& options);

}  // namespace test
