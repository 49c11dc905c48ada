// Mixtral: Mistral with experts in place of the MLP, whose weights add up to 1.
#include "../architecture.hpp"

namespace lm::architectures {
namespace {

void describe(config& c) {
  c.expert_intermediate_size = c.intermediate_size;
  c.router_name = "block_sparse_moe.gate";
  c.expert_prefix = "block_sparse_moe.experts.{}.";
  c.expert_names = {"w1", "w3", "w2"};
  c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
  for (auto& layer : c.layers) layer.experts = true;
}

}  // namespace

architecture mixtral() {
  return {
      .name = "mixtral",
      .classes = {"MixtralForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            c.num_key_value_heads = keys.size("num_key_value_heads", 8);
            c.max_position_embeddings = keys.size("max_position_embeddings", 4096 * 32);
            c.rms_norm_eps = keys.positive("rms_norm_eps", 1e-5);
            c.num_experts = keys.size("num_local_experts", 8);
            c.experts_per_token = keys.size("num_experts_per_tok", 2);
            if (keys.has("sliding_window")) {
              set_sliding(keys, c, keys.size("sliding_window"), [](auto) { return true; });
            }
            c.ropes = {read_rope_keys(keys, c, 1e6)};
            describe(c);
          },
      .gguf_name = "llama",
      .gguf_experts = true,
      .interleaved = true,
      .read_gguf = [](gguf_keys const&, config& c) { describe(c); },
      .write =
          [](config const& c, nlohmann::ordered_json& document) {
            document["num_local_experts"] = c.num_experts;
            document["num_experts_per_tok"] = c.experts_per_token;
          },
  };
}

}  // namespace lm::architectures
