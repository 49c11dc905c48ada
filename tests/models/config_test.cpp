// config.json: defaults, and what is refused; tensors that do not fit it.
#include "config.hpp"

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "model.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

using gptq::checkpoint::dtype;
using gptq::checkpoint::tensor_map;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::llama3_scaling;
using test::scratch;
using test::small_config;
using test::write_file;
using test::write_model;

}  // namespace

TEST_CASE("config.json") {
  scratch const dir;
  auto const read = [&](json const& config) {
    write_file(dir.path / "config.json", config.dump());
    return lm::read_config(dir.path);
  };
  SECTION("missing keys have the defaults of transformers") {
    json config = small_config();
    for (auto const* key : {"num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings",
                            "hidden_act", "tie_word_embeddings", "architectures"}) {
      config.erase(key);
    }
    config["head_dim"] = nullptr;
    config["rope_scaling"] = nullptr;
    auto const c = read(config);
    CHECK(c.num_key_value_heads == 4);
    CHECK(c.head_dim == 8);
    CHECK(c.rms_norm_eps == 1e-6);
    REQUIRE(c.ropes.size() == 1);
    CHECK(c.ropes[0].theta == 10000.0);
    CHECK(c.ropes[0].type == lm::rope_type::standard);
    CHECK(c.max_position_embeddings == 2048);
    CHECK_FALSE(c.tie_word_embeddings);
  }
  SECTION("rotary parameters in their three forms") {
    json config = small_config();
    config["rope_scaling"] = llama3_scaling();
    CHECK(read(config).ropes[0].factor == 8.0);
    config["rope_scaling"].erase("rope_type");
    config["rope_scaling"]["type"] = "llama3";
    CHECK(read(config).ropes[0].high_freq_factor == 4.0);
    config = small_config();
    config["rope_parameters"] = llama3_scaling();
    config["rope_parameters"]["rope_theta"] = 77.0;
    CHECK(read(config).ropes[0].original_positions == 64.0);
    CHECK(read(config).ropes[0].theta == 77.0);
    config["rope_parameters"] = {{"rope_type", "default"}};
    CHECK(read(config).ropes[0].type == lm::rope_type::standard);
  }
  SECTION("what is not implemented, or wrong, is named") {
    struct change {
      std::string key;
      json value;
    };
    auto const cases = std::vector<change>{{"model_type", "gpt2"},
                                           {"architectures", {"MistralForCausalLM"}},
                                           {"hidden_act", "gelu"},
                                           {"attention_bias", 1},
                                           {"rope_interleaved", true},
                                           {"rotary_pct", 0.5},
                                           {"quantization_config", json::object()},
                                           {"rope_scaling", {{"type", "linear"}}},
                                           {"rope_scaling", {{"type", "mrope"}}},
                                           {"rope_scaling", {{"rope_type", "llama3"}}},
                                           {"rope_scaling", 3},
                                           {"hidden_size", 0},
                                           {"hidden_size", -32},
                                           {"hidden_size", 32.5},
                                           {"hidden_size", "32"},
                                           {"vocab_size", 1'000'000'000},
                                           {"num_key_value_heads", 3},
                                           {"num_attention_heads", 5},
                                           {"rms_norm_eps", -1.0},
                                           {"rope_theta", "large"},
                                           {"tie_word_embeddings", 1},
                                           {"eos_token_id", 80},
                                           {"eos_token_id", {1, -1}}};
    for (auto const& [key, value] : cases) {
      json config = small_config();
      config[key] = value;
      std::string const message = error_of([&] { read(config); });
      INFO(key << " " << value << ": " << message);
      CHECK(contains(message, "config.json"));
      CHECK(contains(message, key));
    }
    for (auto const* const key : {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
                                  "num_attention_heads", "vocab_size"}) {
      json config = small_config();
      config.erase(key);
      INFO(key);
      CHECK(contains(error_of([&] { read(config); }), std::string("has no '") + key));
    }
    json config = small_config();
    config["head_dim"] = 7;
    CHECK(contains(error_of([&] { read(config); }), "odd"));
    CHECK(contains(error_of([&] { read(json::array()); }), "not a JSON object"));
    write_file(dir.path / "config.json", "{");
    CHECK(contains(error_of([&] { lm::read_config(dir.path); }), "not valid JSON"));
    CHECK(contains(error_of([&] { lm::read_config(dir.path / "none"); }), "is not a directory"));
  }
}

TEST_CASE("links of an unfinished download") {
  scratch const dir;
  write_model(dir.path, small_config(), dtype::f32, 2);
  auto const open = [&] { return error_of([&] { lm::model const m(dir.path); }); };
  CHECK(open().empty());
  for (std::string const name :
       {"config.json", "generation_config.json", "quantize_config.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "added_tokens.json", "chat_template.jinja", "model.safetensors.index.json",
        "part-1.safetensors"}) {
    auto const path = dir.path / name, kept = dir.path / "kept", blob = dir.path / "blob";
    INFO(name);
    bool const there = std::filesystem::exists(path);
    if (there) std::filesystem::rename(path, kept);
    std::filesystem::create_symlink("blob", path);
    CHECK(contains(open(), path.string()));
    CHECK(contains(open(), "the file it points to is not there"));
    if (there) {
      std::filesystem::rename(kept, blob);
      CHECK(open().empty());
      std::filesystem::remove(path);
      std::filesystem::rename(blob, path);
    } else {
      std::filesystem::remove(path);
    }
  }
}

TEST_CASE("tensors that do not fit config.json") {
  scratch const dir;
  json config = small_config();
  write_model(dir.path, config, dtype::f32);
  auto const open = [&] { return error_of([&] { lm::model const m(dir.path); }); };
  CHECK(open().empty());
  config["intermediate_size"] = 49;
  write_file(dir.path / "config.json", config.dump());
  CHECK(contains(open(), "mlp.up_proj.weight' is F32 [48, 32], but config.json makes it F32 [49, 32]"));
  config = small_config();
  config["num_hidden_layers"] = 3;
  write_file(dir.path / "config.json", config.dump());
  CHECK(contains(open(), "has no tensor 'model.layers.2.input_layernorm.weight'"));
  write_file(dir.path / "config.json", small_config().dump());

  gptq::checkpoint::safetensors_file const file(dir.path / "model.safetensors");
  tensor_map tensors = file.tensors();
  tensors["model.norm.weight"].type = dtype::i32;
  write_safetensors(dir.path / "model.safetensors", tensors);
  CHECK(contains(open(), "'model.norm.weight' is I32 [32]"));
}
