// Mistral and Mistral-Nemo: LLaMA whose tokens see a window of those before them.
#include "../architecture.hpp"

namespace lm::architectures {

architecture mistral() {
  return {
      .name = "mistral",
      .classes = {"MistralForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            c.num_key_value_heads = keys.size("num_key_value_heads", 8);
            c.max_position_embeddings = keys.size("max_position_embeddings", 4096 * 32);
            if (keys.has("sliding_window")) {
              set_sliding(keys, c, keys.size("sliding_window"), [](auto) { return true; });
            }
          },
      .gguf_name = "llama",
      .interleaved = true,
  };
}

}  // namespace lm::architectures
