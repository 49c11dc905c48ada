#include "accuracy_methods.hpp"

#include <gptq/code_books.hpp>
#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>

#include "accuracy_limit.hpp"

namespace accuracy {
namespace {

using uniform_formats =
    gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>,
                       gptq::bit_widths<2, 3, 4>, gptq::group_sizes<32, 96, 128, gptq::whole_row>>;
using code_books =
    gptq::format_list<gptq::mxfp4, gptq::nvfp4, gptq::format<gptq::iq4_nl_levels, 4, 32>,
                      gptq::format<gptq::nf4_levels, 4, 32>, gptq::format<gptq::fixed_zero, 4, 16>>;
using formats = gptq::detail::concatenation<uniform_formats, code_books>::type;

}  // namespace

std::span<method const> methods() {
  using enum gptq::quality;
  static std::vector<method> const all{
      {"A",
       "the published default: act-order, range of the weights",
       {.quality = reference, .act_order = true}},
      {"B",
       "the published best: static act-order, mse search",
       {.quality = reference, .mse = true, .act_order = true, .static_groups = true}},
      {"fast", "the library's default", {fast}},
      {"best", "the library's best", {.quality = best, .act_order = true}},
      {"nearest", "rounded to nearest, published grids", {.quality = plain}, {}, true},
      {"nearest mse", "the same with the mse search", {.quality = plain, .mse = true}, {}, true},
      // What each part contributes, one more at a time.
      {"search", "static act-order, grids in the metric of the sweep", {.quality = fast}, {.search = true}},
      {"group-aware",
       "and another sweep in group-aware order",
       {.quality = fast},
       {.search = true, .group_aware = true}},
      {"pass 1",
       "and a pass of coordinate descent",
       {.quality = fast},
       {.search = true, .group_aware = true, .passes = 1}},
      {"one order",
       "the default without group-aware order",
       {.quality = fast},
       {.search = true, .passes = 2}},
      {"pass 10",
       "the default with ten passes",
       {.quality = fast},
       {.search = true, .group_aware = true, .passes = 10}},
      {"rounds 2",
       "scales fitted and swept again twice, four passes",
       {.quality = fast},
       {.search = true, .group_aware = true, .rounds = 2, .passes = 4}},
      {"beam 6",
       "the second of these with a beam of 6",
       {.quality = fast},
       {.search = true, .group_aware = true, .rounds = 2, .beam = 6, .passes = 4}},
      {"damping 0.1", "the default with more damping", {.quality = fast, .damping = 0.1}},
      {"damping 1", "with as much as there is", {.quality = fast, .damping = 1.0}},
      // The published best with the damping alone chosen on held-out tokens.
      {"B damping",
       "the published best, damping chosen",
       {.quality = plain, .mse = true, .act_order = true, .static_groups = true},
       {.choose_damping = true}},
  };
  return all;
}

quantized quantize(gptq::format_spec const& format, method const& how, gptq::matrix const& weight,
                   gptq::hessian const& h, gptq::hessian const* held_out) {
  return gptq::with_format<formats>(format, [&]<class Format>() -> quantized {
    auto const values = gptq::solver::describe<Format>(weight.cols(), how.options);
    auto const layer = gptq::solver::as_layer<Format>(
        how.nearest ? gptq::solver::round_checked(weight, values, how.options, &h, held_out)
                    : gptq::solver::solve(gptq::matrix(weight), h, values, how.options, how.how, held_out),
        weight.rows(), weight.cols());
    auto const packed = gptq::pack(layer);
    quantized result{
        gptq::matrix(weight.rows(), weight.cols()), layer.report,
        least_loss(layer.scales, layer.out, Format::group_columns(layer.in), h, layer.report.damping)};
    gptq::dequantize(packed.view(), result.decoded.data());
    return result;
  });
}

}  // namespace accuracy
