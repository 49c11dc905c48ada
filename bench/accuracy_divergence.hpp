// How far a quantized model's predictions are from the unquantized one's.
#pragma once

#include <span>
#include <vector>

#include "model.hpp"
#include "tokens.hpp"

namespace accuracy {

/// Means over the tokens of each window but its first.
struct window_scores {
  std::vector<double> negative_log_likelihood;  ///< of the text
  std::vector<double> divergence;               ///< KL(unquantized, quantized), in nats
};

/// Predictions of a model on held-out windows.
class predictions {
 public:
  predictions(lm::model const& m, std::span<lm::token_window const> windows, int threads);

  /// The scores of these predictions against those of the unquantized model.
  window_scores against(predictions const& unquantized) const;

 private:
  lm::config config_;
  std::span<lm::token_window const> windows_;
  int threads_;
  gptq::matrix output_;               ///< [vocabulary, hidden]
  std::vector<gptq::matrix> hidden_;  ///< after the last norm: [tokens - 1, hidden], one a window
};

}  // namespace accuracy
