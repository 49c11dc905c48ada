// Tuning of small models: it does what it says on held-out windows, and the same every time.
#include "tuning.hpp"

#include <filesystem>
#include <string>
#include <vector>

#include <gptq/error.hpp>

#include "catch.hpp"
#include "linear.hpp"
#include "model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;

fs::path model_called(std::string const& name) {
  return fs::path(GPTQ_SOURCE_DIR) / "tests/models/data" / name;
}

/// All linear layers rounded to nearest: much to be gained.
void round_all(lm::model& m, gptq::format_spec const& format) {
  lm::quantizer quantizer;
  quantizer.format = format;
  quantizer.round_to_nearest = true;
  quantizer.options.threads = 1;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    for (std::size_t place = 0; place < m.config().layer(i).linears.size(); ++place) {
      gptq::matrix weight = m.original(i, place);
      gptq::hessian h(weight.cols(), 1);
      h.add(gptq::matrix(gptq::matrix::Identity(weight.cols(), weight.cols())));
      m.replace(i, place, quantizer(std::move(weight), h).packed);
    }
  }
}

struct some_windows {
  std::vector<lm::token> tokens;
  std::vector<lm::token_window> windows;

  some_windows(lm::config const& c, std::size_t count, std::size_t length) {
    test::random random(7);
    for (std::size_t i = 0; i < count * length; ++i) {
      tokens.push_back(random.below(static_cast<int>(c.vocab_size)));
    }
    windows = lm::cut_windows(tokens, static_cast<std::int64_t>(length), 0);
  }
};

std::vector<gptq::matrix> weights_of(lm::model const& m) {
  std::vector<gptq::matrix> all;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    for (auto& weight : m.load(i, 1).weights) all.push_back(std::move(weight));
  }
  return all;
}

/// What tuning reports, and the weights that it leaves.
struct outcome {
  std::vector<lm::tuning_report> reports;
  std::vector<gptq::matrix> weights;
};

outcome tune(std::string const& name, gptq::format_spec const& format, lm::tuning const& options) {
  lm::model m(model_called(name));
  round_all(m, format);
  some_windows const text(m.config(), 12, 24);
  outcome result;
  lm::tuning_events events;
  events.done = [&](lm::tuning_report const& r) { result.reports.push_back(r); };
  double share = 0.0;
  events.advance = [&](double now) {
    CHECK(now >= share);
    CHECK(now <= 1.0);
    share = now;
  };
  lm::tune_model(m, text.windows, 4, options, events);
  CHECK(share == 1.0);
  result.weights = weights_of(m);
  return result;
}

}  // namespace

TEST_CASE("a tuned model is nearer to the float32 model on held-out windows, in the same format") {
  for (auto const& [name, scheme] : {std::pair("llama", "fixed_zero"), std::pair("gemma2", "asymmetric"),
                                     std::pair("phi3", "half_step")}) {
    INFO(name << ", " << scheme);
    auto const result = tune(name, {scheme, 2, 32}, {.steps = 30, .rate = 0.02, .threads = 1});
    REQUIRE(result.reports.size() == 1);
    lm::tuning_report const& r = result.reports.front();
    CHECK(r.layer == -1);
    CHECK(r.steps == 30);
    CHECK(r.kept > 0);
    CHECK(r.after < 0.98 * r.before);
  }
}

TEST_CASE("each decoder layer is tuned on what those before it leave") {
  auto const result = tune("llama", {"fixed_zero", 2, 32},
                           {.scope = lm::tuning_scope::layer, .steps = 30, .rate = 0.02, .threads = 1});
  REQUIRE(result.reports.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    lm::tuning_report const& r = result.reports[i];
    CHECK(r.layer == static_cast<std::int64_t>(i));
    CHECK(r.after < 0.9 * r.before);
  }
}

TEST_CASE("as many steps with the same seed are the same model, whatever the threads") {
  auto const tuned = [](std::uint32_t seed, int threads) {
    return tune("llama", {"symmetric", 3, 32}, {.steps = 8, .seed = seed, .threads = threads}).weights;
  };
  auto const first = tuned(1, 1);
  CHECK(tuned(1, 2) == first);
  CHECK(tuned(2, 1) != first);
}

TEST_CASE("where no state is better on held-out windows, nothing changes") {
  lm::model m(model_called("llama"));
  round_all(m, {"fixed_zero", 4, 32});
  auto const before = weights_of(m);
  some_windows const text(m.config(), 4, 16);
  lm::tuning_events events;
  lm::tuning_report report;
  events.done = [&](lm::tuning_report const& r) { report = r; };
  // Steps so wide that nothing good comes of them.
  lm::tune_model(m, text.windows, 1, {.steps = 3, .rate = 5.0, .threads = 1}, events);
  CHECK(report.kept == 0);
  CHECK(report.after == report.before);
  CHECK(weights_of(m) == before);
}

TEST_CASE("what the model is left with is what was measured") {
  lm::model m(model_called("qwen3"));
  round_all(m, {"asymmetric", 2, 32});
  some_windows const text(m.config(), 8, 16);
  std::vector<lm::tuning_report> reports;
  lm::tuning_events events;
  events.done = [&](lm::tuning_report const& r) { reports.push_back(r); };
  for (int i = 0; i < 2; ++i) {
    lm::tune_model(m, text.windows, 3, {.steps = 10, .rate = 0.02, .threads = 1}, events);
  }
  REQUIRE(reports.size() == 2);
  CHECK(reports[0].kept > 0);
  CHECK(reports[1].before == reports[0].after);
}

TEST_CASE("what cannot be tuned is refused by name") {
  lm::model const experts(model_called("mixtral"));
  CHECK(test::contains(test::error_of([&] { lm::check_tuning(experts.config()); }), "experts"));
  lm::model m(model_called("llama"));
  round_all(m, {"fixed_zero", 4, 32});
  some_windows const text(m.config(), 3, 8);
  for (std::size_t const held_out : {std::size_t{0}, std::size_t{3}, std::size_t{4}}) {
    CHECK(test::contains(test::error_of([&] { lm::tune_model(m, text.windows, held_out, {.steps = 1}, {}); }),
                         "held out"));
  }
}
