#include "generate.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "forward.hpp"

namespace llama {
namespace {

/// What the model makes of the token after `last`, the residual [1, hidden] of the text's last token.
row_vector next_logits(model const& m, matrix const& last) {
  config const& c = m.config();
  matrix const x = rms_norm(last, m.final_norm(), c.rms_norm_eps);
  row_vector logits(c.vocab_size);
  for (std::int64_t first = 0; first < c.vocab_size; first += output_slice) {
    auto const rows = std::min(output_slice, c.vocab_size - first);
    logits.segment(first, rows).noalias() = x * m.output_rows(first, rows).transpose();
  }
  return logits;
}

}  // namespace

token choose(row_vector const& logits, sampling const& how, double random) {
  Eigen::Index likeliest = 0;
  float const top = logits.maxCoeff(&likeliest);
  if (how.temperature <= 0.0) return static_cast<token>(likeliest);

  std::vector<double> weight(static_cast<std::size_t>(logits.size()));
  for (std::size_t i = 0; i < weight.size(); ++i) {
    weight[i] =
        std::exp((static_cast<double>(logits(static_cast<Eigen::Index>(i))) - static_cast<double>(top)) /
                 how.temperature);
  }
  std::vector<token> order(weight.size());
  std::iota(order.begin(), order.end(), 0);
  auto const weight_of = [&](token id) { return weight[static_cast<std::size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(), [&](token a, token b) { return weight_of(a) > weight_of(b); });

  double const nucleus = how.top_p * std::accumulate(weight.begin(), weight.end(), 0.0);
  double kept = 0.0;
  std::size_t count = 0;
  while (count < order.size() && (count == 0 || kept < nucleus)) kept += weight_of(order[count++]);
  double below = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    below += weight_of(order[i]);
    if (random * kept < below) return order[i];
  }
  return order[count - 1];
}

void check_prompt(config const& c, std::span<token const> prompt, std::int64_t most) {
  if (prompt.empty()) throw gptq::error("the prompt has no tokens");
  if (most > c.max_position_embeddings - static_cast<std::int64_t>(prompt.size())) {
    throw gptq::error(fmt::format("a prompt of {} tokens and {} new ones exceed the model's {} positions",
                                  prompt.size(), most, c.max_position_embeddings));
  }
}

std::vector<token> generate(model const& m, std::span<token const> prompt, std::int64_t most,
                            sampling const& how, int threads) {
  config const& c = m.config();
  check_prompt(c, prompt, most);
  auto const angles = make_rotations(c, static_cast<std::int64_t>(prompt.size()) + most);
  context const ctx{c, angles};
  std::vector<kv_cache> caches(static_cast<std::size_t>(c.num_hidden_layers));

  std::mt19937_64 random(how.seed);
  std::vector<token> text;
  matrix x = m.embed(prompt);
  while (static_cast<std::int64_t>(text.size()) < most) {
    for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
      run_layer(ctx, m.load(i, threads), x, &caches[static_cast<std::size_t>(i)]);
    }
    row_vector const logits = next_logits(m, x.bottomRows(1));
    token const next = choose(logits, how, static_cast<double>(random() >> 11) * 0x1p-53);
    if (std::find(c.eos_token_id.begin(), c.eos_token_id.end(), next) != c.eos_token_id.end()) break;
    text.push_back(next);
    x = m.embed(std::span(&next, 1));
  }
  return text;
}

}  // namespace llama
