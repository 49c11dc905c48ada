// Qwen 3: RMS norms of q and k, head by head, before rope.
#include "../architecture.hpp"

namespace lm::architectures {

architecture qwen3() {
  return {
      .name = "qwen3",
      .classes = {"Qwen3ForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            c.max_position_embeddings = keys.size("max_position_embeddings", 32768);
            c.query_key_norms = true;
            c.query_key_value_bias = c.output_bias = keys.flag("attention_bias", false);
            read_qwen_windows(keys, c);
          },
      .gguf_name = "qwen3",
      .read_gguf = [](gguf_keys const&, config& c) { c.query_key_norms = true; },
      .write = [](config const&,
                  nlohmann::ordered_json& document) { document["use_sliding_window"] = false; },
  };
}

}  // namespace lm::architectures
