#include "generation.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <random>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "forward.hpp"
#include "threads.hpp"

namespace lm {
namespace {

/// The decoder layers of a model, made once or again for every token.
class layers {
 public:
  layers(model const& m, execution const& run) : model_(m), run_(run) {
    if (!resident()) return;
    for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) kept_.push_back(load(i));
  }

  decoder_layer const& operator[](std::int64_t i) {
    if (resident()) return *kept_[static_cast<std::size_t>(i)];
    current_ = nullptr;  // first: two at a time would be too many
    current_ = load(i);
    return *current_;
  }

 private:
  bool resident() const { return run_.resident || run_.how != arithmetic::float32; }
  std::unique_ptr<decoder_layer> load(std::int64_t i) const { return model_.load(i, run_.how, run_.threads); }

  model const& model_;
  execution const& run_;
  std::vector<std::unique_ptr<decoder_layer>> kept_;
  std::unique_ptr<decoder_layer> current_;
};

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
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
  double const nucleus = how.top_p * std::accumulate(weight.begin(), weight.end(), 0.0);

  // The likeliest tokens in falling order, as far as they are needed: most of the vocabulary seldom is.
  std::size_t sorted = 0;
  auto const sort_to = [&](std::size_t count) {
    auto const first = order.begin() + static_cast<std::ptrdiff_t>(sorted);
    sorted = std::min(count, order.size());
    std::partial_sort(first, order.begin() + static_cast<std::ptrdiff_t>(sorted), order.end(),
                      [&](token a, token b) {
                        return weight_of(a) > weight_of(b) || (weight_of(a) == weight_of(b) && a < b);
                      });
  };
  double kept = 0.0;
  std::size_t count = 0;
  while (count < order.size() && (count == 0 || kept < nucleus)) {
    if (count == sorted) sort_to(std::max<std::size_t>(64, 4 * sorted));
    kept += weight_of(order[count++]);
  }
  double below = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    below += weight_of(order[i]);
    if (random * kept < below) return order[i];
  }
  return order[count - 1];
}

void check_prompt(config const& c, std::span<token const> prompt, std::int64_t most) {
  if (prompt.empty()) throw gptq::error("the prompt has no tokens");
  if (most > c.positions() - static_cast<std::int64_t>(prompt.size())) {
    throw gptq::error(fmt::format("a prompt of {} tokens and {} new ones exceed the model's {} positions",
                                  prompt.size(), most, c.positions()));
  }
}

generated_text generate(model const& m, std::span<token const> prompt, std::int64_t most, sampling const& how,
                        execution const& run, std::function<void(token)> const& next) {
  config const& c = m.config();
  check_prompt(c, prompt, most);
  // Kernels run on OpenMP's threads: those of a BLAS would wait awake beside them.
  std::optional<serial_blas> one_thread_a_product;
  if (run.how == arithmetic::float32) {
    set_blas_threads(run.threads);
  } else {
    one_thread_a_product.emplace();
  }
  auto const angles = make_rotations(c, static_cast<std::int64_t>(prompt.size()) + most);
  // In float32 the BLAS has the threads.
  context const ctx{c, angles, run.how == arithmetic::float32 ? 1 : gptq::linalg::thread_count(run.threads)};
  layers all(m, run);
  std::vector<kv_cache> caches(static_cast<std::size_t>(c.num_hidden_layers));

  std::mt19937_64 random(how.seed);
  generated_text text;
  auto start = clock::now();
  std::size_t weights = 0;  // bytes of the decoder layers
  matrix x = m.embed(prompt);
  while (static_cast<std::int64_t>(text.tokens.size()) < most) {
    weights = 0;
    for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
      decoder_layer const& layer = all[i];
      run_layer(ctx, layer, x, &caches[static_cast<std::size_t>(i)]);
      weights += layer.bytes(c.experts_per_token);
    }
    row_vector const last = rms_norm(x.bottomRows(1), m.final_norm(), c.rms_norm_eps);
    token const chosen =
        choose(m.logits(last, run.threads), how, static_cast<double>(random() >> 11) * 0x1p-53);
    if (std::find(c.eos_token_id.begin(), c.eos_token_id.end(), chosen) != c.eos_token_id.end()) break;
    (text.tokens.empty() ? text.prompt_seconds : text.seconds) += seconds_since(start);
    text.tokens.push_back(chosen);
    next(chosen);  // its time is the caller's
    start = clock::now();
    x = m.embed(std::span(&chosen, 1));
  }
  // Half of the positions, in the middle of the text, are what a token reads on average.
  double const positions = static_cast<double>(prompt.size()) + 0.5 * static_cast<double>(text.tokens.size());
  text.bytes_a_token = static_cast<double>(weights + m.output_bytes()) +
                       positions * static_cast<double>(2 * c.num_hidden_layers * c.key_value_size()) * 4.0;
  return text;
}

}  // namespace lm
