// What the programs have a device do, on the host in its place and on a GPU where there is one: for every model
// architecture, beside what the host's own path computes.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "architecture.hpp"
#include "catch.hpp"
#include "device/from_model.hpp"
#include "device/programs.hpp"
#include "device/text_decoder.hpp"
#include "evaluate.hpp"
#include "files.hpp"
#include "forward.hpp"
#include "models/host_accelerator.hpp"
#include "packed_model.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using lm::device::accelerator;
using lm::device::index_t;
using lm::device::number;
using test::error_of;

std::vector<std::unique_ptr<accelerator>> accelerators() {
  std::vector<std::unique_ptr<accelerator>> all;
  all.push_back(std::make_unique<test::host_accelerator>());
  try {
    all.push_back(lm::device::make_cuda_accelerator());
  } catch (gptq::error const&) {
  }
  return all;
}

/// The small models of all architectures.
std::vector<fs::path> models() {
  std::vector<fs::path> paths;
  for (auto const& entry : fs::directory_iterator(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data")) {
    if (entry.is_directory()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool has_experts(lm::config const& c) {
  return std::any_of(c.layers.begin(), c.layers.end(), [](auto const& layer) { return layer.experts; });
}

/// Those without layers of experts.
std::vector<fs::path> dense_models() {
  auto paths = models();
  std::erase_if(paths, [](fs::path const& path) { return has_experts(lm::read_config(path)); });
  return paths;
}

struct text {
  std::vector<lm::token> tokens;
  std::vector<lm::token_window> windows;

  explicit text(lm::model const& m, std::size_t count = 8, std::int64_t length = 48)
      : tokens(test::random_tokens(count * static_cast<std::size_t>(length),
                                   static_cast<lm::token>(m.config().vocab_size))),
        windows(lm::cut_windows(tokens, length, 0)) {}
};

/// Of the last token of a text that may have so many positions, in float32.
lm::row_vector last_logits(lm::model const& m, std::vector<lm::token> const& tokens, std::int64_t positions) {
  auto const angles = lm::make_rotations(m.config(), positions);
  gptq::matrix x = m.embed(tokens);
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    lm::run_layer({m.config(), angles}, m.load(i, 1), x);
  }
  return m.logits(lm::rms_norm(x.bottomRows(1), m.final_norm(), m.config().rms_norm_eps), 1);
}

lm::quantization plain() {
  lm::quantization how;
  how.quantize.format = {"asymmetric", 4, 32, gptq::scale_type::float16};
  how.quantize.options.quality = gptq::quality::plain;
  how.threads = how.quantize.options.threads = 1;
  return how;
}

/// Reports by name, and how many windows passed.
struct outcome {
  std::vector<lm::linear_report> reports;
  std::ptrdiff_t windows = 0;
};

lm::quantization_events listen(outcome& o) {
  lm::quantization_events events;
  events.done = [&](lm::linear_report const& r) { o.reports.push_back(r); };
  events.advance = [&] { ++o.windows; };
  return events;
}

/// Of all weights of two quantized models, those that differ.
double different(lm::model const& a, lm::model const& b) {
  double differing = 0.0, count = 0.0;
  for (std::int64_t i = 0; i < a.config().num_hidden_layers; ++i) {
    auto const x = a.load(i, 1), y = b.load(i, 1);
    for (std::size_t place = 0; place < x.weights.size(); ++place) {
      gptq::matrix const difference = x.weights[place] - y.weights[place];
      differing +=
          static_cast<double>((difference.array().abs() > 1e-3F * y.weights[place].array().abs()).count());
      count += static_cast<double>(difference.size());
    }
  }
  return differing / count;
}

/// The linear layers, in their order, up to the first one with a weight that differs.
std::size_t alike(lm::model const& a, lm::model const& b) {
  std::size_t count = 0;
  for (std::int64_t i = 0; i < a.config().num_hidden_layers; ++i) {
    auto const x = a.load(i, 1), y = b.load(i, 1);
    for (std::size_t place = 0; place < x.weights.size(); ++place, ++count) {
      gptq::matrix const difference = x.weights[place] - y.weights[place];
      if ((difference.array().abs() > 1e-3F * y.weights[place].array().abs()).any()) return count;
    }
  }
  return count;
}

}  // namespace

TEST_CASE("a device computes every model architecture, from the same description") {
  auto const all = accelerators();
  CHECK(models().size() >= 18);
  CHECK(dense_models().size() >= 14);
  for (fs::path const& path : models()) {
    lm::model const m(path);
    text const t(m);
    double const want = lm::perplexity(m, t.windows, lm::arithmetic::float32, 1);
    for (auto const& on : all) {
      INFO(path.filename() << " on " << on->name());
      std::ptrdiff_t steps = 0;
      double const got = lm::device::perplexity(*on, number::float32, m, t.windows, 1, [&] { ++steps; });
      CHECK(got == Approx(want).epsilon(1e-4));
      CHECK(steps == 8 * (m.config().num_hidden_layers + 1));
    }
  }
}

TEST_CASE("a device quantizes every model architecture as the host does") {
  auto const all = accelerators();
  for (fs::path const& path : models()) {
    for (int const run : {0, 1, 2, 3, 4}) {
      bool const sequential = run % 2 == 1;
      auto how = plain();
      how.true_sequential = sequential;
      how.held_out_windows = run == 4 ? 0 : 2;
      if (run >= 2) how.propagate = run == 4 ? 0.5 : 1.0;
      lm::model want(path);
      if (!lm::device::unsupported_part(want.config(), how).empty()) continue;
      text const t(want);
      outcome on_host;
      lm::quantize_model(want, t.windows, how, listen(on_host));
      for (auto const& on : all) {
        INFO(path.filename() << " on " << on->name() << (sequential ? ", true sequential" : "")
                             << (how.propagate ? ", propagated" : ""));
        lm::model got(path);
        outcome on_device;
        lm::device::quantize_model(*on, number::float32, got, t.windows, how, listen(on_device), nullptr);
        // A tie moves a code, those after it in its row, and the inputs of all layers after that. Layers that make up
        // for what is before them then have other weights altogether: they are compared up to there.
        std::size_t const compared = how.propagate ? alike(got, want) + 1 : on_host.reports.size();
        CHECK(compared > 4);
        if (!how.propagate) CHECK(different(got, want) < 0.03);
        CHECK(on_device.windows == on_host.windows);
        REQUIRE(on_device.reports.size() == on_host.reports.size());
        for (std::size_t i = 0; i < on_host.reports.size(); ++i) {
          lm::linear_report const& a = on_device.reports[i];
          lm::linear_report const& b = on_host.reports[i];
          INFO(a.name);
          CHECK(a.name == b.name);
          CHECK((a.out == b.out && a.in == b.in && a.format == b.format && a.packed_bytes == b.packed_bytes));
          if (i >= compared) continue;
          CHECK(a.quality.loss == Approx(b.quality.loss).epsilon(0.05));
          CHECK(std::isnan(a.quality.held_out_error) == (how.held_out_windows == 0));
          CHECK((how.held_out_windows == 0 ||
                 a.quality.held_out_error == Approx(b.quality.held_out_error).epsilon(0.1)));
          CHECK(a.propagated == Approx(b.propagated).margin(0.05));
          CHECK(a.weights == b.weights);
          CHECK(a.expert_tokens == Approx(b.expert_tokens).margin(2.0));
          if (a.expert_tokens >= 0.0) continue;  // their samples are of other tokens
          CHECK(a.int8_snr_db == Approx(b.int8_snr_db).margin(0.3));
          for (std::size_t q = 0; q < a.inputs.size(); ++q) {
            CHECK(a.inputs[q] == Approx(b.inputs[q]).margin(0.02 * std::abs(b.inputs.back())));
          }
        }
      }
    }
  }
}

TEST_CASE("a device continues a text of every model architecture but experts, as the host does") {
  auto const all = accelerators();
  for (fs::path const& path : dense_models()) {
    for (bool const act_order : {false, true}) {
      lm::model m(path);
      text const t(m);
      auto how = plain();
      how.quantize.options.act_order = act_order;
      // Formats that the host has kernels for, and one that it has not.
      if (path.filename() == "llama") how.quantize.format.bits = act_order ? 4 : 3;
      if (path.filename() == "qwen2") how.quantize.format.scheme = "symmetric";
      lm::quantize_model(m, t.windows, how, {});
      auto const source = lm::device::make_packed_source(m, 40, 1);
      for (auto const& on : all) {
        INFO(path.filename() << " on " << on->name() << (act_order ? ", act-order" : ""));
        lm::device::text_decoder decoder(*on, source, 40);
        CHECK(decoder.packed() == (how.quantize.format.bits == 4));
        for (std::size_t const length : {std::size_t{1}, std::size_t{17}}) {
          std::vector<lm::token> tokens(t.tokens.begin(),
                                        t.tokens.begin() + static_cast<std::ptrdiff_t>(length));
          decoder.begin(tokens, {});
          for (index_t i = 0; i < 9; ++i) {
            lm::row_vector const got =
                Eigen::Map<lm::row_vector const>(decoder.logits().data(), m.config().vocab_size);
            lm::row_vector const want = last_logits(m, tokens, 40);
            CHECK((got - want).norm() < 5e-3F * want.norm());
            Eigen::Index likeliest = 0;
            got.maxCoeff(&likeliest);
            REQUIRE(decoder.token(i) == likeliest);
            tokens.push_back(decoder.token(i));
            decoder.step();
          }
        }
        if (act_order) continue;
        std::ptrdiff_t steps = 0;
        double const perplexity = lm::device::packed_perplexity(*on, m, t.windows, 1, [&] { ++steps; });
        CHECK(perplexity == Approx(lm::perplexity(m, t.windows, lm::arithmetic::float32, 1)).epsilon(2e-3));
        CHECK(steps == 8 * (m.config().num_hidden_layers + 1));
      }
    }
  }
}

TEST_CASE("a device chooses the tokens that the host chooses") {
  fs::path const path = fs::path(GPTQ_SOURCE_DIR) / "tests/models/data/llama";
  lm::model m(path);
  text const t(m);
  lm::quantize_model(m, t.windows, plain(), {});
  auto const prompt = std::span(t.tokens).first(6);
  for (auto const& on : accelerators()) {
    INFO(on->name());
    for (lm::sampling const how :
         {lm::sampling{}, lm::sampling{0.8, 1.0, 1}, lm::sampling{1.5, 0.7, 2}, lm::sampling{1.0, 0.0, 3}}) {
      auto const want = lm::generate(m, prompt, 20, how, {lm::arithmetic::float32, 1, true});
      std::vector<lm::token> seen;
      auto const got =
          lm::device::generate(*on, m, prompt, 20, how, 1, [&](lm::token token) { seen.push_back(token); });
      CHECK(got.tokens == want.tokens);
      CHECK(seen == want.tokens);
    }
    CHECK(test::contains(error_of([&] { lm::device::generate(*on, m, {}, 1, {}, 1, {}); }), "no tokens"));
  }
}

TEST_CASE("a text decoder has room for what it was made for, and finds logits that are no numbers") {
  fs::path const path = fs::path(GPTQ_SOURCE_DIR) / "tests/models/data/llama";
  lm::model m(path);
  text const t(m);
  lm::quantize_model(m, t.windows, plain(), {});
  auto source = lm::device::make_packed_source(m, 8, 1);
  auto const prompt = std::span(t.tokens).first(8);
  for (auto const& on : accelerators()) {
    INFO(on->name());
    lm::device::text_decoder decoder(*on, source, 8);
    CHECK(error_of([&] { decoder.step(); }) == "there is no text to continue");
    CHECK(error_of([&] { decoder.begin({}, {}); }) == "the prompt has no tokens");
    CHECK(error_of([&] { decoder.begin(std::span(t.tokens).first(9), {}); }) ==
          "a prompt of 9 tokens, and room for 8");
    decoder.begin(prompt, {});
    CHECK(error_of([&] { decoder.step(); }) == "the cache has room for 8 tokens, and is full");
    decoder.begin(prompt.first(7), {});
    decoder.step();
    CHECK(error_of([&] { decoder.step(); }) == "the cache has room for 8 tokens, and is full");
    CHECK(decoder.token(1) >= 0);
    source.final_norm.back() = NAN;
    lm::device::text_decoder broken(*on, source, 8);
    source.final_norm.back() = 1.0F;
    broken.begin(prompt.first(3), {});
    CHECK(test::contains(error_of([&] { (void)broken.token(0); }), "the logits are not finite"));
  }
}

TEST_CASE("a run on a device is resumed after any decoder layer") {
  auto const how = plain();
  for (fs::path const& path :
       {dense_models().front(), fs::path(GPTQ_SOURCE_DIR) / "tests/models/data/qwen3_moe"})
    for (auto const& on : accelerators()) {
      INFO(path.filename() << " on " << on->name());
      lm::model whole(path);
      text const t(whole);
      outcome all;
      lm::device::quantize_model(*on, number::float32, whole, t.windows, how, listen(all), nullptr);
      test::scratch const directory;
      nlohmann::ordered_json const settings{{"a", 1}};
      {
        lm::model m(path);
        lm::unfinished_run const saved(directory.path, settings, false);
        outcome first;
        auto events = listen(first);
        std::size_t const layer = m.config().layer(0).linears.size();
        events.done = [&](lm::linear_report const& r) {
          if (first.reports.size() == layer) throw gptq::error("enough");  // in the second layer
          first.reports.push_back(r);
        };
        CHECK(error_of([&] {
                lm::device::quantize_model(*on, number::float32, m, t.windows, how, events, &saved);
              }) == "enough");
        CHECK(saved.finished() == 1);
      }
      lm::model m(path);
      lm::unfinished_run const saved(directory.path, settings, true);
      outcome second;
      lm::device::quantize_model(*on, number::float32, m, t.windows, how, listen(second), &saved);
      CHECK(saved.finished() == m.config().num_hidden_layers);
      CHECK(different(m, whole) == 0.0);
      REQUIRE(second.reports.size() == all.reports.size());
      for (std::size_t i = 0; i < all.reports.size(); ++i)
        CHECK(second.reports[i].name == all.reports[i].name);
    }
}

TEST_CASE("what a device leaves to the host has a name") {
  for (fs::path const& path : models()) {
    lm::config const c = lm::read_config(path);
    CHECK(lm::device::unsupported_part(c, plain()).empty());
    CHECK(lm::device::unsupported_packed_part(c) == (has_experts(c) ? "layers of experts" : ""));
  }
  lm::config const c = lm::read_config(dense_models().front());
  auto how = plain();
  CHECK(lm::device::unsupported_part(c, how).empty());
  how.observe.emplace();
  CHECK(lm::device::unsupported_part(c, how) == "--observe");
  how = plain();
  how.quantize.round_to_nearest = true;
  CHECK(lm::device::unsupported_part(c, how) == "--rtn");
}

TEST_CASE("activations are of the type that the weights are stored in") {
  using gptq::checkpoint::dtype;
  test::scratch const directory;
  for (auto const& [type, want] : {std::pair{dtype::f32, number::float32},
                                   {dtype::f16, number::float16},
                                   {dtype::bf16, number::bfloat16}}) {
    test::write_model(directory.path, test::small_config(), type);
    CHECK(lm::device::exact_activations(lm::model(directory.path)) == want);
  }
  lm::model packed(directory.path);
  text const t(packed);
  lm::quantize_model(packed, t.windows, plain(), {});
  CHECK(lm::device::exact_activations(packed) == number::float32);  // codes times scales fit no 16 bits
}
