// GPTQ of all decoder layers of a model on a device, which the activations of its calibration text never
// leave.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layer_stream.hpp"

namespace lm::device {

/// The part of a model that is the same for every decoder layer.
struct model_source {
  index_t layers = 0;
  index_t hidden = 0;
  host_matrix embedding;  ///< [vocabulary, hidden]
  float embedding_multiplier = 1.0F;
  std::vector<rope_table> ropes;
  /// A decoder layer; called from another thread.
  std::function<layer_source(index_t layer)> load;
  // For the loss and for logits:
  std::vector<float> final_norm;
  float epsilon = 0.0F;
  host_matrix output;  ///< [vocabulary, hidden]
  std::optional<packed_source>
      packed_output;  ///< in place of output.data, where packed weights are asked for
  float logit_multiplier = 1.0F;
  float logit_soft_cap = 0.0F;
};

/// Tokens of some windows of the same length, one after another.
struct token_windows {
  std::vector<std::int32_t> tokens;
  index_t length = 0;

  index_t count() const { return length == 0 ? 0 : static_cast<index_t>(tokens.size()) / length; }
};

/// A linear layer when it is quantized.
struct linear_result {
  index_t layer = 0;
  stage at{};
  std::size_t number = 0;  ///< of the stage's linear layers
  bool last = false;       ///< of its decoder layer
  /// Calibration tokens that were routed to an expert; -1: it is none's.
  double expert_tokens = -1.0;
  std::string name;
  index_t out = 0;
  index_t in = 0;
  host_layer codes;
  gptq::quantize_report report;
  double propagated = 0.0;  ///< the strength with which the weight was compensated
  /// Of the layer's output on the sample, with inputs in int8 as well, as report.output_error is; NaN where
  /// nothing was sampled.
  double int8_error = gptq::quantize_report::not_measured;
  std::vector<float> weights;  ///< some of the original ones
  std::vector<float> inputs;   ///< some of the sample's activations
  std::shared_ptr<void> made;  ///< what calibration::finish has made of it
};

struct calibration {
  gptq::format_spec format;
  gptq::quantize_options options;
  number activations = number::bfloat16;
  /// Each stage sees those before it quantized: one forward pass. Otherwise every stage's input comes from
  /// the unquantized layer, which is run once more when it is quantized.
  bool true_sequential = false;
  index_t calibrating = 0;  ///< windows; those after them are held out
  /// Has each weight make up for what the quantized layers before have done to its inputs (gptq/input_error.hpp),
  /// with this strength, or the best one up to it for held-out windows. Not with a layer that is finished.
  std::optional<double> propagate;
  std::vector<std::int64_t>
      sample;  ///< tokens whose inputs are looked at, in order, counted over all windows
  /// Some of `count` numbers, in order: what to look at of a matrix.
  std::function<std::vector<std::int64_t>(index_t count)> some_of;
  /// Bytes that a batch of windows may take between the stages.
  std::size_t batch_bytes = std::size_t{4} << 30;

  /// Whatever is to be made of a result on the host, such as packing; from any thread, several at a time.
  std::function<void(linear_result&)> finish = [](linear_result&) {};
  /// The linear layers of a stage are quantized and finished; from another thread, stage by stage.
  std::function<void(std::vector<linear_result>&&)> done = [](auto&&) {};
  /// So many windows have passed a decoder layer.
  std::function<void(index_t windows)> advance = [](index_t) {};
};

/// Throws gptq::error naming the linear layer that cannot be quantized, or what does not fit into the
/// device's memory: the residual of all windows in float32 and, where true_sequential, the inputs of two
/// stages; besides two decoder layers, the Hessian of one stage (four without true_sequential; as much
/// again for held-out windows), what quantizing takes, and batch_bytes.
void calibrate(accelerator& on, model_source const& model, token_windows const& windows,
               calibration const& how);

/// The mean negative log-likelihood of each window's tokens but its first, given those before it in the
/// window.
/// @param advance  called with the windows that have passed a decoder layer, or the output layer
double mean_loss(accelerator& on, model_source const& model, token_windows const& windows, number activations,
                 std::function<void(index_t windows)> const& advance,
                 std::size_t batch_bytes = std::size_t{4} << 30);

/// The same with activations of float16 and linear layers as model.load gives them, packed.
double packed_mean_loss(accelerator& on, model_source const& model, token_windows const& windows,
                        std::function<void(index_t windows)> const& advance,
                        std::size_t batch_bytes = std::size_t{4} << 30);

}  // namespace lm::device
