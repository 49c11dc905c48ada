// Models from each format into each other, their weights the same.
#include "written_model.hpp"

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "catch.hpp"
#include "checkpoint_model.hpp"
#include "files.hpp"
#include "gguf_layers.hpp"
#include "packed_model.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using lm::output_format;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::scratch;

json config_with_whole_blocks() {
  json config = test::small_config();
  config["num_key_value_heads"] = 2;
  config["intermediate_size"] = 64;
  return config;
}

/// The model of a directory, rounded to nearest.
lm::model rounded(fs::path const& source, gptq::format_spec const& format) {
  lm::model m(source);
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    for (std::size_t place = 0; place < m.config().layer(i).linears.size(); ++place) {
      auto weight = m.original(i, place);
      gptq::hessian h(weight.cols());
      h.add(gptq::matrix::Identity(weight.cols(), weight.cols()));
      lm::quantizer const quantize{format, {}, /*round_to_nearest=*/true, nullptr};
      m.replace(i, place, quantize(std::move(weight), h).packed);
    }
  }
  return m;
}

/// Each linear layer's weights, by name.
std::map<std::string, std::vector<float>> weights_of(lm::model const& m) {
  std::map<std::string, std::vector<float>> weights;
  m.for_each_packed([&](lm::linear_layer const& layer, lm::packed_linear const& packed) {
    auto& decoded = weights[layer.name];
    decoded.resize(static_cast<std::size_t>(layer.out * layer.in));
    packed.dequantize(decoded.data());
  });
  return weights;
}

struct written {
  fs::path path;  ///< of the directory, or the GGUF file in it
  lm::model model;
};

written write_and_read(fs::path const& directory, lm::model const& m, fs::path const& source,
                       output_format format) {
  lm::output_options options;
  options.blocks = lm::gguf_blocks::exact;
  lm::write_model(directory, m, source, format, options);
  bool const one_file = format == output_format::gguf;
  fs::path const path = one_file ? directory / lm::gguf_name : directory;
  written w{path, lm::model(path)};
  if (one_file) lm::pack_blocks(w.model);
  return w;
}

}  // namespace

TEST_CASE("from each format into each other") {
  scratch const dir;
  auto const source = dir.path / "source";
  fs::create_directories(source);
  test::write_model(source, config_with_whole_blocks(), gptq::checkpoint::dtype::bf16);
  auto const tokens = test::random_tokens(20, 80);
  for (gptq::format_spec const& format :
       {gptq::format_spec{"fixed_zero", 4, 32}, {"asymmetric", 4, 32}, {"symmetric", 4, gptq::whole_row}}) {
    auto const m = rounded(source, format);
    auto const expected = weights_of(m);
    auto const logits = test::logits_of(m, tokens);
    for (auto const& [first_name, first] : lm::output_formats) {
      if (first == output_format::gptq && format.scheme == "asymmetric") continue;  // no zero points of 0
      INFO(to_string(format) << ", by way of " << first_name);
      auto const directory = dir.path / format.scheme / first_name;
      auto const by_way = write_and_read(directory, m, source, first);
      CHECK(weights_of(by_way.model) == expected);
      CHECK((test::logits_of(by_way.model, tokens) - logits).cwiseAbs().maxCoeff() < 1e-4F);
      for (auto const& [second_name, second] : lm::output_formats) {
        INFO("into " << second_name);
        if (second == output_format::gptq && format.scheme == "asymmetric") continue;
        fs::path const into = directory / second_name;
        // Zero points in 4 bits need more levels than 16 as blocks, and are 8 bits when they come back.
        if (first == output_format::gguf && second == output_format::awq && format.scheme == "asymmetric") {
          CHECK(
              contains(error_of([&] { write_and_read(into, by_way.model, by_way.path, output_format::awq); }),
                       "AWQ checkpoints have 4 bits, not 8"));
          continue;
        }
        CHECK(weights_of(write_and_read(into, by_way.model, by_way.path, second).model) == expected);
      }
    }
  }
}

TEST_CASE("2 and 3 bits as compressed-tensors, there and back") {
  scratch const dir;
  test::write_model(dir.path, config_with_whole_blocks(), gptq::checkpoint::dtype::f16);
  for (gptq::format_spec const& format :
       {gptq::format_spec{"asymmetric", 3, 32}, {"fixed_zero", 2, 32, gptq::scale_type::float32}}) {
    auto const m = rounded(dir.path, format);
    auto const out = dir.path / to_string(format);
    CHECK(weights_of(write_and_read(out, m, dir.path, output_format::compressed_tensors).model) ==
          weights_of(m));
  }
}

TEST_CASE("what a format cannot hold is refused before anything is written") {
  scratch const dir;
  auto const source = dir.path / "source";
  fs::create_directories(source);
  test::write_model(source, config_with_whole_blocks(), gptq::checkpoint::dtype::f32);
  auto const refusal = [&](lm::model const& m, output_format format) {
    auto const out = dir.path / "out";
    auto const error = error_of([&] { write_and_read(out, m, source, format); });
    bool const files = fs::exists(out / "config.json") || fs::exists(out / lm::gguf_name) ||
                       fs::exists(out / "model.safetensors");
    return files ? "something was written" : error;
  };
  SECTION("a layer that is not quantized") {
    auto m = rounded(source, {"fixed_zero", 4, 32});
    m.replace(1, 6, nullptr);
    for (auto const& [name, format] : lm::output_formats)
      CHECK(refusal(m, format) == "model.layers.1.mlp.down_proj is not quantized");
  }
  SECTION("half steps") {
    auto const m = rounded(source, {"half_step", 4, 32});
    CHECK(contains(refusal(m, output_format::awq), "half_step does not fit"));
    CHECK(contains(refusal(m, output_format::compressed_tensors), "half_step does not fit"));
    CHECK(contains(refusal(m, output_format::gptq), "half_step does not fit"));
  }
  SECTION("layers of different formats") {
    auto m = rounded(source, {"fixed_zero", 4, 32});
    auto other = rounded(source, {"fixed_zero", 4, gptq::whole_row});
    gptq::matrix weight = other.original(0, 3);
    gptq::hessian h(weight.cols());
    h.add(gptq::matrix::Identity(weight.cols(), weight.cols()));
    lm::quantizer const quantize{{"fixed_zero", 4, gptq::whole_row}, {}, true, nullptr};
    m.replace(0, 3, quantize(std::move(weight), h).packed);
    CHECK(contains(refusal(m, output_format::awq), "other groups"));
    CHECK(contains(refusal(m, output_format::compressed_tensors), "have one for all"));
  }
  SECTION("columns in another order") {
    lm::model m(source);
    lm::quantization how;
    how.quantize.format = {"asymmetric", 4, 32};
    how.quantize.options.act_order = true;
    how.quantize.options.quality = gptq::quality::plain;
    how.threads = how.quantize.options.threads = 1;
    auto const calibration = test::random_tokens(8 * 48, 80);
    lm::quantize_model(m, lm::cut_windows(calibration, 48, 0), how, {});
    CHECK(contains(refusal(m, output_format::awq), "its columns are reordered"));
    CHECK(contains(refusal(m, output_format::gguf), "its columns are reordered"));
    auto const kept = write_and_read(dir.path / "kept", m, source, output_format::compressed_tensors);
    CHECK(weights_of(kept.model) == weights_of(m));
  }
  SECTION("scales in float32") {
    auto const m = rounded(source, {"fixed_zero", 4, 32, gptq::scale_type::float32});
    CHECK(contains(refusal(m, output_format::awq), "float16 scales"));
    CHECK(contains(refusal(m, output_format::gguf), "float16 scales"));
  }
}
