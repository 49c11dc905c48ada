// Packed models on disk, and runs that are taken up again.
#include "packed_model.hpp"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "evaluate.hpp"
#include "files.hpp"
#include "generation.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using gptq::checkpoint::tensor_map;
using lm::token;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::random_tokens;
using test::scratch;
using test::small_config;
using test::write_file;
using test::write_model;

constexpr auto float32 = lm::arithmetic::float32;

std::string contents_of_model(fs::path const& directory) {
  std::string all;
  for (char const* const name : {"config.json", "model.safetensors"}) {
    std::ifstream in(directory / name, std::ios::binary);
    all.append(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return all;
}

}  // namespace

TEST_CASE("packed models and unfinished runs") {
  scratch const dir;
  auto const source = dir.path / "source";
  fs::create_directories(source);
  write_model(source, small_config(), dtype::bf16);
  write_file(source / "tokenizer.model", "whatever");
  auto const calibration = random_tokens(8 * 48, 80);
  auto const windows = lm::cut_windows(calibration, 48, 0);
  lm::quantization how;
  how.quantize.format = {"asymmetric", 3, 32};
  how.quantize.options.quality = gptq::quality::plain;  // for its act-order, which reorders columns
  how.quantize.options.act_order = true;
  how.threads = how.quantize.options.threads = 1;
  json const settings{{"bits", 3}};
  auto const packed = dir.path / "packed";
  /// Quantizes and writes; ends by an exception after `most` linear layers.
  auto const run = [&](fs::path const& to, bool resume, std::size_t most = 99) {
    lm::model m(source);
    lm::unfinished_run const saved(to, settings, resume);
    std::vector<lm::linear_report> reports;
    lm::quantization_events events;
    events.done = [&](auto const& r) {
      reports.push_back(r);
      if (reports.size() == most) throw lm::interrupted();
    };
    lm::quantize_model(m, windows, how, events, &saved);
    lm::write_packed_model(to, m, source);
    saved.remove();
    return reports;
  };

  SECTION("a packed model computes what it did before it was written") {
    lm::model before(source);
    lm::quantize_model(before, windows, how, {});
    lm::write_packed_model(packed, before, source);
    lm::model const after(packed);
    CHECK(after.has_kernels());
    CHECK(fs::exists(packed / "tokenizer.model"));
    for (auto const arithmetic : {float32, lm::arithmetic::int15, lm::arithmetic::int8}) {
      CHECK(lm::perplexity(after, windows, arithmetic, 1) == lm::perplexity(before, windows, arithmetic, 1));
    }
    std::vector<token> const prompt(calibration.begin(), calibration.begin() + 6);
    auto const text = lm::generate(after, prompt, 20, {}, {lm::arithmetic::int15, 2, true});
    CHECK(text.tokens == lm::generate(before, prompt, 20, {}, {float32, 1, false}).tokens);
    CHECK(text.tokens_a_second() > 0.0);
    CHECK(text.bytes_a_token > static_cast<double>(after.output_bytes()));
    CHECK(contains(error_of([&] { after.require_unquantized(); }), "quantized already"));
  }
  SECTION("a run that is resumed ends with the same bytes") {
    how.true_sequential = GENERATE(false, true);
    auto const more = GENERATE(0, 1, 2);
    if (more == 1) how.observe = lm::observation{4, {}, std::nullopt};
    if (more == 2) {
      how.propagate = 1.0;
      how.held_out_windows = 2;
    }
    auto const whole = run(packed, false);
    auto const again = dir.path / "again";
    CHECK_THROWS_AS(run(again, false, 10), lm::interrupted);  // in the second of two decoder layers
    CHECK(lm::unfinished_run(again, settings, true).finished() == 1);
    CHECK_FALSE(fs::exists(again / "config.json"));
    CHECK(contains(error_of([&] { run(again, false); }), "--resume"));
    auto const other = json{{"bits", 4}};
    CHECK(contains(error_of([&] { lm::unfinished_run(again, other, true); }), "that run had bits 3, not 4"));
    write_file(again / "model.safetensors.part-1", "of one that was killed");

    {
      lm::unfinished_run const at_it(again, settings, true);
      for (bool const resume : {false, true}) {
        CHECK(contains(error_of([&] { lm::unfinished_run(again, settings, resume); }),
                       "unfinished: another process is writing to it"));
      }
    }
    write_file(again / "unfinished" / "lock", "");  // of one that was killed
    auto const resumed = run(again, true);
    REQUIRE(resumed.size() == 14);
    for (std::size_t i = 0; i < 14; ++i) {
      CHECK(resumed[i].name == whole[i].name);
      CHECK(resumed[i].quality.loss == whole[i].quality.loss);
      CHECK(resumed[i].int8_snr_db == whole[i].int8_snr_db);
    }
    CHECK(contents_of_model(again) == contents_of_model(packed));
    CHECK(std::distance(fs::directory_iterator(again), {}) == 3);  // with the tokenizer, and nothing else
    CHECK(contains(error_of([&] { run(again, true); }), "holds a model already"));
  }
  SECTION("what is damaged is named") {
    CHECK_THROWS_AS(run(packed, false, 10), lm::interrupted);
    auto const layer = packed / "unfinished" / "layer-00000.safetensors";
    auto const size = fs::file_size(layer);
    fs::resize_file(layer, size - 1);
    CHECK(contains(error_of([&] { run(packed, true); }), "layer-00000.safetensors"));
    fs::remove_all(packed);

    run(packed, false);
    auto const open = [&] { return error_of([&] { lm::model const m(packed); }); };
    CHECK(open().empty());
    auto const file = packed / "model.safetensors";
    auto const original = tensor_map(gptq::checkpoint::safetensors_file(file).tensors());
    std::string const name = "model.layers.0.mlp.down_proj";
    auto const with = [&](auto&& change) {
      gptq::checkpoint::safetensors_file const mapped(file);
      tensor_map tensors = mapped.tensors();
      change(tensors);
      write_safetensors(packed / "changed", tensors);
      fs::rename(file, packed / "kept");
      fs::rename(packed / "changed", file);
      std::string const message = open();
      fs::rename(packed / "kept", file);
      return message;
    };
    CHECK(contains(with([&](auto& t) { t.erase(name + ".codes"); }), name + ".codes'"));
    CHECK(contains(with([&](auto& t) { t.erase(name + ".zeros"); }), "its zeros have 0 bytes"));
    CHECK(contains(with([&](auto& t) { t[name + ".scales"].type = dtype::i16; }), name + ".scales' is I16"));
    std::vector<std::int32_t> const twice(48, 3);
    CHECK(contains(with([&](auto& t) { t[name + ".order"].bytes = std::as_bytes(std::span(twice)); }),
                   "is not a permutation of 0.."));
    auto config = json::parse(std::ifstream(packed / "config.json"));
    auto& formats = config["quantization_config"]["layers"];
    auto const with_format = [&](json const& format) {
      json changed = config;
      changed["quantization_config"]["layers"][name] = format;
      write_file(packed / "config.json", changed.dump());
      return open();
    };
    json format = formats[name];
    format["group_size"] = 64;
    CHECK(contains(with_format(format), name));
    format["bits"] = 5;
    CHECK(contains(with_format(format), "not compiled"));
    format["bits"] = "3";
    CHECK(contains(with_format(format), "bits"));
    formats.erase(name);
    write_file(packed / "config.json", config.dump());
    CHECK(contains(open(), "no format for '" + name));
  }
}
