// GPTQ of linear layers on the GPU.
//
//   gptq::cuda::context ctx(stream);
//   gptq::cuda::hessian h(ctx, in_features);                        // hessian.cuh: h.add(...)
//   auto layers = gptq::cuda::quantize<q4>({{q, out}, {k, out}, {v, out}}, h);
//   auto layer = layers.host(0);                                    // a gptq::quantized_layer, for pack()
//
// The same codes as gptq::quantize with the same options, up to what rounding makes of a tie; with quality fast
// and best a tie may also be one of two grids, or of two orders of columns, for all of a row. How it is
// computed: solver/sweep.cuh, solver/beam.cuh and solver/descent.cuh.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/hessian.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/options.cuh>
#include <gptq/cuda/solver/choose.cuh>
#include <gptq/format.hpp>
#include <gptq/layer.hpp>

namespace gptq::cuda {

/// Layers of one input, quantized together, on the device.
template <storage_format Format>
class quantized_layers {
 public:
  index_t size() const { return static_cast<index_t>(layers_.size()); }
  index_t out(index_t layer) const { return at(layer).out; }
  index_t in() const { return in_; }
  /// On the device, laid out as in quantized_layer.
  std::uint8_t const* codes(index_t layer) const {
    return at(layer).found->codes.data() + first_row(layer) * in_;
  }
  float const* scales(index_t layer) const {
    return at(layer).found->scales.data() + first_row(layer) * Format::groups(in_);
  }
  /// Null without a stored zero point.
  std::uint8_t const* zeros(index_t layer) const {
    return Format::has_zero_point ? at(layer).found->zeros.data() + first_row(layer) * Format::groups(in_)
                                  : nullptr;
  }
  /// Original column of each stored one; empty: themselves.
  std::vector<std::int32_t> const& order(index_t layer) const { return at(layer).found->order; }
  /// The times are those of all layers together.
  quantize_report const& report(index_t layer) const { return at(layer).report; }

  /// Copied to the host; waits for the copies.
  quantized_layer<Format> host(index_t layer) const;

  /// What quantize() has found.
  quantized_layers(std::vector<detail::solved_layer>&& layers, index_t in)
      : layers_(std::move(layers)), in_(in) {}

 private:
  detail::solved_layer const& at(index_t layer) const { return layers_[static_cast<std::size_t>(layer)]; }
  index_t first_row(index_t layer) const { return at(layer).first_row; }

  std::vector<detail::solved_layer> layers_;
  index_t in_;
};

/// Quantizes the layers that share an input by GPTQ, together, with what h was made with, and waits until that
/// is done. The weights, [out, h.in_features()], stay as they are. Memory besides arguments and result, for N
/// rows in all layers together:
///   any quality   2 N K floats, N K bytes and K^2 floats (and N x group size floats where dynamic groups are
///                 larger than 128); or N K and K^2 floats and K^2 doubles, while H is factorized, where that is
///                 more
///   fast          also N K floats, N K bytes and, where groups are larger than 128, 2^27 floats or three times
///                 256 x group size
///   best          also N K and K^2 floats; with held-out tokens, codes and grids once more for each choice
/// Deterministic: the same bits in every run on the same kind of device.
///
/// Weights of inputs that were zero on every token become zero, and the report counts them; where all inputs
/// were, there is nothing to go by, and the layers are rounded to nearest.
///
/// @param held_out  Hessian of tokens that are not in h; may be null. The error on them is reported, and quality
///   fast and best make choices by it, for each layer, as gptq::quantize says
/// @throws invalid_argument when shapes do not agree or an option is out of range or not to be had here
///   (options.cuh: quality), gptq::error when a weight or Hessian entry is not finite (naming it), a scale
///   does not fit its type, or H is not positive definite even with damping 1; and as check() does
template <storage_format Format>
quantized_layers<Format> quantize(std::span<weight_view const> weights, hessian const& h,
                                  quantize_options const& options = {}, hessian const* held_out = nullptr) {
  static_assert(
      !requires(std::span<float const> w) { Format::scheme::find_grid(w, 0); },
      "gptq::cuda::quantize: a scheme with its own find_grid cannot be quantized on the GPU");
  static_assert(!Format::is_code_book, "gptq::cuda::quantize: code books cannot be quantized on the GPU");
  static_assert(Format::scales == scale_type::float16 || Format::scales == scale_type::float32,
                "gptq::cuda::quantize: scales are float16 or float on the GPU");
  index_t const in = h.in_features();
  detail::problem const problem(weights, h, detail::format_values<Format>(in, options), options);
  return {detail::solve_chosen(problem, held_out), in};
}

/// The same for a list in braces.
template <storage_format Format>
quantized_layers<Format> quantize(std::initializer_list<weight_view> weights, hessian const& h,
                                  quantize_options const& options = {}, hessian const* held_out = nullptr) {
  return quantize<Format>(std::span(weights.begin(), weights.size()), h, options, held_out);
}

template <storage_format Format>
quantized_layer<Format> quantized_layers<Format>::host(index_t layer) const {
  quantized_layer<Format> copy;
  copy.out = out(layer);
  copy.in = in_;
  detail::download_rows(*at(layer).found, first_row(layer), copy.out, in_, Format::groups(in_), copy.codes,
                        copy.scales, copy.zeros);
  copy.order = order(layer);
  copy.report = report(layer);
  return copy;
}

}  // namespace gptq::cuda
