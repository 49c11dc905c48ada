// Quantizing all linear layers of a model, one decoder layer after the other.
#pragma once

#include <functional>
#include <span>
#include <string>

#include "linear.hpp"
#include "model.hpp"
#include "tokens.hpp"

namespace llama {

struct quantization {
  quantizer quantize;
  /// Within a decoder layer, collect the inputs of a stage after the stages before it are quantized.
  /// Otherwise all inputs come from the unquantized decoder layer, and it runs once more when it is
  /// quantized.
  bool true_sequential = false;
  int threads = 0;  ///< 0: one a core
};

/// What became of one linear layer.
struct linear_report {
  std::string name;  ///< "model.layers.0.self_attn.q_proj"
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::ptrdiff_t packed_bytes = 0;
  gptq::quantize_report quality;
};

/// Replaces every linear layer of every decoder layer by its packed form. The inputs of a decoder layer are
/// the outputs of the quantized ones before it, on the calibration windows, each of which is one sequence of
/// the Hessians. In float32 at a time: the activations of all windows (with true_sequential twice: the
/// residual, and the input of a stage), one decoder layer, and the Hessian of one stage (without
/// true_sequential: of four).
/// @param done     called for each linear layer, in the order in which they are quantized
/// @param advance  called windows.size() times for each decoder layer, from any thread
/// @throws gptq::error naming the linear layer that cannot be quantized
void quantize_model(
    model& m, std::span<token_window const> windows, quantization const& how,
    std::function<void(linear_report const&)> const& done, std::function<void()> const& advance = [] {});

}  // namespace llama
