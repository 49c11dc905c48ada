// Granite 3: LLaMA with multipliers of embeddings, attention, the residual and logits.
#include "../architecture.hpp"

namespace lm::architectures {

architecture granite() {
  return {
      .name = "granite",
      .classes = {"GraniteForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            read_biases(keys, c);
            c.embedding_scale = keys.positive("embedding_multiplier", 1.0);
            c.attention_scale = keys.positive("attention_multiplier", 1.0);
            c.residual_scale = keys.positive("residual_multiplier", 1.0);
            c.logit_scale = 1.0 / keys.positive("logits_scaling", 1.0);
          },
      .gguf_name = "granite",
      .interleaved = true,
      .read_gguf =
          [](gguf_keys const& keys, config& c) {
            c.embedding_scale = keys.positive("embedding_scale");
            c.attention_scale = keys.positive("attention.scale");
            c.residual_scale = keys.positive("residual_scale");
            c.logit_scale = 1.0 / keys.positive("logit_scale");
          },
      .write_gguf =
          [](config const& c, gguf_settings& settings) {
            settings.add("embedding_scale", static_cast<float>(c.embedding_scale));
            settings.add("attention.scale", static_cast<float>(c.attention_scale));
            settings.add("residual_scale", static_cast<float>(c.residual_scale));
            settings.add("logit_scale", static_cast<float>(1.0 / c.logit_scale));
          },
      .write =
          [](config const& c, nlohmann::ordered_json& document) {
            document["embedding_multiplier"] = c.embedding_scale;
            document["attention_multiplier"] = c.attention_scale;
            document["residual_multiplier"] = c.residual_scale;
            document["logits_scaling"] = 1.0 / c.logit_scale;
            document["attention_bias"] = c.query_key_value_bias;
            document["mlp_bias"] = c.mlp_bias;
          },
  };
}

}  // namespace lm::architectures
