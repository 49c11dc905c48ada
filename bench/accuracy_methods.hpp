// The ways of quantizing that bench_accuracy compares, in any of its formats.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <gptq/format_spec.hpp>
#include <gptq/hessian.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>
#include <gptq/solver/problem.hpp>

namespace accuracy {

struct method {
  std::string name;
  std::string what;
  gptq::quantize_options options;
  gptq::solver::recipe how = gptq::solver::recipe_for(options.quality);  ///< or only a part of it
  bool nearest = false;  ///< round to nearest instead, with the options' grids
};

/// Baselines first.
std::span<method const> methods();

struct quantized {
  gptq::matrix decoded;  ///< [out, in], from the packed bytes
  gptq::quantize_report report;
  double least_loss;  ///< of any codes with these scales (accuracy_limit.hpp)
};

/// Quantizes and packs a weight and decodes what was packed.
/// @param held_out  for methods that choose by tokens they have not been calibrated on; may be null
/// @throws gptq::error when the format is not compiled into this program
quantized quantize(gptq::format_spec const& format, method const& how, gptq::matrix const& weight,
                   gptq::hessian const& h, gptq::hessian const* held_out);

}  // namespace accuracy
