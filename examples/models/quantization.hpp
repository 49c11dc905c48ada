// Quantizing all linear layers of a model, one decoder layer after the other.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gptq/observer.hpp>

#include "linear.hpp"
#include "model.hpp"
#include "plan.hpp"
#include "ranks.hpp"
#include "sample.hpp"
#include "tokens.hpp"

namespace lm {

/// Quantizing the worst layers again, when all are done (gptq/observer.hpp).
struct observation {
  std::size_t top_k = 32;
  std::filesystem::path spill_directory;    ///< for their Hessians; empty: in memory
  std::optional<std::int64_t> extra_bytes;  ///< a budget, in place of halving each layer's loss
};

struct quantization {
  quantizer quantize;
  /// Within a decoder layer, collect the inputs of a stage after the stages before it are quantized.
  /// Otherwise all inputs come from the unquantized decoder layer, and it runs once more when it is
  /// quantized.
  bool true_sequential = false;
  /// The last ones of the windows are not calibrated on: what is chosen is chosen by them.
  std::size_t held_out_windows = 0;
  /// Make up for what the quantized layers before have done to a layer's inputs (gptq/input_error.hpp): the
  /// strength, which held-out windows may lower. Not together with `observe`.
  std::optional<double> propagate;
  std::optional<observation> observe;
  int threads = 0;  ///< 0: one a core
  /// Who does it: each rank runs its share of the windows, and solves what make_plan() gives it.
  std::shared_ptr<ranks> world = alone();
  /// Windows are added up in window_shares::fixed shares, so that any number of ranks makes the same bytes.
  bool deterministic_reduction = false;
  /// Where all of it is computed (device/programs.hpp), with activations of this type; null: on the host.
  std::shared_ptr<device::accelerator> accelerator;
  device::number activations = device::number::float32;
};

/// What became of one linear layer.
struct linear_report {
  std::string name;  ///< "model.layers.0.self_attn.q_proj"
  std::int64_t out = 0;
  std::int64_t in = 0;
  gptq::format_spec format;
  std::ptrdiff_t packed_bytes = 0;
  gptq::quantize_report quality;
  double propagated = 0.0;  ///< the strength with which the weight was compensated
  /// Calibration tokens that were routed to an expert; -1: it is none's. Where they are fewer than `in`, all
  /// tokens of the decoder layer counted besides, with weights that add up to the difference.
  double expert_tokens = -1.0;
  /// Of the layer's output when its input is rounded to int8 as well, as the int8 kernels do. Measured
  /// against quality.output_error on a sample of tokens; not after a layer was quantized again.
  double int8_error = gptq::quantize_report::not_measured;
  double int8_snr_db = gptq::quantize_report::not_measured;
  quantiles weights{};  ///< of the original weight, from at most 65536 of them
  quantiles inputs{};   ///< of the sample's activations, likewise
};

class unfinished_run;

/// What quantize_model() tells of. Every function is optional; where a device does it all, they are called
/// from several threads, each by one at a time.
struct quantization_events {
  /// For each linear layer, in the order in which they are quantized.
  std::function<void(linear_report const&)> done = [](auto const&) {};
  /// What was tried on a layer that is quantized again, and its report where that made it better.
  std::function<void(gptq::refinement const&, linear_report const&)> refined = [](auto const&, auto const&) {
  };
  /// Where the time of a device went, which has done it all.
  std::function<void(device::time_account const&)> timed = [](auto const&) {};
  /// For each decoder layer as often as there are windows of this rank, from any thread.
  std::function<void()> advance = [] {};
};

/// How many of some windows are left to calibrate on. Throws gptq::error when none is.
std::size_t calibration_windows(std::size_t windows, quantization const& how);

/// The windows of this rank, those to calibrate on and those that are held out, counted from the first of
/// all.
struct own_windows {
  window_shares calibration;
  window_shares held_out;

  std::ptrdiff_t count() const { return calibration.mine().count + held_out.mine().count; }
};
own_windows find_own_windows(std::size_t windows, quantization const& how);

/// Who solves which linear layer of a decoder layer, by their place in the description. An expert has one
/// owner.
solving_plan make_plan(decoder_description const& description, quantization const& how);

/// Replaces every linear layer of every decoder layer by its packed form. The inputs of a decoder layer are
/// the outputs of the quantized ones before it, on the calibration windows, each of which is one sequence of
/// the Hessians. In float32 at a time: the activations of all windows (with true_sequential twice: the
/// residual, and the input of a stage), one decoder layer, and the Hessian of one stage (without
/// true_sequential: of four; as much again for held-out windows, and two to four times as much to propagate
/// errors, which takes the activations of the unquantized model as well), besides what an observation keeps.
/// @param saved  where decoder layers are kept as they are finished, and taken from if they are there; may be
///               null, and is on all ranks but the first. A run that takes some from there ends with the same
///               bits as one that does not, unless the number of ranks is another (deterministic_reduction).
///
/// Every rank of how.world has to call it, with the same arguments. The packed layers and the reports are
/// those of rank 0 alone; each rank keeps its windows' activations, one decoder layer in float32, and of a
/// stage a Hessian a share. A failure on one rank is thrown as agreed_failure on all of them.
/// @throws gptq::error naming the linear layer that cannot be quantized, or when no window is left to
///   calibrate on
void quantize_model(model& m, std::span<token_window const> windows, quantization const& how,
                    quantization_events const& events, unfinished_run const* saved = nullptr);

}  // namespace lm
