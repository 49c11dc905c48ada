// Tuning a quantized model by what it computes, not by what each linear layer does.
//
// GPTQ minimizes the error of a linear layer's own output. What counts is the model's distribution. Here
// the scales of all linear layers move together, along the derivative (gradient.hpp) of
//
//   scope model   the Kullback-Leibler divergence of the quantized model's distribution from the float32
//                 model's
//   scope layer   the squared error of a decoder layer's output, one decoder layer after the other, each on
//                 what the tuned ones before it leave: less memory, and less gained
//
// Logarithms of scales descend by Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015),
// with a rate that falls linearly to zero at the end of the budget. Codes, zero points, norms, biases and
// embeddings stay as they are, and so does the format: the tuned model has as many bytes as before. That
// codes stay is no oversight: at 2 bits a code's step is as large as the weight, GPTQ has fitted the others
// to it, and moving codes along the derivative (rounding straight through) made models worse
// (bench/README.md).
//
// Held-out windows decide what is kept: the state, among those looked at, that is best on them, which may
// be the one before the first step.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "model.hpp"
#include "tokens.hpp"

namespace lm {

enum class tuning_scope { layer, model };

struct tuning {
  tuning_scope scope = tuning_scope::model;
  /// How long: a number of steps (for scope layer: of each decoder layer), or minutes for all of it. With
  /// steps the result depends on nothing but what is given here; with minutes, on how fast the machine is.
  std::optional<std::int64_t> steps;
  double minutes = 5.0;
  std::size_t batch = 2;  ///< windows a step
  /// Of the probability that the float32 model gives to the vocabulary: the steps of scope model look at the
  /// likeliest tokens that have so much of it together. The held-out windows are judged by all tokens.
  double vocabulary_share = 0.995;
  double rate = 0.005;      ///< how far the logarithm of a scale moves at first, a step of Adam's
  std::uint32_t seed = 0;   ///< of the order in which windows are taken
  std::int64_t looks = 10;  ///< at the held-out windows, spread over the budget
  int threads = 0;          ///< 0: one a core
};

struct tuning_report {
  std::int64_t layer = -1;  ///< of scope layer
  std::int64_t steps = 0;   ///< taken
  std::int64_t kept = 0;    ///< the step whose state was kept; 0: nothing was better than before
  double before = 0.0;      ///< loss on the held-out windows: nats a token, or relative squared error
  double after = 0.0;
  double seconds = 0.0;
};

struct tuning_events {
  /// For the model, or for each decoder layer.
  std::function<void(tuning_report const&)> done = [](auto const&) {};
  /// After each step, with the share of the budget that is spent: 0 to 1.
  std::function<void(double)> advance = [](double) {};
};

/// Throws gptq::error, naming it, when a part of the model cannot be differentiated.
void check_tuning(config const& c);

/// Tunes a model all of whose linear layers are packed. In float32 at a time: the activations of all windows
/// twice; all linear layers (for scope layer: of one decoder layer), and what they compute for a batch; for
/// scope model also the output layer. Besides these a byte for each code.
/// @param windows   of one length
/// @param held_out  the last ones of them, at least one, fewer than all: they decide
/// @throws gptq::error as check_tuning(), or when held_out is not in range
void tune_model(model& m, std::span<token_window const> windows, std::size_t held_out, tuning const& options,
                tuning_events const& events);

}  // namespace lm
