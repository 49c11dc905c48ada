// Qwen 2 and 2.5: LLaMA with biases of q, k and v, and windows in the layers from max_window_layers on.
#include "../architecture.hpp"

namespace lm::architectures {

architecture qwen2() {
  return {
      .name = "qwen2",
      .classes = {"Qwen2ForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            c.max_position_embeddings = keys.size("max_position_embeddings", 32768);
            c.query_key_value_bias = true;
            read_qwen_windows(keys, c);
          },
      .gguf_name = "qwen2",
      .write = [](config const&,
                  nlohmann::ordered_json& document) { document["use_sliding_window"] = false; },
  };
}

}  // namespace lm::architectures
