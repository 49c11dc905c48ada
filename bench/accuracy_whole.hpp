// Models quantized as a user quantizes them: one decoder layer after the other, on what the quantized ones
// before it make of the tokens.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include <gptq/options.hpp>

#include "accuracy_divergence.hpp"
#include "tuning.hpp"

namespace accuracy {

struct whole_method {
  std::string name;
  std::string what;
  gptq::quantize_options options;
  bool held_out = false;                           ///< whether it has held-out windows to choose by
  std::optional<double> propagate = std::nullopt;  ///< as lm::quantization::propagate
  std::optional<lm::tuning> tune = std::nullopt;   ///< afterwards, judged by the held-out windows
};

/// The published default and best first.
std::span<whole_method const> whole_methods();

/// Quantizes all of a model and compares its predictions with those of the unquantized one.
/// @param calibration  windows, the last `held_out` of which are for methods that choose by them; for others
///   all are to calibrate on
window_scores quantize_whole(std::filesystem::path const& model, gptq::format_spec format,
                             whole_method const& how, std::span<lm::token_window const> calibration,
                             std::size_t held_out, std::span<lm::token_window const> evaluation,
                             predictions const& exact, int threads);

}  // namespace accuracy
