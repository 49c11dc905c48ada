#include "programs.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <utility>

#include "../packed_model.hpp"
#include "../sample.hpp"
#include "from_model.hpp"
#include "text_decoder.hpp"

namespace lm::device {
namespace {

token_windows join(std::span<token_window const> windows) {
  token_windows tokens;
  tokens.length = static_cast<index_t>(windows.front().size());
  for (token_window const window : windows)
    tokens.tokens.insert(tokens.tokens.end(), window.begin(), window.end());
  return tokens;
}

/// What becomes of a decoder layer's results, stage by stage.
class collector {
 public:
  collector(model& m, quantization const& how, quantization_events const& events, unfinished_run const* saved)
      : m_(m), how_(how), events_(events), saved_(saved) {}

  void finish(linear_result& r) const {
    r.made = std::make_shared<quantizer::result>(
        pack(how_.quantize.format, r.out, r.in, std::move(r.codes), r.report));
  }

  /// Reports come in the order of quantization on the host, a decoder layer at a time.
  void take(std::vector<linear_result>&& results) {
    auto const layer = results.front().layer;
    decoder_description const& d = m_.config().layer(layer);
    reports_.resize(d.linears.size());
    auto const places = row_order(d, results.front().at);
    bool const last = results.back().last;
    factorization += results.front().report.seconds_factorization;  // of all of the stage's layers together
    sweep += results.front().report.seconds_columns;
    for (linear_result& r : results) {
      auto& packed = *static_cast<quantizer::result*>(r.made.get());
      linear_report& report = reports_[places[r.number]];
      report = {};
      report.name = r.name;
      report.out = r.out;
      report.in = r.in;
      report.format = packed.packed->format();
      report.packed_bytes = packed.bytes;
      report.quality = r.report;
      report.propagated = r.propagated;
      report.expert_tokens = r.expert_tokens;
      if (!std::isnan(r.int8_error)) {
        report.int8_error = r.int8_error;
        report.int8_snr_db = -10.0 * std::log10(r.int8_error);
      }
      report.weights = find_quantiles(std::move(r.weights));
      report.inputs = find_quantiles(std::move(r.inputs));
      m_.replace(layer, places[r.number], std::move(packed.packed));
    }
    if (!last) return;
    for (linear_report const& report : reports_) events_.done(report);
    if (saved_ == nullptr) return;
    saved_->save(layer, m_, reports_);
    use(layer, *saved_->load(layer, d));  // from the file, where it takes no memory
  }

  /// Takes a layer from an earlier run, if it is there.
  bool take_saved(index_t layer) {
    if (saved_ == nullptr) return false;
    auto found = saved_->load(layer, m_.config().layer(layer));
    if (!found) return false;
    for (linear_report const& report : found->reports) events_.done(report);
    use(layer, std::move(*found));
    return true;
  }

  double factorization = 0.0;
  double sweep = 0.0;

 private:
  void use(index_t layer, unfinished_run::saved_layer&& found) {
    for (std::size_t place = 0; place < found.packed.size(); ++place) {
      m_.replace(layer, place, std::move(found.packed[place]));
    }
  }

  model& m_;
  quantization const& how_;
  quantization_events const& events_;
  unfinished_run const* saved_;
  std::vector<linear_report> reports_;
};

}  // namespace

std::string unsupported_part(config const& c, quantization const& how) {
  if (how.quantize.round_to_nearest) return "--rtn";
  if (how.observe) return "--observe";
  if (how.world->size() > 1) return "several ranks";
  bool const experts = std::any_of(c.layers.begin(), c.layers.end(), [](auto const& d) { return d.experts; });
  return how.propagate && experts ? "--propagate with layers of experts" : "";
}

void quantize_model(accelerator& on, number activations, model& m, std::span<token_window const> windows,
                    quantization const& how, quantization_events const& events, unfinished_run const* saved) {
  std::size_t const calibrating = calibration_windows(windows.size(), how);
  collector results(m, how, events, saved);
  token_windows const tokens = join(windows);
  model_source source = make_source(m, tokens.length, how.threads);
  source.load = [&, load = std::move(source.load)](index_t layer) {
    bool const finished = results.take_saved(layer);
    layer_source s = load(layer);
    s.finished = finished;
    return s;
  };
  calibration c;
  c.format = how.quantize.format;
  c.options = how.quantize.options;
  c.activations = activations;
  c.true_sequential = how.true_sequential;
  c.propagate = how.propagate;
  c.calibrating = static_cast<index_t>(calibrating);
  c.sample = spread(c.calibrating * tokens.length, sampled_tokens);
  c.some_of = [](index_t count) { return spread(count, sampled_values); };
  c.finish = [&](linear_result& r) { results.finish(r); };
  c.done = [&](std::vector<linear_result>&& all) { results.take(std::move(all)); };
  c.advance = [&](index_t count) {
    for (index_t i = 0; i < count; ++i) events.advance();
  };
  (void)on.take_times();
  calibrate(on, source, tokens, c);
  time_account times = on.take_times();
  times.factorization = results.factorization, times.sweep = results.sweep;
  events.timed(times);
}

double perplexity(accelerator& on, number activations, model const& m, std::span<token_window const> windows,
                  int threads, std::function<void()> const& advance) {
  token_windows const tokens = join(windows);
  model_source const source = make_source(m, tokens.length, threads);
  return std::exp(mean_loss(on, source, tokens, activations, [&](index_t count) {
    for (index_t i = 0; i < count; ++i) advance();
  }));
}

double packed_perplexity(accelerator& on, model const& m, std::span<token_window const> windows, int threads,
                         std::function<void()> const& advance) {
  token_windows const tokens = join(windows);
  model_source source = make_packed_source(m, tokens.length, threads);
  source.output = output_matrix(m);
  return std::exp(packed_mean_loss(on, source, tokens, [&](index_t count) {
    for (index_t i = 0; i < count; ++i) advance();
  }));
}

generated_text generate(accelerator& on, model const& m, std::span<token const> prompt, std::int64_t most,
                        sampling const& how, int threads, std::function<void(token)> const& next) {
  config const& c = m.config();
  check_prompt(c, prompt, most);
  index_t const capacity = static_cast<index_t>(prompt.size()) + most;
  text_decoder decoder(on, make_packed_source(m, capacity, threads), capacity);
  text_decoder::choice choice{how.temperature, how.top_p, {}};
  std::mt19937_64 random(how.seed);
  for (std::int64_t i = 0; i < most; ++i) {
    choice.random.push_back(static_cast<double>(random() >> 11) * 0x1p-53);
  }
  using clock = std::chrono::steady_clock;
  auto const seconds = [](clock::time_point start) {
    return std::chrono::duration<double>(clock::now() - start).count();
  };
  constexpr index_t ahead = 3;
  generated_text text;
  auto start = clock::now();
  decoder.begin(prompt, std::move(choice));
  for (index_t i = 0; i < most; ++i) {
    while (decoder.chosen() < std::min<index_t>(most, i + 1 + ahead)) decoder.step();
    token const chosen = decoder.token(i);
    if (std::find(c.eos_token_id.begin(), c.eos_token_id.end(), chosen) != c.eos_token_id.end()) break;
    (text.tokens.empty() ? text.prompt_seconds : text.seconds) += seconds(start);
    start = clock::now();
    text.tokens.push_back(chosen);
    next(chosen);
  }
  on.synchronize();
  // Half of the positions, in the middle of the text, are what a token reads on average.
  text.bytes_a_token = decoder.bytes_a_token(static_cast<index_t>(prompt.size() + text.tokens.size() / 2));
  return text;
}

}  // namespace lm::device
