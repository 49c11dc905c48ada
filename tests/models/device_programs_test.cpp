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
#include "evaluate.hpp"
#include "files.hpp"
#include "models/host_accelerator.hpp"
#include "packed_model.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using lm::device::accelerator;
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

/// The small models of all architectures, with or without experts.
std::vector<fs::path> models(bool experts) {
  std::vector<fs::path> paths;
  for (auto const& entry : fs::directory_iterator(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data")) {
    if (!entry.is_directory()) continue;
    auto const part = lm::device::unsupported_part(lm::read_config(entry.path()));
    if (part.empty() != experts) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
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

}  // namespace

TEST_CASE("a device computes every model architecture but experts, from the same description") {
  auto const all = accelerators();
  CHECK(models(false).size() >= 14);
  for (fs::path const& path : models(false)) {
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

TEST_CASE("a device quantizes every model architecture but experts as the host does") {
  auto const all = accelerators();
  for (fs::path const& path : models(false)) {
    for (int const run : {0, 1, 2, 3, 4}) {
      bool const sequential = run % 2 == 1;
      auto how = plain();
      how.true_sequential = sequential;
      how.held_out_windows = run == 4 ? 0 : 2;
      if (run >= 2) how.propagate = run == 4 ? 0.5 : 1.0;
      lm::model want(path);
      text const t(want);
      outcome on_host;
      lm::quantize_model(want, t.windows, how, listen(on_host));
      for (auto const& on : all) {
        INFO(path.filename() << " on " << on->name() << (sequential ? ", true sequential" : "")
                             << (how.propagate ? ", propagated" : ""));
        lm::model got(path);
        outcome on_device;
        lm::device::quantize_model(*on, number::float32, got, t.windows, how, listen(on_device), nullptr);
        // A tie moves a code, those after it in its row, and the inputs of all layers after that.
        CHECK(different(got, want) < 0.03);
        CHECK(on_device.windows == on_host.windows);
        REQUIRE(on_device.reports.size() == on_host.reports.size());
        for (std::size_t i = 0; i < on_host.reports.size(); ++i) {
          lm::linear_report const& a = on_device.reports[i];
          lm::linear_report const& b = on_host.reports[i];
          INFO(a.name);
          CHECK(a.name == b.name);
          CHECK((a.out == b.out && a.in == b.in && a.format == b.format && a.packed_bytes == b.packed_bytes));
          CHECK(a.quality.loss == Approx(b.quality.loss).epsilon(0.05));
          CHECK(std::isnan(a.quality.held_out_error) == (how.held_out_windows == 0));
          CHECK((how.held_out_windows == 0 ||
                 a.quality.held_out_error == Approx(b.quality.held_out_error).epsilon(0.1)));
          CHECK(a.propagated == Approx(b.propagated).margin(0.05));
          CHECK(a.int8_snr_db == Approx(b.int8_snr_db).margin(0.3));
          CHECK(a.weights == b.weights);
          for (std::size_t q = 0; q < a.inputs.size(); ++q) {
            CHECK(a.inputs[q] == Approx(b.inputs[q]).margin(0.02 * std::abs(b.inputs.back())));
          }
        }
      }
    }
  }
}

TEST_CASE("a run on a device is resumed after any decoder layer") {
  fs::path const path = models(false).front();
  auto const how = plain();
  for (auto const& on : accelerators()) {
    INFO(on->name());
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
    for (std::size_t i = 0; i < all.reports.size(); ++i) CHECK(second.reports[i].name == all.reports[i].name);
  }
}

TEST_CASE("what a device leaves to the host has a name") {
  REQUIRE_FALSE(models(true).empty());
  for (fs::path const& path : models(true)) {
    CHECK(lm::device::unsupported_part(lm::read_config(path)) == "layers of experts");
    CHECK(lm::device::unsupported_part(lm::read_config(path), plain()) == "layers of experts");
  }
  lm::config const c = lm::read_config(models(false).front());
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
