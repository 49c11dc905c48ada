// Every model architecture on a small random model that transformers has made, beside the logits that it
// computes (tests/interop/architectures.py), and there and back through every kind of file.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gguf.hpp>
#include <gptq/checkpoint/safetensors.hpp>

#include "architecture.hpp"
#include "catch.hpp"
#include "evaluate.hpp"
#include "files.hpp"
#include "forward.hpp"
#include "gguf_model.hpp"
#include "gptq_model.hpp"
#include "model.hpp"
#include "packed_model.hpp"
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
using test::logits_of;
using test::scratch;
using test::write_file;

std::vector<fs::path> all_models() {
  std::vector<fs::path> paths;
  for (auto const& entry : fs::directory_iterator(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data")) {
    if (entry.is_directory()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

fs::path model_called(std::string const& name) {
  return fs::path(GPTQ_SOURCE_DIR) / "tests/models/data" / name;
}

struct expectation {
  std::vector<token> tokens;
  gptq::matrix logits;
};

expectation expected_of(fs::path const& model) {
  gptq::checkpoint::safetensors_file const file(model / "expected.safetensors");
  auto const& ids = file.find("tokens")->bytes;
  auto const& logits = *file.find("logits");
  expectation e;
  e.tokens.resize(ids.size() / sizeof(token));
  std::memcpy(e.tokens.data(), ids.data(), ids.size());
  e.logits.resize(static_cast<Eigen::Index>(logits.shape[0]), static_cast<Eigen::Index>(logits.shape[1]));
  std::memcpy(e.logits.data(), logits.bytes.data(), logits.bytes.size());
  return e;
}

float largest_difference(gptq::matrix const& a, gptq::matrix const& b) {
  return (a - b).cwiseAbs().maxCoeff();
}

lm::quantization rounding(gptq::format_spec const& format) {
  lm::quantization how;
  how.quantize.format = format;
  how.quantize.options.quality = gptq::quality::plain;
  how.threads = how.quantize.options.threads = 1;
  return how;
}

/// The model in `directory` with all linear layers in a format.
lm::model quantized(fs::path const& directory, gptq::format_spec const& format, bool sequential = true) {
  lm::model m(directory);
  auto const tokens = test::random_tokens(8 * 64, static_cast<token>(m.config().vocab_size));
  auto const windows = lm::cut_windows(tokens, 64, 0);
  auto how = rounding(format);
  how.true_sequential = sequential;
  lm::quantize_model(m, windows, how, {});
  return m;
}

json config_in(fs::path const& directory) { return json::parse(std::ifstream(directory / "config.json")); }

}  // namespace

TEST_CASE("every model architecture has a model that it is held against") {
  std::set<std::string> tested;
  for (fs::path const& model : all_models()) tested.insert(lm::read_config(model).architecture);
  for (lm::architecture const& a : lm::all_architectures()) {
    INFO(a.name);
    CHECK(tested.contains(a.name));
  }
}

TEST_CASE("logits are those of transformers") {
  for (fs::path const& path : all_models()) {
    INFO(path.filename());
    lm::model const m(path);
    auto const expected = expected_of(path);
    REQUIRE(expected.tokens.size() == 64);
    gptq::matrix const logits = logits_of(m, expected.tokens);
    CHECK(largest_difference(logits, expected.logits) < 1e-4F);
  }
}

TEST_CASE("every architecture computes the same token by token") {
  for (fs::path const& path : all_models()) {
    INFO(path.filename());
    lm::model const m(path);
    lm::config const& c = m.config();
    auto const expected = expected_of(path);
    auto const angles = lm::make_rotations(c, 64);
    std::vector<lm::kv_cache> caches(c.layers.size());
    for (std::size_t t = 0; t < 64; t += t == 0 ? 20 : 1) {
      std::size_t const count = t == 0 ? 20 : 1;
      gptq::matrix x = m.embed(std::span(expected.tokens).subspan(t, count));
      for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
        lm::run_layer({c, angles, 2}, m.load(i, 1), x, &caches[static_cast<std::size_t>(i)]);
      }
      lm::row_vector const last = lm::rms_norm(x.bottomRows(1), m.final_norm(), c.rms_norm_eps);
      CHECK(largest_difference(m.logits(last, 1),
                               expected.logits.row(static_cast<Eigen::Index>(t + count - 1))) < 1e-4F);
    }
  }
}

TEST_CASE("every architecture there and back: packed, GPTQ, GGUF") {
  scratch const dir;
  for (fs::path const& path : all_models()) {
    INFO(path.filename());
    auto const tokens = expected_of(path).tokens;
    auto const m = quantized(path, {"fixed_zero", 4, 32});
    gptq::matrix const logits = logits_of(m, tokens);
    std::vector<lm::token_window> const windows{tokens};
    double const perplexity = lm::perplexity(m, windows, lm::arithmetic::float32, 1);
    CHECK(lm::perplexity(m, windows, lm::arithmetic::int15, 1) == Approx(perplexity).epsilon(1e-3));

    auto const out = dir.path / path.filename();
    lm::write_packed_model(out / "packed", m, path);
    CHECK(largest_difference(logits_of(lm::model(out / "packed"), tokens), logits) == 0.0F);

    lm::write_gptq_model(out / "gptq", m, path, gptq::checkpoint::gptq_version::v1, {});
    CHECK(largest_difference(logits_of(lm::model(out / "gptq"), tokens), logits) < 1e-5F);

    std::string const refusal = error_of([&] {
      lm::check_gguf(m, path, {"fixed_zero", 4, 32}, std::nullopt);
    });
    bool const known = refusal.empty();
    std::set<std::string> const unknown{"llama-dynamic", "qwen3_moe-dense"};
    INFO(refusal);
    CHECK(known != unknown.contains(path.filename().string()));
    if (!known) continue;
    lm::write_gguf_model(out / "gguf", m, path, std::nullopt);
    lm::model const read(out / "gguf" / "model.gguf");
    // llama.cpp sees no windows in most architectures: within them nothing differs.
    auto const seen =
        static_cast<std::size_t>(std::min<std::int64_t>(64, read.config().max_position_embeddings));
    std::vector<token> const first(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(seen));
    CHECK(largest_difference(logits_of(read, first), logits.topRows(static_cast<Eigen::Index>(seen))) <
          2e-4F);
  }
}

TEST_CASE("experts are quantized by what is routed to them") {
  auto const path = model_called("qwen3_moe");
  std::vector<lm::linear_report> reports;
  lm::quantization_events events;
  events.done = [&](auto const& r) { reports.push_back(r); };
  auto const run = [&](std::size_t windows, bool sequential) {
    reports.clear();
    lm::model m(path);
    auto const tokens = test::random_tokens(windows * 64, 48);
    auto how = rounding({"fixed_zero", 4, 32});
    how.true_sequential = sequential;
    lm::quantize_model(m, lm::cut_windows(tokens, 64, 0), how, events);
  };
  bool const sequential = GENERATE(false, true);
  SECTION("each token counts for as many experts as it has") {
    run(8, sequential);
    REQUIRE(reports.size() == 2 * (4 + 3 * 4));
    double sum = 0.0;
    for (auto const& r : reports) {
      bool const of_expert = contains(r.name, ".experts.");
      CHECK((r.expert_tokens >= 0.0) == of_expert);
      if (contains(r.name, "layers.1.mlp.experts.") && contains(r.name, "down_proj")) sum += r.expert_tokens;
      CHECK(r.quality.snr_db > 10.0);
    }
    CHECK(sum == 8 * 64 * 2);
  }
  SECTION("one that saw too few gets all tokens of the layer besides, and a finite report") {
    run(1, sequential);
    REQUIRE(reports.size() == 32);
    bool starved = false;
    for (auto const& r : reports) {
      starved = starved || (r.expert_tokens >= 0.0 && r.expert_tokens < static_cast<double>(r.in));
      CHECK(std::isfinite(r.quality.loss));
      CHECK(r.quality.snr_db > 10.0);
    }
    CHECK(starved);
  }
}

TEST_CASE("experts whose weights are in one tensor") {
  scratch const dir;
  for (std::string const name : {"mixtral", "qwen3_moe"}) {
    auto const path = model_called(name);
    lm::config const c = lm::read_config(path);
    gptq::checkpoint::safetensors_file const file(path / "model.safetensors");
    tensor_map tensors = file.tensors();
    std::vector<std::vector<std::byte>> joined;
    auto const join = [&](lm::decoder_description const& layer, std::vector<lm::linear> const& kinds) {
      auto& bytes = joined.emplace_back();
      for (std::int64_t e = 0; e < c.num_experts; ++e) {
        for (lm::linear const kind : kinds) {
          std::string const key = layer.linears[layer.index(kind, e)].name + ".weight";
          auto const part = tensors.at(key).bytes;
          bytes.insert(bytes.end(), part.begin(), part.end());
          tensors.erase(key);
        }
      }
      return std::span<std::byte const>(bytes);
    };
    auto const sizes = [](auto... n) { return std::vector{static_cast<std::size_t>(n)...}; };
    std::int64_t const inner = c.expert_intermediate_size;
    for (std::size_t i = 0; i < c.layers.size(); ++i) {
      auto const& layer = c.layers[i];
      std::string const prefix = "model.layers." + std::to_string(i) + ".mlp.";
      tensors[prefix + "experts.gate_up_proj"] = {dtype::bf16, sizes(c.num_experts, 2 * inner, c.hidden_size),
                                                  join(layer, {lm::linear::gate_proj, lm::linear::up_proj})};
      tensors[prefix + "experts.down_proj"] = {dtype::bf16, sizes(c.num_experts, c.hidden_size, inner),
                                               join(layer, {lm::linear::down_proj})};
      auto const router = tensors.at(layer.router + ".weight");
      tensors.erase(layer.router + ".weight");
      tensors[prefix + "gate.weight"] = router;
    }
    write_file(dir.path / "config.json", config_in(path).dump());
    write_safetensors(dir.path / "model.safetensors", tensors);
    auto const tokens = expected_of(path).tokens;
    lm::model const m(dir.path);
    CHECK(largest_difference(logits_of(m, tokens), logits_of(lm::model(path), tokens)) == 0.0F);

    auto& last = tensors.at("model.layers.1.mlp.experts.down_proj");
    std::swap(last.shape[0], last.shape[1]);
    write_safetensors(dir.path / "model.safetensors", tensors);
    CHECK(contains(
        error_of([&] { lm::model const other(dir.path); }),
        "'model.layers.1.mlp.experts.down_proj' is BF16 [32, 4, " + std::to_string(inner) + "], but"));
  }
}

TEST_CASE("GPTQ of every architecture loses less than rounding to nearest") {
  for (char const* const name : {"llama", "phi3", "gemma2", "mixtral"}) {
    INFO(name);
    double sum[2] = {};
    for (bool const nearest : {false, true}) {
      lm::model m(model_called(name));
      auto const tokens = test::random_tokens(16 * 64, 48);
      auto how = rounding({"fixed_zero", 3, 32});
      how.quantize.round_to_nearest = nearest;
      lm::quantization_events events;
      events.done = [&](auto const& r) { sum[nearest ? 1 : 0] += r.quality.output_error; };
      lm::quantize_model(m, lm::cut_windows(tokens, 64, 0), how, events);
    }
    CHECK(sum[0] < sum[1]);
  }
}

TEST_CASE("what an architecture does not know is refused before any work") {
  scratch const dir;
  auto const copy_of = [&](std::string const& name) {
    fs::remove_all(dir.path / "m");
    fs::copy(model_called(name), dir.path / "m");
    return dir.path / "m";
  };
  SECTION("a key of config.json") {
    for (fs::path const& path : all_models()) {
      auto const directory = copy_of(path.filename().string());
      json config = config_in(directory);
      config["attention_sinks"] = 4;
      write_file(directory / "config.json", config.dump());
      CHECK(contains(error_of([&] { lm::model const m(directory); }), "'attention_sinks' is 4: not known"));
      config["attention_sinks"] = nullptr;  // is not there
      config["transformers_version"] = "9";
      config["_private"] = 1;
      write_file(directory / "config.json", config.dump());
      CHECK(error_of([&] { lm::model const m(directory); }).empty());
    }
  }
  SECTION("a tensor that nobody takes, the first, a middle and the last one") {
    for (std::string const name : {"a.weight", "model.layers.1.self_attn.sinks", "zzz"}) {
      auto const directory = copy_of("qwen3");
      {
        gptq::checkpoint::safetensors_file const file(directory / "model.safetensors");
        tensor_map tensors = file.tensors();
        tensors[name] = tensors.at("model.norm.weight");
        write_safetensors(directory / "changed", tensors);
      }
      fs::rename(directory / "changed", directory / "model.safetensors");
      CHECK(contains(error_of([&] { lm::model const m(directory); }),
                     "tensor '" + name + "' is in the file, but nothing in this model takes it"));
    }
  }
  SECTION("other architectures") {
    auto const directory = copy_of("llama");
    json config = config_in(directory);
    for (char const* const type : {"gpt_oss", "deepseek_v3", "qwen2_moe", "llama4"}) {
      config["model_type"] = type;
      write_file(directory / "config.json", config.dump());
      CHECK(contains(error_of([&] { lm::model const m(directory); }),
                     "'model_type' is \"" + std::string(type) + "\""));
    }
  }
  SECTION("keys with values that are not implemented") {
    struct change {
      char const *model, *key;
      json value;
    };
    for (auto const& [model, key, value] : std::vector<change>{
             {"qwen2", "hidden_act", "gelu"},
             {"gemma2", "hidden_activation", "silu"},
             {"gemma3_text", "use_bidirectional_attention", true},
             {"phi3", "lm_head_bias", true},
             {"smollm3", "no_rope_layers", {1, 1, 1}},
             {"mistral", "layer_types", {"chunked_attention", "full_attention"}},
             {"llama", "layer_types", {"sliding_attention", "full_attention"}},
             {"qwen2", "layer_types", {"full_attention"}},
             {"mixtral", "num_experts_per_tok", 5},
             {"granite", "logits_scaling", 0},
             {"llama", "rope_parameters", {{"rope_type", "mrope"}}},
             {"llama", "rope_parameters", {{"rope_type", "linear"}}},
             {"llama", "rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"mrope_section", {1}}}},
             {"phi3-long",
              "rope_parameters",
              {{"rope_type", "longrope"}, {"long_factor", {1}}, {"short_factor", {1}}}}}) {
      auto const directory = copy_of(model);
      json config = config_in(directory);
      config[key] = value;
      write_file(directory / "config.json", config.dump());
      std::string const message = error_of([&] { lm::model const m(directory); });
      INFO(model << " " << key << ": " << message);
      CHECK(contains(message, "config.json"));
      CHECK(contains(message, key));
    }
  }
}

TEST_CASE("tied weights under the output layer's name alone, and LLaMAForCausalLM") {
  scratch const dir;
  auto const path = model_called("llama-tied");
  fs::copy(path, dir.path / "m");
  {
    gptq::checkpoint::safetensors_file const file(path / "model.safetensors");
    tensor_map tensors = file.tensors();
    tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
    tensors.erase("model.embed_tokens.weight");
    write_safetensors(dir.path / "m" / "model.safetensors", tensors);
  }
  json config = config_in(path);
  config["architectures"] = {"LLaMAForCausalLM"};
  write_file(dir.path / "m" / "config.json", config.dump());
  auto const expected = expected_of(path);
  auto const m = quantized(dir.path / "m", {"fixed_zero", 4, 32});
  CHECK(largest_difference(logits_of(lm::model(dir.path / "m"), expected.tokens), expected.logits) < 1e-4F);
  lm::write_gguf_model(dir.path / "out", m, dir.path / "m", std::nullopt);
  CHECK(largest_difference(logits_of(lm::model(dir.path / "out/model.gguf"), expected.tokens),
                           logits_of(m, expected.tokens)) < 1e-5F);
}

TEST_CASE("a text model inside one of several parts") {
  scratch const dir;
  auto const path = model_called("gemma3_text");
  auto const directory = dir.path / "m";
  fs::create_directories(directory);
  gptq::checkpoint::safetensors_file const file(path / "model.safetensors");
  std::string const prefix = GENERATE("language_model.", "model.language_model.");
  tensor_map tensors;
  for (auto const& [name, tensor] : file.tensors()) {
    tensors[prefix == "language_model." ? prefix + name : prefix + name.substr(std::strlen("model."))] =
        tensor;
  }
  tensors["vision_tower.patch.weight"] = *file.find("model.norm.weight");
  write_safetensors(directory / "model.safetensors", tensors);
  json text = config_in(path);
  text.erase("architectures");
  json const config{{"model_type", "gemma3"},     {"architectures", {"Gemma3ForConditionalGeneration"}},
                    {"text_config", text},        {"vision_config", {{"hidden_size", 8}}},
                    {"mm_tokens_per_image", 256}, {"eos_token_id", {2, 7}}};
  write_file(directory / "config.json", config.dump());
  auto const expected = expected_of(path);
  lm::model const m(directory);
  CHECK(largest_difference(logits_of(m, expected.tokens), expected.logits) < 1e-4F);
  CHECK(m.config().eos_token_id == std::vector<token>{2, 7});
  // What is not the text model's is carried over.
  lm::write_gptq_model(dir.path / "out", quantized(directory, {"fixed_zero", 4, 32}), directory,
                       gptq::checkpoint::gptq_version::v1, {});
  gptq::checkpoint::safetensors_file const written(dir.path / "out" / "model.safetensors");
  CHECK(written.find("vision_tower.patch.weight") != nullptr);
  CHECK(error_of([&] { lm::model const again(dir.path / "out"); }).empty());
}

TEST_CASE("generation_config.json has end tokens of its own") {
  scratch const dir;
  fs::copy(model_called("qwen3"), dir.path / "m");
  write_file(dir.path / "m" / "generation_config.json",
             R"({"eos_token_id": [5, 2, 47], "temperature": 0.6})");
  CHECK(lm::read_config(dir.path / "m").eos_token_id == std::vector<token>{2, 5, 47});
  write_file(dir.path / "m" / "generation_config.json", R"({"eos_token_id": 48})");
  CHECK(contains(error_of([&] { lm::read_config(dir.path / "m"); }),
                 "generation_config.json: 'eos_token_id' is 48"));
}
