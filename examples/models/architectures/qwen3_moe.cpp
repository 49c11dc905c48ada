// Qwen 3 with experts: in every decoder_sparse_step-th layer that mlp_only_layers does not name.
#include <algorithm>

#include "../architecture.hpp"

namespace lm::architectures {

architecture qwen3_moe() {
  return {
      .name = "qwen3_moe",
      .classes = {"Qwen3MoeForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            c.max_position_embeddings = keys.size("max_position_embeddings", 32768);
            c.query_key_norms = true;
            c.query_key_value_bias = c.output_bias = keys.flag("attention_bias", false);
            c.num_experts =
                keys.has("num_experts") ? keys.size("num_experts") : keys.size("num_local_experts", 128);
            keys.ignore("num_local_experts");
            c.experts_per_token = keys.size("num_experts_per_tok", 8);
            c.expert_intermediate_size = keys.size("moe_intermediate_size", 768);
            c.normalize_expert_weights = keys.flag("norm_topk_prob", false);
            std::int64_t const step = keys.size("decoder_sparse_step", 1);
            nlohmann::json const dense =
                keys.has("mlp_only_layers") ? keys.at("mlp_only_layers") : nlohmann::json::array();
            if (!dense.is_array()) keys.refuse("mlp_only_layers", "not a list of layers");
            read_qwen_windows(keys, c);
            c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
            for (std::size_t i = 0; i < c.layers.size(); ++i) {
              bool const named = std::find(dense.begin(), dense.end(), nlohmann::json(i)) != dense.end();
              c.layers[i].experts = !named && (static_cast<std::int64_t>(i) + 1) % step == 0;
            }
          },
      .gguf_name = "qwen3moe",
      .gguf_experts = true,
      .read_gguf =
          [](gguf_keys const&, config& c) {
            c.query_key_norms = true;
            c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
            for (auto& layer : c.layers) layer.experts = true;
          },
      .write_gguf =
          [](config const& c, gguf_settings&) {
            if (!c.normalize_expert_weights) throw no_gguf("norm_topk_prob false");
            if (!std::all_of(c.layers.begin(), c.layers.end(), [](auto const& l) { return l.experts; })) {
              throw no_gguf("layers without experts");
            }
          },
      .write =
          [](config const& c, nlohmann::ordered_json& document) {
            document["num_experts"] = c.num_experts;
            document["num_experts_per_tok"] = c.experts_per_token;
            document["moe_intermediate_size"] = c.expert_intermediate_size;
            document["norm_topk_prob"] = c.normalize_expert_weights;
          },
  };
}

}  // namespace lm::architectures
