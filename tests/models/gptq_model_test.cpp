// GPTQ checkpoints: written, read, and what they cannot hold.
#include "gptq_model.hpp"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "evaluate.hpp"
#include "files.hpp"
#include "model.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::random_tokens;
using test::scratch;
using test::small_config;
using test::write_file;
using test::write_model;

constexpr auto float32 = lm::arithmetic::float32;

}  // namespace

TEST_CASE("GPTQ checkpoints") {
  scratch const dir;
  json config = small_config();
  config["num_key_value_heads"] = 2;
  write_model(dir.path, config, dtype::f32);
  auto const calibration = random_tokens(16 * 48, 80);
  auto const evaluation = random_tokens(8 * 48, 80, 3);
  auto const windows = lm::cut_windows(calibration, 48, 0);
  auto const held_out = lm::cut_windows(evaluation, 48, 0);
  lm::quantization how;
  how.quantize.format = {"asymmetric", 8, 32};
  how.threads = how.quantize.options.threads = 1;

  SECTION("is a GPTQ checkpoint, written and read") {
    using gptq::checkpoint::gptq_version;
    how.quantize.format =
        GENERATE(gptq::format_spec{"asymmetric", 4, 32}, gptq::format_spec{"symmetric", 2, 32},
                 gptq::format_spec{"fixed_zero", 8, gptq::whole_row});
    how.quantize.options.quality = gptq::quality::plain;
    how.quantize.options.act_order = GENERATE(false, true);
    auto const version = GENERATE(gptq_version::v1, gptq_version::v2);
    std::size_t const shard_bytes = GENERATE(std::size_t{1}, std::size_t{1} << 30);
    lm::model m(dir.path);
    lm::quantize_model(m, windows, how, {});
    auto const out = dir.path / "gptq";
    write_file(dir.path / "tokenizer.json", "{}");
    lm::write_gptq_model(out, m, dir.path, version, {{"damp_percent", 0.01}}, shard_bytes);
    CHECK(fs::exists(out / "model.safetensors.index.json") == (shard_bytes == 1));
    // 7 other tensors, 14 linear layers.
    CHECK(fs::exists(out / "model-00021-of-00021.safetensors") == (shard_bytes == 1));
    CHECK(fs::exists(out / "model.safetensors") != (shard_bytes == 1));
    CHECK(fs::exists(out / "tokenizer.json"));
    auto const said = json::parse(std::ifstream(out / "quantize_config.json"));
    CHECK(said.at("sym") == (how.quantize.format.scheme != "asymmetric"));
    bool const ordered = how.quantize.options.act_order && how.quantize.format.group_size != gptq::whole_row;
    CHECK(said.at("desc_act") == ordered);
    CHECK(said.at("damp_percent") == 0.01);

    double const expected = lm::perplexity(m, held_out, float32, 1);
    lm::model const read(out);
    CHECK(read.has_kernels());
    CHECK(lm::perplexity(read, held_out, float32, 1) == Approx(expected).epsilon(1e-6));
    CHECK(contains(error_of([&] { read.require_unquantized(); }), "quantized already"));

    // A label that zero points prove wrong.
    auto label = json::parse(std::ifstream(out / "config.json"));
    CHECK(label.at("quantization_config") == said);
    for (char const* const key : {"checkpoint_format", "format"}) {
      label["quantization_config"][key] = version == gptq_version::v1 ? "gptq_v2" : "gptq";
    }
    write_file(out / "config.json", label.dump());
    if (said.at("sym") == true) {
      CHECK(lm::perplexity(lm::model(out), held_out, float32, 1) == Approx(expected).epsilon(1e-6));
    }
    label["quantization_config"]["checkpoint_format"] = "marlin";
    write_file(out / "config.json", label.dump());
    CHECK(contains(error_of([&] { lm::model const other(out); }), "only gptq and gptq_v2 can be read"));
    label["quantization_config"]["checkpoint_format"] = "gptq";
    label["quantization_config"]["bits"] = 0;
    write_file(out / "config.json", label.dump());
    CHECK(contains(error_of([&] { lm::model const other(out); }), "'bits' is 0: not 2, 3, 4 or 8"));
  }
  SECTION("layers of different formats, and ones that are not quantized") {
    how.quantize.format = {"fixed_zero", 4, 32};
    how.quantize.options.quality = gptq::quality::plain;
    how.quantize.options.act_order = GENERATE(false, true);
    lm::model m(dir.path);
    lm::quantize_model(m, windows, how, {});
    // The first layer, one in between and the last: 8 bits, another scheme, other groups.
    std::size_t const last = m.config().layer(1).index(lm::linear::down_proj);
    std::pair<std::int64_t, std::size_t> const places[] = {{0, 0}, {0, 4}, {1, last}};
    gptq::format_spec const formats[] = {
        {"fixed_zero", 8, 32}, {"asymmetric", 4, 32}, {"fixed_zero", 4, gptq::whole_row}};
    lm::quantization others = how;
    for (int i = 0; i < 3; ++i) {
      lm::model other(dir.path);
      others.quantize.format = formats[i];
      lm::quantize_model(other, windows, others, {});
      auto const [layer, place] = places[i];
      auto const found = other.packed(layer, place);
      auto const owner = std::make_shared<lm::model>(std::move(other));
      m.replace(layer, place, lm::make_packed(formats[i], found->parts(), owner));
    }
    double const expected = lm::perplexity(m, held_out, float32, 1);
    auto const out = dir.path / "gptq";
    auto const version = GENERATE(gptq::checkpoint::gptq_version::v1, gptq::checkpoint::gptq_version::v2);
    lm::write_gptq_model(out, m, dir.path, version, {});
    json label = json::parse(std::ifstream(out / "config.json"));
    json& quantization = label["quantization_config"];
    CHECK(quantization.at("bits") == 4);
    REQUIRE(quantization.at("dynamic").size() == 3);
    CHECK(quantization.at("dynamic").at("+:^model\\.layers\\.0\\.self_attn\\.k_proj$") == json{{"bits", 8}});
    CHECK(lm::perplexity(lm::model(out), held_out, float32, 1) == Approx(expected).epsilon(1e-6));
    // A wrong version is told by the layers of the other formats, too.
    quantization["checkpoint_format"] = quantization["format"] =
        version == gptq::checkpoint::gptq_version::v1 ? "gptq_v2" : "gptq";
    write_file(out / "config.json", label.dump());
    CHECK(lm::perplexity(lm::model(out), held_out, float32, 1) == Approx(expected).epsilon(1e-6));

    // The last layer in float32 again, in place of its codes and beside them.
    auto const file = out / "model.safetensors";
    std::string const name = "model.layers.1.mlp.down_proj";
    auto const float_weight = m.original(1, last);
    m.replace(1, last, nullptr);
    double const unquantized = lm::perplexity(m, held_out, float32, 1);
    auto const rewrite = [&](bool with_codes) {
      gptq::checkpoint::safetensors_file const mapped(file);
      auto tensors = mapped.tensors();
      for (char const* const suffix : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
        if (!with_codes) tensors.erase(name + suffix);
      }
      tensors[name + ".weight"] = {
          dtype::f32, {32, 48}, std::as_bytes(std::span(float_weight.data(), std::size_t{32 * 48}))};
      write_safetensors(dir.path / "changed", tensors);
      fs::rename(dir.path / "changed", file);
      return error_of([&] { lm::model const other(out); });
    };
    CHECK(contains(rewrite(true), "'" + name + ".g_idx' is in the file, but nothing"));
    CHECK(rewrite(false).empty());
    CHECK(lm::perplexity(lm::model(out), held_out, float32, 1) == Approx(unquantized).epsilon(1e-6));
    label["quantization_config"]["dynamic"] = {{"-:.*1\\.mlp\\.down", json::object()},
                                               {"+:model\\.layers\\.0\\.self_attn\\.k", {{"bits", 8}}},
                                               {"model\\.layers\\.0\\.mlp\\.up", {{"sym", false}}}};
    write_file(out / "config.json", label.dump());
    CHECK(lm::perplexity(lm::model(out), held_out, float32, 1) == Approx(unquantized).epsilon(1e-6));
  }
  SECTION("a quantized output layer") {
    // Tensors of a layer of the same shape are the output layer's.
    config["vocab_size"] = 48;
    config["tie_word_embeddings"] = false;
    write_model(dir.path, config, dtype::f32);
    auto const text = random_tokens(8 * 48, 48);
    auto const cut = lm::cut_windows(text, 48, 0);
    how.quantize.format = {"fixed_zero", 8, 32};
    how.quantize.options.act_order = true;
    lm::model m(dir.path);
    lm::quantize_model(m, cut, how, {});
    auto const weight = m.load(1, 1).weights[m.config().layer(1).index(lm::linear::gate_proj)];
    auto const out = dir.path / "gptq";
    lm::write_gptq_model(out, m, dir.path, gptq::checkpoint::gptq_version::v1, {});
    auto const file = out / "model.safetensors";
    auto const rewrite = [&](auto const& change) {
      gptq::checkpoint::safetensors_file const mapped(file);
      auto tensors = mapped.tensors();
      change(tensors);
      write_safetensors(dir.path / "changed", tensors);
      fs::rename(dir.path / "changed", file);
    };
    rewrite([&](auto& tensors) {
      tensors["lm_head.weight"] = {
          dtype::f32, {48, 32}, std::as_bytes(std::span(weight.data(), std::size_t{48 * 32}))};
    });
    double const expected = lm::perplexity(lm::model(out), cut, float32, 1);
    lm::row_vector const x = lm::row_vector::LinSpaced(32, -1.0F, 1.0F);
    lm::row_vector const logits = lm::model(out).logits(x, 1);
    rewrite([&](auto& tensors) {
      tensors.erase("lm_head.weight");
      for (std::string const suffix : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
        tensors["lm_head" + suffix] = tensors["model.layers.1.mlp.gate_proj" + suffix];
      }
    });
    CHECK(contains(error_of([&] { lm::model const other(out); }), "has no tensor 'lm_head.weight'"));
    json label = json::parse(std::ifstream(out / "config.json"));
    label["quantization_config"]["lm_head"] = true;
    write_file(out / "config.json", label.dump());
    lm::model const read(out);
    CHECK(read.has_kernels());
    CHECK(lm::perplexity(read, cut, float32, 1) == Approx(expected).epsilon(1e-6));
    for (int const threads : {1, 2}) {
      CHECK((read.logits(x, threads) - logits).cwiseAbs().maxCoeff() < 1e-3F * logits.cwiseAbs().maxCoeff());
    }
    CHECK(read.output_bytes() > 48 * 32);
    CHECK(read.output_bytes() < 2 * 48 * 32);
    // As "dynamic" says it of this layer alone.
    label["quantization_config"]["bits"] = 4;
    label["quantization_config"]["dynamic"] = {{"+:lm_head", {{"bits", 8}}}, {".*layers.*", {{"bits", 8}}}};
    write_file(out / "config.json", label.dump());
    CHECK(lm::perplexity(lm::model(out), cut, float32, 1) == Approx(expected).epsilon(1e-6));
    label["quantization_config"]["dynamic"]["+:lm_head"]["bits"] = 4;
    write_file(out / "config.json", label.dump());
    CHECK(contains(error_of([&] { lm::model const other(out); }), "'lm_head': GPTQ checkpoint: qweight has"));
    label["tie_word_embeddings"] = true;
    write_file(out / "config.json", label.dump());
    CHECK(contains(error_of([&] { lm::model const other(out); }), "config.json ties it to the embeddings"));
  }
  SECTION("what a GPTQ checkpoint cannot hold") {
    lm::model m(dir.path);
    auto const refusal = [&](gptq::format_spec const& f) {
      return error_of([&] { lm::check_gptq(f, m.config()); });
    };
    CHECK(refusal({"symmetric", 4, 32}).empty());
    CHECK(contains(refusal({"half_step", 4, 32}), "half_step does not fit; --format gguf can (Q4_1)"));
    CHECK(contains(refusal({"symmetric", 4, 32, gptq::scale_type::float32}), "float16 scales"));
    CHECK(contains(refusal({"symmetric", 3, 32}), "16 codes of 3 bits are not; --format packed can"));

    auto const out = dir.path / "gptq";
    how.quantize.format = {"asymmetric", 4, 32};
    lm::quantize_model(m, windows, how, {});
    auto const write = [&](gptq::checkpoint::gptq_version version) {
      return error_of([&] { lm::write_gptq_model(out, m, dir.path, version, {}); });
    };
    std::size_t const o_proj = m.config().layer(1).index(lm::linear::o_proj);
    auto parts = m.packed(1, o_proj)->parts();
    std::vector<std::byte> const zeros(parts.zeros.size());
    parts.zeros = zeros;
    std::vector<std::byte> const codes(parts.codes.begin(), parts.codes.end());
    parts.codes = codes;
    std::vector<gptq::float16> const scales(parts.scales.size() / 2, gptq::float16(0.01F));
    parts.scales = std::as_bytes(std::span(scales));
    m.replace(1, o_proj, lm::make_packed(how.quantize.format, parts, nullptr));
    CHECK(write(gptq::checkpoint::gptq_version::v1) ==
          "model.layers.1.self_attn.o_proj: the zero point of row 0, group 0 is 0, which version 1 cannot "
          "hold; "
          "--format gptq_v2 can, and with --resume it goes on with what is quantized");
    CHECK_FALSE(fs::exists(out));
    CHECK(write(gptq::checkpoint::gptq_version::v2).empty());
    CHECK(lm::perplexity(lm::model(out), held_out, float32, 1) ==
          Approx(lm::perplexity(m, held_out, float32, 1)).epsilon(1e-6));
    fs::remove_all(out);

    how.quantize.format = {"fixed_zero", 4, 32};
    lm::quantize_model(m, windows, how, {});
    lm::write_gptq_model(out, m, dir.path, gptq::checkpoint::gptq_version::v2, {});
    auto const file = out / "model.safetensors";
    std::string const name = "model.layers.1.self_attn.q_proj";
    auto const with = [&](auto&& change) {
      gptq::checkpoint::safetensors_file const mapped(file);
      auto tensors = mapped.tensors();
      change(tensors);
      write_safetensors(dir.path / "changed", tensors);
      fs::rename(file, dir.path / "kept");
      fs::rename(dir.path / "changed", file);
      auto const message = error_of([&] { lm::model const other(out); });
      fs::rename(dir.path / "kept", file);
      return message;
    };
    CHECK(with([](auto&) {}).empty());
    CHECK(contains(with([&](auto& t) { t.erase(name + ".qzeros"); }), "has no tensor '" + name + ".qzeros'"));
    CHECK(contains(with([&](auto& t) { t[name + ".qweight"] = t[name + ".g_idx"]; }),
                   "'" + name + "': GPTQ checkpoint: qweight has 128 bytes, not 512"));
    CHECK(contains(with([&](auto& t) { t[name + ".scales"].type = gptq::checkpoint::dtype::bf16; }),
                   "not F16"));
    fs::resize_file(file, fs::file_size(file) - 1);
    CHECK(contains(error_of([&] { lm::model const other(out); }), "model.safetensors"));
  }
  SECTION("as others lay them out, and what they may ask for that is not implemented") {
    how.quantize.format = {"symmetric", 4, 32};
    lm::model m(dir.path);
    lm::quantize_model(m, windows, how, {});
    auto const out = dir.path / "gptq";
    lm::write_gptq_model(out, m, dir.path, gptq::checkpoint::gptq_version::v1, {});
    double const expected = lm::perplexity(m, held_out, float32, 1);
    auto const perplexity = [&] { return lm::perplexity(lm::model(out), held_out, float32, 1); };
    json const original = json::parse(std::ifstream(out / "config.json"));
    auto const with = [&](char const* key, json const& value) {
      json changed = original;
      changed["quantization_config"][key] = value;
      write_file(out / "config.json", changed.dump());
      return error_of([&] { lm::model const other(out); });
    };
    CHECK(with("lm_head", true).empty());  // a layer that is there in float32 is taken as it is
    CHECK(contains(with("lm_head", "yes"), "'lm_head' is \"yes\": neither true nor false"));
    CHECK(contains(with("dynamic", {{"-:.*down.*", json::object()}}),
                   "has no tensor 'model.layers.0.mlp.down_proj.weight'"));
    CHECK(contains(with("dynamic", {{"+:.*", {{"bits", 5}}}}), "dynamic '+:.*': 'bits' is 5"));
    CHECK(contains(with("dynamic", {{"+:.*", {{"codebook", "e8"}}}}), "'codebook' is \"e8\": not known"));
    CHECK(contains(with("rotation", "hadamard"), "'rotation' is \"hadamard\": changes what layers compute"));
    for (char const* const key : {"lm_head", "dynamic", "rotation"}) CHECK(with(key, nullptr).empty());
    CHECK(with("dynamic", json::object()).empty());

    // AutoRound's words around the same tensors.
    json changed = original;
    changed["quantization_config"]["quant_method"] = "auto-round";
    changed["quantization_config"]["packing_format"] = "auto_round:auto_gptq";
    write_file(out / "config.json", changed.dump());
    CHECK(perplexity() == Approx(expected).epsilon(1e-6));
    changed["quantization_config"]["extra_config"] = {{"model.layers.0.mlp.up_proj", {{"bits", 8}}}};
    write_file(out / "config.json", changed.dump());
    CHECK(contains(error_of([&] { lm::model const other(out); }), "'extra_config'"));
    changed["quantization_config"].erase("extra_config");
    changed["quantization_config"]["packing_format"] = "auto_round:auto_awq";
    write_file(out / "config.json", changed.dump());
    CHECK(contains(error_of([&] { lm::model const other(out); }), "'packing_format'"));

    // quantize_config.json alone, and AutoGPTQ's name for the file of weights; biases of zeros, which it
    // writes.
    changed = original;
    changed.erase("quantization_config");
    write_file(out / "config.json", changed.dump());
    CHECK(perplexity() == Approx(expected).epsilon(1e-6));
    auto const file = out / "gptq_model-4bit-32g.safetensors";
    auto const add_bias = [&](float value) {
      gptq::checkpoint::safetensors_file const mapped(out / "model.safetensors");
      auto tensors = mapped.tensors();
      std::vector<float> const bias(48, value);
      tensors["model.layers.1.mlp.up_proj.bias"] = {dtype::f32, {48}, std::as_bytes(std::span(bias))};
      write_safetensors(file, tensors);
    };
    add_bias(0.0F);
    fs::rename(out / "model.safetensors", out / "kept");
    CHECK(perplexity() == Approx(expected).epsilon(1e-6));
    fs::rename(out / "kept", out / "model.safetensors");
    add_bias(0.5F);
    fs::remove(out / "model.safetensors");
    CHECK(contains(error_of([&] { lm::model const other(out); }),
                   "'model.layers.1.mlp.up_proj.bias' is in the file"));
  }
}
