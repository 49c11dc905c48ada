// LLaMA 2 and 3, SmolLM 2, and everything else that is stored as one.
#include "../architecture.hpp"

namespace lm::architectures {

architecture llama() {
  return {
      .name = "llama",
      .classes = {"LlamaForCausalLM", "LLaMAForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            keys.require("rope_interleaved", false);
            read_biases(keys, c);
          },
      .gguf_name = "llama",
      .interleaved = true,
      .write =
          [](config const& c, nlohmann::ordered_json& document) {
            document["attention_bias"] = c.query_key_value_bias;
            document["mlp_bias"] = c.mlp_bias;
          },
  };
}

}  // namespace lm::architectures
