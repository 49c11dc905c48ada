// GPTQ and round-to-nearest quantization of a linear layer, or of several that have the same inputs.
//
//   using q4 = gptq::format<gptq::symmetric, 4, 128>;
//   gptq::quantized_layer<q4> layer = gptq::quantize<q4>(weight, h, {.act_order = true});
//   std::vector<gptq::quantized_layer<q4>> qkv = gptq::quantize<q4>({wq, wk, wv}, h);  // one factorization
//
// weight[out, in] is a gptq::matrix, or anything of Eigen's that can be read as one; h is a gptq::hessian of
// the inputs.
//
// GPTQ: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
// Pre-trained Transformers", 2022. How it is computed: solver/sweep.hpp. What qualities fast and best do
// beyond it: options.hpp.
//
// Inputs that were zero on every token ("dead") say nothing about their weights. These are set to 0, as in the
// published code (half_step has no level at 0 and takes the one nearest to it), and the report counts them. Where all inputs are dead there is nothing to go by: whatever the quality, the layer is
// then rounded to nearest, and the report's dead_columns are all its columns.
//
// A translation unit that quantizes takes ten seconds or more to compile, most of them for the solver. For
// several of them, compile the solver once: gptq_solver() in CMake (README.md), or linalg/compiled_once.hpp.
#pragma once

#include <concepts>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <gptq/format.hpp>
#include <gptq/hessian.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>
#include <gptq/solver/choose.hpp>

namespace gptq {

/// Quantizes weight[out, in] by GPTQ. Memory besides the arguments, for N outputs and K inputs:
///   any quality   the result; a copy of the weight (none if it is moved in: it is overwritten); K x K floats;
///                 N x 4 block_size floats, or N x group size where grids are found during the sweep and a
///                 group is larger than that
///   fast          also a copy of the weight and one of the codes
///   best          also two copies of the weight and one of the codes
///   fast, best    also group size x group size floats, where a group is larger than 256 columns
/// @param held_out  Hessian of tokens that are not in h; may be null. The error on them is reported, and
///   quality fast and best make choices by it, so that it is then the error of tokens chosen by:
///     fast   the result is that of quality plain with act-order (and with static groups, unless the options
///            ask for act_order without them) where this has the smaller error
///     best   the same, and also that of quality plain with act-order, static groups and the mse search; and
///            the damping is the best of options.damping and 10 and 100 times as much, none above 1
/// @throws gptq::error when shapes do not agree, a weight or Hessian entry is not finite (naming it), a
///   Hessian has seen no tokens, an option is out of range, a scale does not fit its type, or H is not
///   positive definite even with damping 1
template <storage_format Format>
quantized_layer<Format> quantize(Eigen::Ref<matrix const> const& weight, hessian const& h,
                                 quantize_options const& options = {}, hessian const* held_out = nullptr) {
  return quantize<Format>(matrix(weight), h, options, held_out);
}
/// The same for a `matrix` that is moved in, which saves the copy. Takes a `matrix` only: anything else would have
/// to be copied into one, which the overload above does.
template <storage_format Format, std::same_as<matrix> Weight>
quantized_layer<Format> quantize(Weight&& weight, hessian const& h, quantize_options const& options = {},
                                 hessian const* held_out = nullptr) {
  index_t const out = weight.rows();
  index_t const in = weight.cols();
  return solver::as_layer<Format>(
      solver::quantize_checked(std::forward<Weight>(weight), h, solver::describe<Format>(in, options),
                               options, held_out),
      out, in);
}

/// Quantizes several weights of layers that have the same inputs, [out, in] each: q, k and v; gate and up.
/// Each result is what quantize() makes of that weight alone, bit for bit. H is factorized once for all of
/// them; with quality best, once for each damping that it tries; with quality reference, for every weight, as
/// the published code does. All weights are checked before the first one is quantized. Memory: as for the
/// largest one, and 1 (plain), 2 (fast) or up to 5 (best) K x K float matrices, which stay until the last one
/// is done.
template <storage_format Format>
std::vector<quantized_layer<Format>> quantize(std::span<Eigen::Ref<matrix const> const> weights,
                                              hessian const& h, quantize_options const& options = {},
                                              hessian const* held_out = nullptr) {
  std::vector<quantized_layer<Format>> layers;
  solver::shared_factors factors;
  for (auto const& weight : weights) solver::check_weight(weight, h.in_features());
  for (auto const& weight : weights) {
    layers.push_back(solver::as_layer<Format>(
        solver::quantize_checked(matrix(weight), h, solver::describe<Format>(weight.cols(), options), options,
                                 held_out, &factors),
        weight.rows(), weight.cols()));
  }
  return layers;
}
/// The same for a list in braces.
template <storage_format Format>
std::vector<quantized_layer<Format>> quantize(std::initializer_list<Eigen::Ref<matrix const>> weights,
                                              hessian const& h, quantize_options const& options = {},
                                              hessian const* held_out = nullptr) {
  return quantize<Format>(std::span(weights.begin(), weights.size()), h, options, held_out);
}

/// Quantizes every weight to its nearest level; of the options only grid, mse, threads and whether the quality is
/// reference (see grid_options::published_defects) matter, but all are checked.
/// The errors under `h`, and under `held_out`, are reported where they are given. Throws as quantize().
template <storage_format Format>
quantized_layer<Format> round_to_nearest(Eigen::Ref<matrix const> const& weight,
                                         quantize_options const& options = {}, hessian const* h = nullptr,
                                         hessian const* held_out = nullptr) {
  return solver::as_layer<Format>(
      solver::round_checked(weight, solver::describe<Format>(weight.cols(), options), options, h, held_out),
      weight.rows(), weight.cols());
}

/// The weights that a layer's codes stand for, [out, in] in original column order.
template <storage_format Format>
matrix dequantize(quantized_layer<Format> const& layer) {
  return solver::decode(layer.codes, layer.scales, layer.zeros, layer.order, Format::levels, layer.out,
                        layer.in, Format::group_columns(layer.in));
}

/// tr(D S D') / tr(W S W') for D = weight - approximation, [out, in] both: the relative squared error of the
/// outputs on the tokens of `h`; NaN where the outputs are all zero. Throws gptq::error when shapes do not
/// agree.
inline double output_error(Eigen::Ref<matrix const> const& weight,
                           Eigen::Ref<matrix const> const& approximation, hessian const& h, int threads = 0) {
  return solver::relative_output_error(weight, approximation, h, threads);
}

}  // namespace gptq
