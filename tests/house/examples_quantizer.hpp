// What the examples in the heads of the quantizer's headers take for granted.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gptq/gptq.hpp>

using q4 = gptq::format<gptq::asymmetric, 4, 128>;
extern gptq::index_t in_features;
extern std::vector<gptq::matrix> calibration;
extern gptq::matrix weight, wq, wk, wv;
extern gptq::hessian h;

namespace input_error_hpp {
extern gptq::index_t sequences;
extern std::vector<gptq::matrix> x, quantized_x;
}  // namespace input_error_hpp

namespace observer_hpp {
struct quantized {
  std::string name;
  std::shared_ptr<gptq::hessian const> h;
  gptq::quantized_layer<q4> layer;
  gptq::index_t bytes;
};
extern std::vector<quantized> quantized_layers;
gptq::matrix load(std::string const& name);
struct result {
  gptq::quantize_report report;
  gptq::index_t bytes;
};
auto const quantize = [](gptq::matrix&& w, gptq::hessian const& hessian, gptq::format_spec const&) {
  auto const layer = gptq::quantize<q4>(std::move(w), hessian);
  return result{layer.report, gptq::pack(layer).bytes()};
};
auto const accept = [](std::string const&, result&&) {};
}  // namespace observer_hpp
