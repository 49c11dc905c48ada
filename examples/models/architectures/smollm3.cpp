// SmolLM 3: LLaMA with layers, one of four, that have no rope.
#include "../architecture.hpp"

namespace lm::architectures {

architecture smollm3() {
  return {
      .name = "smollm3",
      .classes = {"SmolLM3ForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            read_biases(keys, c);
            c.tie_word_embeddings = keys.flag("tie_word_embeddings", true);
            c.max_position_embeddings = keys.size("max_position_embeddings", 32768);
            read_qwen_windows(keys, c);
            c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
            std::int64_t const interval = keys.size("no_rope_layer_interval", 4);
            bool const listed = keys.has("no_rope_layers") && !keys.at("no_rope_layers").empty();
            for (std::size_t i = 0; i < c.layers.size(); ++i) {
              bool rotates = (static_cast<std::int64_t>(i) + 1) % interval != 0;
              if (listed) {
                nlohmann::json const& layers = keys.at("no_rope_layers");
                if (!layers.is_array() || layers.size() != c.layers.size() ||
                    (layers[i] != 0 && layers[i] != 1)) {
                  keys.refuse("no_rope_layers", "not a list of 0 or 1 for each layer");
                }
                rotates = layers[i] == 1;
              }
              c.layers[i].rope = rotates ? 0 : -1;
            }
            c.ropes = {read_rope_keys(keys, c, 2e6)};
          },
      .gguf_name = "smollm3",
      .interleaved = true,
      .read_gguf =
          [](gguf_keys const&, config& c) {
            c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
            for (std::size_t i = 3; i < c.layers.size(); i += 4) c.layers[i].rope = -1;
          },
      .write_gguf =
          [](config const& c, gguf_settings&) {
            for (std::size_t i = 0; i < c.layers.size(); ++i) {
              if (c.layers[i].rope != (i % 4 == 3 ? -1 : 0))
                throw no_gguf("this order of layers without rope");
            }
          },
  };
}

}  // namespace lm::architectures
