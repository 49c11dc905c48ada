#include "accuracy_divergence.hpp"

#include <cmath>

#include "forward.hpp"
#include "threads.hpp"

namespace accuracy {
namespace {

using gptq::index_t;
using gptq::matrix;

/// Logits to logarithms of probabilities, row by row, in place.
void log_softmax(matrix& logits) {
  for (index_t t = 0; t < logits.rows(); ++t) {
    auto row = logits.row(t).array();
    row -= row.maxCoeff();
    row -= std::log(row.exp().sum());
  }
}

}  // namespace

predictions::predictions(lm::model const& m, std::span<lm::token_window const> windows, int threads)
    : config_(m.config()),
      windows_(windows),
      threads_(threads),
      output_(m.output_rows(0, m.config().vocab_size)),
      hidden_(windows.size()) {
  auto const length = static_cast<index_t>(windows.front().size());
  auto const angles = lm::make_rotations(m.config(), length);
  lm::context const ctx{m.config(), angles};
  std::vector<lm::float_layer> layers;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) layers.push_back(m.load(i, threads));
  lm::for_each(static_cast<std::ptrdiff_t>(windows.size()), threads, [&](std::ptrdiff_t w) {
    auto const at = static_cast<std::size_t>(w);
    matrix x = m.embed(windows[at]);
    for (lm::float_layer const& layer : layers) lm::run_layer(ctx, layer, x);
    // The last position predicts a token that is not in the window.
    hidden_[at] = lm::rms_norm(x.topRows(length - 1), m.final_norm(), m.config().rms_norm_eps);
  });
}

window_scores predictions::against(predictions const& unquantized) const {
  window_scores scores{std::vector<double>(windows_.size()), std::vector<double>(windows_.size())};
  lm::for_each(static_cast<std::ptrdiff_t>(windows_.size()), threads_, [&](std::ptrdiff_t w) {
    auto const at = static_cast<std::size_t>(w);
    matrix ours = hidden_[at] * output_.transpose();
    matrix exact = unquantized.hidden_[at] * output_.transpose();
    lm::scale_logits(config_, ours);
    lm::scale_logits(config_, exact);
    log_softmax(ours);
    log_softmax(exact);
    double likelihood = 0.0;
    double divergence = 0.0;
    for (index_t t = 0; t < ours.rows(); ++t) {
      likelihood -= static_cast<double>(ours(t, windows_[at][static_cast<std::size_t>(t + 1)]));
      divergence += static_cast<double>(
          (exact.row(t).array().exp() * (exact.row(t).array() - ours.row(t).array())).sum());
    }
    scores.negative_log_likelihood[at] = likelihood / static_cast<double>(ours.rows());
    scores.divergence[at] = divergence / static_cast<double>(ours.rows());
  });
  return scores;
}

}  // namespace accuracy
