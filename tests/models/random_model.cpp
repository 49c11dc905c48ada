#include "random_model.hpp"

#include <cstring>
#include <random>

#include "files.hpp"
#include "forward.hpp"

namespace test {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using gptq::checkpoint::tensor_map;
using lm::token;
using nlohmann::json;

json small_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 4},
          {"vocab_size", 80},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false}};
}

model_weights write_model(fs::path const& directory, json const& config, dtype type, std::size_t files) {
  auto const hidden = size_of(config, "hidden_size");
  auto const heads = size_of(config, "num_attention_heads");
  auto const head = config.value("head_dim", hidden / heads);
  auto const key_value = size_of(config, "num_key_value_heads") * head;
  auto const inner = size_of(config, "intermediate_size");
  auto const vocab = size_of(config, "vocab_size");
  std::map<std::string, std::vector<std::size_t>> shapes{{"model.embed_tokens.weight", {vocab, hidden}},
                                                         {"model.norm.weight", {hidden}}};
  if (!config.at("tie_word_embeddings").get<bool>()) shapes["lm_head.weight"] = {vocab, hidden};
  for (std::size_t i = 0; i < size_of(config, "num_hidden_layers"); ++i) {
    std::string const layer = "model.layers." + std::to_string(i) + ".";
    shapes[layer + "input_layernorm.weight"] = {hidden};
    shapes[layer + "post_attention_layernorm.weight"] = {hidden};
    shapes[layer + "self_attn.q_proj.weight"] = {heads * head, hidden};
    shapes[layer + "self_attn.k_proj.weight"] = {key_value, hidden};
    shapes[layer + "self_attn.v_proj.weight"] = {key_value, hidden};
    shapes[layer + "self_attn.o_proj.weight"] = {hidden, heads * head};
    shapes[layer + "mlp.gate_proj.weight"] = {inner, hidden};
    shapes[layer + "mlp.up_proj.weight"] = {inner, hidden};
    shapes[layer + "mlp.down_proj.weight"] = {hidden, inner};
  }

  std::mt19937 random(1);
  model_weights values;
  std::map<std::string, std::vector<std::byte>> bytes;
  std::vector<tensor_map> parts(files);
  json index;
  std::size_t next = 0;
  for (auto const& entry : shapes) {
    std::string const& name = entry.first;
    auto const& shape = entry.second;
    std::size_t const count = shape.size() == 1 ? shape[0] : shape[0] * shape[1];
    float const center = shape.size() == 1 ? 1.0F : 0.0F;  // norms scale by about 1
    auto& stored = bytes[name];
    auto const put = [&](auto value) {
      auto const* const from = reinterpret_cast<std::byte const*>(&value);
      stored.insert(stored.end(), from, from + sizeof value);
      values[name].push_back(static_cast<double>(static_cast<float>(value)));
    };
    for (std::size_t i = 0; i < count; ++i) {
      float const value = center + (static_cast<float>(random() >> 8) * 0x1p-24F - 0.5F);
      if (type == dtype::f32) put(value);
      if (type == dtype::f16) put(gptq::float16(value));
      if (type == dtype::bf16) put(gptq::bfloat16(value));
    }
    std::size_t const part = next++ % files;
    parts[part][name] = {type, shape, stored};
    index["weight_map"][name] = "part-" + std::to_string(part) + ".safetensors";
  }
  fs::remove(directory / "model.safetensors");
  if (files == 1) {
    write_safetensors(directory / "model.safetensors", parts[0]);
  } else {
    for (std::size_t p = 0; p < files; ++p) {
      write_safetensors(directory / ("part-" + std::to_string(p) + ".safetensors"), parts[p]);
    }
    write_file(directory / "model.safetensors.index.json", index.dump());
  }
  write_file(directory / "config.json", config.dump());
  return values;
}

std::vector<token> random_tokens(std::size_t count, token vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<token> tokens(count);
  for (token& id : tokens) id = static_cast<token>(random() % static_cast<unsigned>(vocab));
  return tokens;
}

gptq::matrix logits_of(lm::model const& m, std::vector<token> const& tokens) {
  auto const& c = m.config();
  auto const angles = lm::make_rotations(c, static_cast<std::int64_t>(tokens.size()));
  gptq::matrix x = m.embed(tokens);
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) lm::run_layer({c, angles}, m.load(i, 1), x);
  gptq::matrix logits =
      lm::rms_norm(x, m.final_norm(), c.rms_norm_eps) * m.output_rows(0, c.vocab_size).transpose();
  lm::scale_logits(c, logits);
  return logits;
}

json llama3_scaling() {
  return {{"rope_type", "llama3"},
          {"factor", 8.0},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 64}};
}

}  // namespace test
