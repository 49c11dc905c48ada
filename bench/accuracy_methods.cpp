#include "accuracy_methods.hpp"

#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>

namespace accuracy {
namespace {

using formats =
    gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>,
                       gptq::bit_widths<2, 3, 4>, gptq::group_sizes<32, 96, 128, gptq::whole_row>>;

}  // namespace

std::span<method const> methods() {
  static std::vector<method> const all{
      {"A", "the published default: act-order, range of the weights", {.act_order = true, .reference = true}},
      {"B",
       "the published best: static act-order, mse search",
       {.mse = true, .act_order = true, .static_groups = true, .reference = true}},
  };
  return all;
}

quantized quantize(gptq::format_spec const& format, method const& how, gptq::matrix const& weight,
                   gptq::hessian const& h, gptq::hessian const* held_out) {
  return gptq::with_format<formats>(format, [&]<class Format>() -> quantized {
    auto const layer = gptq::quantize<Format>(weight, h, how.options, held_out);
    auto const packed = gptq::pack(layer);
    quantized result{gptq::matrix(weight.rows(), weight.cols()), layer.report};
    gptq::dequantize(packed.view(), result.decoded.data());
    return result;
  });
}

}  // namespace accuracy
