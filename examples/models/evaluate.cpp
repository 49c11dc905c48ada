#include "evaluate.hpp"

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "device_layer.hpp"
#include "forward.hpp"
#include "threads.hpp"

namespace lm {
namespace {

using Eigen::Index;

/// log of a sum of exponentials that arrive in pieces, and the one term that is asked about.
struct running_softmax {
  float largest = -std::numeric_limits<float>::infinity();
  double sum = 0.0;  ///< of exp(logit - largest)
  float target = 0.0F;

  void add(Eigen::Ref<row_vector const> const& logits) {
    float const top = std::max(largest, logits.maxCoeff());
    sum = sum * std::exp(static_cast<double>(largest) - static_cast<double>(top)) +
          static_cast<double>((logits.array() - top).exp().sum());
    largest = top;
  }
  double negative_log_likelihood() const {
    return std::log(sum) + static_cast<double>(largest) - static_cast<double>(target);
  }
};

}  // namespace

double perplexity(model const& m, std::span<token_window const> windows, arithmetic how, int threads,
                  std::function<void()> const& advance, gpu* device) {
  config const& c = m.config();
  auto const count = static_cast<std::ptrdiff_t>(windows.size());
  auto const length = static_cast<Index>(windows.front().size());
  auto const angles = make_rotations(c, length);
  context const ctx{c, angles};

  std::vector<matrix> x(windows.size());
  auto const at = [](auto& items, std::ptrdiff_t w) -> auto& { return items[static_cast<std::size_t>(w)]; };
  for_each(count, threads, [&](std::ptrdiff_t w) { at(x, w) = m.embed(at(windows, w)); });
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    std::unique_ptr<decoder_layer> const layer =
        device == nullptr ? m.load(i, how, how == arithmetic::float32 ? threads : 1)
                          : std::make_unique<device_layer>(*device, m.load(i, threads));
    for_each(count, threads, [&](std::ptrdiff_t w) {
      run_layer(ctx, *layer, at(x, w));
      advance();
    });
  }

  // The last position predicts a token that is not in the window.
  for_each(count, threads, [&](std::ptrdiff_t w) {
    at(x, w) = rms_norm(at(x, w).topRows(length - 1), m.final_norm(), c.rms_norm_eps);
    advance();
  });
  std::vector<std::vector<running_softmax>> tokens(
      windows.size(), std::vector<running_softmax>(static_cast<std::size_t>(length - 1)));
  for (std::int64_t first = 0; first < c.vocab_size; first += output_slice) {
    matrix const output = m.output_rows(first, std::min(output_slice, c.vocab_size - first));
    auto const on_device =
        device == nullptr ? nullptr : device->upload(output.data(), output.rows(), output.cols());
    for_each(count, threads, [&](std::ptrdiff_t w) {
      matrix logits(at(x, w).rows(), output.rows());
      if (on_device != nullptr) {
        device->multiply(*on_device, at(x, w).data(), logits.rows(), logits.data());
      } else {
        logits.noalias() = at(x, w) * output.transpose();
      }
      scale_logits(c, logits);
      for (Index t = 0; t < logits.rows(); ++t) {
        running_softmax& softmax = at(at(tokens, w), t);
        softmax.add(logits.row(t));
        Index const target = at(windows, w)[static_cast<std::size_t>(t + 1)] - first;
        if (target >= 0 && target < logits.cols()) softmax.target = logits(t, target);
      }
    });
  }

  double total = 0.0;
  for (auto const& window : tokens) {
    for (auto const& softmax : window) total += softmax.negative_log_likelihood();
  }
  return std::exp(total / static_cast<double>(count * (length - 1)));
}

}  // namespace lm
