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
// Inputs that were zero on every token ("dead") say nothing about their weights: these become zero, as in the
// published code, and the report counts them. Where all inputs are dead there is nothing to go by: whatever
// the quality, the layer is then rounded to nearest, and the report's dead_columns are all its columns.
//
// A translation unit that quantizes takes some seconds to compile, most of them for the solver. For several
// of them, compile the solver once: gptq_solver() in CMake (README.md), or linalg/compiled_once.hpp.
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

/// Quantizes weight[out, in] by GPTQ. Memory besides the arguments: a copy of the weight (none if it is moved
/// in: it is overwritten), a K x K float matrix, N x 4 block_size floats (N x group size where groups whose
/// grids are found on the way are larger than that), and the result. Quality fast takes a copy of the weight
/// and of the codes more, best two of the weight, and both another square matrix as wide as a group, where
/// that is more than a block.
/// @param held_out  Hessian of other tokens, to report the error on them; may be null. Quality fast and best
///   give back what quality plain makes of the layer with act-order, best also with the mse search and static
///   groups, if that has the smaller error on them; and best chooses the damping by it, out of the given one,
///   10 and 100 times as much, at most 1. The error they report is then of tokens that they have chosen by
/// @throws gptq::error when shapes do not agree, a weight or Hessian entry is not finite (naming it), a
///   Hessian has seen no tokens, an option is out of range, a scale does not fit its type, or H is not
///   positive definite even with damping 1
template <storage_format Format>
quantized_layer<Format> quantize(Eigen::Ref<matrix const> const& weight, hessian const& h,
                                 quantize_options const& options = {}, hessian const* held_out = nullptr) {
  return quantize<Format>(matrix(weight), h, options, held_out);
}
/// The same for a `matrix` that is moved in, and for nothing that would first have to become one.
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
/// Each result is what quantize() makes of that weight alone, bit for bit; but H is factorized once for all
/// of them (with quality best once for each damping it tries), except by quality reference, which is as it
/// was published. All weights are checked before the first one is quantized. Memory: as for the largest one,
/// and 1 (plain), 2 (fast) or up to 5 (best) K x K float matrices, which stay until the last one is done.
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
template <storage_format Format>
std::vector<quantized_layer<Format>> quantize(std::initializer_list<Eigen::Ref<matrix const>> weights,
                                              hessian const& h, quantize_options const& options = {},
                                              hessian const* held_out = nullptr) {
  return quantize<Format>(std::span(weights.begin(), weights.size()), h, options, held_out);
}

/// Quantizes every weight to its nearest level; of the options, only those of the grid matter. The errors
/// under `h`, and under `held_out`, are reported where they are given. Throws as quantize().
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
