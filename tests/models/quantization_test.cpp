// Quantizing all layers of a small random model.
#include "quantization.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/quantize.hpp>

#include "catch.hpp"
#include "evaluate.hpp"
#include "files.hpp"
#include "forward.hpp"
#include "model.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

using gptq::checkpoint::dtype;
using gptq::checkpoint::tensor_map;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::random_tokens;
using test::scratch;
using test::small_config;
using test::write_model;

constexpr auto float32 = lm::arithmetic::float32;

}  // namespace

TEST_CASE("quantizing a model") {
  scratch const dir;
  json config = small_config();
  config["num_key_value_heads"] = 2;
  write_model(dir.path, config, dtype::f32);
  auto const calibration = random_tokens(16 * 48, 80);
  auto const evaluation = random_tokens(8 * 48, 80, 3);
  auto const windows = lm::cut_windows(calibration, 48, 0);
  auto const held_out = lm::cut_windows(evaluation, 48, 0);

  struct outcome {
    std::vector<lm::linear_report> reports;
    std::vector<gptq::refinement> refined;
    double perplexity;
    double perplexity_int15;
    double perplexity_int8;
  };
  auto const run = [&](lm::quantization const& how) {
    lm::model m(dir.path);
    outcome result{};
    lm::quantization_events events;
    events.done = [&](auto const& r) { result.reports.push_back(r); };
    events.refined = [&](auto const& r, auto const&) { result.refined.push_back(r); };
    lm::quantize_model(m, windows, how, events);
    result.perplexity = lm::perplexity(m, held_out, float32, 1);
    result.perplexity_int15 = lm::perplexity(m, held_out, lm::arithmetic::int15, 1);
    result.perplexity_int8 = lm::perplexity(m, held_out, lm::arithmetic::int8, 3);
    return result;
  };
  lm::quantization how;
  how.quantize.format = {"asymmetric", 8, 32};
  how.threads = how.quantize.options.threads = 1;
  double const before = lm::perplexity(lm::model(dir.path), held_out, float32, 1);

  SECTION("reports every linear layer, in the published order") {
    auto const reports = run(how).reports;
    std::vector<std::string> const names{"self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj",
                                         "self_attn.o_proj", "mlp.up_proj",      "mlp.gate_proj",
                                         "mlp.down_proj"};
    REQUIRE(reports.size() == 14);
    for (std::size_t i = 0; i < 14; ++i) {
      CHECK(reports[i].name == "model.layers." + std::to_string(i / 7) + "." + names[i % 7]);
      CHECK(reports[i].quality.snr_db > 35.0);
    }
    CHECK(reports[0].out == 16);
    CHECK(reports[0].in == 32);
    CHECK(reports[6].out == 32);
    CHECK(reports[6].in == 48);
  }
  SECTION("8 bits change the perplexity a little, 2 bits a lot") {
    CHECK(run(how).perplexity == Approx(before).epsilon(0.01));
    CHECK(run(how).perplexity != before);
    how.quantize.format.bits = 2;
    CHECK(std::abs(run(how).perplexity / before - 1.0) > 0.05);
  }
  SECTION("a GPU makes the same of it, where there is one") {
    try {
      how.quantize.device = std::make_shared<lm::gpu>();
    } catch (gptq::error const&) {
      return;
    }
    how.quantize.format.bits = 4;
    how.quantize.options.quality = gptq::quality::plain;
    how.true_sequential = GENERATE(false, true);
    if (GENERATE(false, true)) how.propagate = 0.5;
    CAPTURE(how.true_sequential, how.propagate.has_value());
    auto const on_device = run(how);
    auto const device = std::exchange(how.quantize.device, nullptr);
    auto const expected = run(how);
    REQUIRE(on_device.reports.size() == expected.reports.size());
    double sum = 0.0, expected_sum = 0.0;
    for (std::size_t i = 0; i < expected.reports.size(); ++i) {
      sum += on_device.reports[i].quality.loss;
      expected_sum += expected.reports[i].quality.loss;
    }
    CHECK(on_device.reports[0].quality.loss == Approx(expected.reports[0].quality.loss).epsilon(0.01));
    CHECK(sum == Approx(expected_sum).epsilon(0.05));  // a tie that goes the other way changes what follows
    CHECK(on_device.perplexity == Approx(expected.perplexity).epsilon(0.02));
    CHECK(lm::perplexity(
              lm::model(dir.path), held_out, float32, 2, [] {}, device.get()) ==
          Approx(before).epsilon(1e-5));
  }
  SECTION("what is evaluated is what was packed") {
    how.quantize.format.bits = 2;
    how.quantize.round_to_nearest = true;
    lm::model m(dir.path);
    lm::float_layer const original = m.load(1, 1);
    lm::quantize_model(m, windows, how, {});
    lm::float_layer const loaded = m.load(1, 1);
    for (std::size_t l = 0; l < loaded.weights.size(); ++l) {
      // Rounding to nearest does not depend on activations, so it can be repeated.
      using format = gptq::format<gptq::asymmetric, 2, 32>;
      auto const rounded = gptq::dequantize(gptq::round_to_nearest<format>(original.weights[l]));
      CHECK(loaded.weights[l] == rounded);
    }
    CHECK(loaded[lm::norm::attention] == original[lm::norm::attention]);
  }
  SECTION("the kernels compute what the decoded weights do") {
    how.quantize.format =
        GENERATE(gptq::format_spec{"asymmetric", 4, 32}, gptq::format_spec{"symmetric", 3, 32},
                 gptq::format_spec{"half_step", 4, gptq::whole_row}, gptq::format_spec{"fixed_zero", 8, 32});
    how.quantize.options.act_order = GENERATE(false, true);
    auto const r = run(how);
    CHECK(r.perplexity_int15 == Approx(r.perplexity).epsilon(1e-4));
    CHECK(r.perplexity_int8 == Approx(r.perplexity).epsilon(2e-2));
    CHECK(r.perplexity_int8 != r.perplexity);
    for (auto const& layer : r.reports) {
      // 8 bits of input lose about 45 dB of their own.
      CHECK(layer.int8_snr_db < layer.quality.snr_db + 0.1);
      double const of_inputs = std::pow(10.0, -0.1 * layer.int8_snr_db) - layer.quality.output_error;
      CHECK(of_inputs < 2e-4);
      if (how.quantize.format.bits == 8) CHECK(of_inputs > 1e-6);
    }
  }
  SECTION("what has no kernels says so") {
    lm::model m(dir.path);
    CHECK_FALSE(m.has_kernels());
    CHECK(contains(error_of([&] { m.load(0, lm::arithmetic::int8, 1); }), "is not quantized"));
    how.quantize.format.scales = gptq::scale_type::float32;
    lm::quantize_model(m, windows, how, {});
    CHECK_FALSE(m.has_kernels());
    CHECK(contains(error_of([&] { m.load(0, lm::arithmetic::int8, 1); }), "float32 scales"));
  }
  SECTION("the worst layers are quantized again from their original weights") {
    how.quantize.format.bits = 2;
    auto const coarse = run(how);
    how.observe = lm::observation{3, {}, std::nullopt};
    auto const observed = run(how);
    REQUIRE(observed.refined.size() == 3);
    std::vector<double> losses;
    for (auto const& r : coarse.reports) losses.push_back(r.quality.loss);
    std::sort(losses.begin(), losses.end(), std::greater<>());
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(observed.refined[i].before().loss == losses[i]);
      CHECK(observed.refined[i].after().loss <= 0.5 * losses[i]);
      CHECK(observed.refined[i].after().format.bits == 4);
    }
    CHECK(observed.perplexity != coarse.perplexity);
    how.observe->extra_bytes = 0;
    CHECK(run(how).perplexity == coarse.perplexity);
  }
  SECTION("what the quantized layers before change is made up for") {
    how.quantize.format.bits = 2;
    how.true_sequential = GENERATE(false, true);
    how.held_out_windows = 4;
    auto const final_residual = [&](lm::model const& m) {
      auto const angles = lm::make_rotations(m.config(), 48);
      lm::matrix all;
      for (auto const window : windows) {
        lm::matrix x = m.embed(window);
        for (std::int64_t i = 0; i < 2; ++i) lm::run_layer({m.config(), angles}, m.load(i, 1), x);
        all.conservativeResize(all.rows() + x.rows(), x.cols());
        all.bottomRows(x.rows()) = x;
      }
      return all;
    };
    auto const exact = final_residual(lm::model(dir.path));
    std::vector<lm::linear_report> reports;
    lm::quantization_events events;
    events.done = [&](auto const& r) { reports.push_back(r); };
    auto const distance = [&] {
      lm::model m(dir.path);
      reports.clear();
      lm::quantize_model(m, windows, how, events);
      return (final_residual(m) - exact).norm();
    };
    double const left_alone = distance();
    auto const plain = reports;
    how.propagate = 1.0;
    CHECK(distance() < 0.99 * left_alone);
    for (std::size_t i = 0; i < 14; ++i) {
      CAPTURE(i);
      CHECK(plain[i].propagated == 0.0);
      CHECK(reports[i].quality.held_out_error > 0.0);
      // The first inputs are what they were; with all of them from unquantized stages, the first layer's are.
      bool const same = i < 3 || (i < 7 && !how.true_sequential);
      CHECK((reports[i].propagated == 0.0) == same);
      CHECK((reports[i].quality.loss == plain[i].quality.loss) == same);
    }
    how.held_out_windows = windows.size();
    CHECK(contains(error_of([&] { distance(); }), "none is left"));
  }
  SECTION("true sequential or not differs from the second stage on") {
    how.quantize.format.bits = 2;
    auto const at_once = run(how).reports;
    how.true_sequential = true;
    auto const sequential = run(how).reports;
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(at_once[i].quality.loss == Approx(sequential[i].quality.loss).epsilon(1e-6));
    }
    CHECK(at_once[3].quality.loss != Approx(sequential[3].quality.loss).epsilon(1e-3));
  }
  SECTION("the number of threads does not matter") {
    how.true_sequential = GENERATE(false, true);
    auto const one = run(how);
    how.threads = how.quantize.options.threads = 3;
    auto const three = run(how);
    CHECK(one.perplexity == Approx(three.perplexity).epsilon(1e-5));  // not exact with a threaded BLAS
    for (std::size_t i = 0; i < 14; ++i) {
      CHECK(one.reports[i].quality.loss == Approx(three.reports[i].quality.loss).epsilon(1e-2));
    }
  }
  SECTION("GPTQ loses less than rounding to nearest") {
    how.quantize.format.bits = 3;
    auto const gptq = run(how).reports;
    how.quantize.round_to_nearest = true;
    auto const nearest = run(how).reports;
    for (std::size_t i = 0; i < 3; ++i) CHECK(gptq[i].quality.output_error < nearest[i].quality.output_error);
  }
  SECTION("what is not finite is named") {
    std::vector<float> embedding(80 * 32, std::numeric_limits<float>::quiet_NaN());
    gptq::checkpoint::safetensors_file const file(dir.path / "model.safetensors");
    tensor_map tensors = file.tensors();
    tensors["model.embed_tokens.weight"].bytes = std::as_bytes(std::span(embedding));
    write_safetensors(dir.path / "model.safetensors", tensors);
    CHECK(contains(error_of([&] { run(how); }), "input of model.layers.0.self_attn"));
  }
}
