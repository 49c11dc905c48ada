// Phi 3 and 4: q, k and v in one projection, gate and up in another; a rope of part of a head.
#include "../architecture.hpp"

namespace lm::architectures {

architecture phi3() {
  return {
      .name = "phi3",
      .classes = {"Phi3ForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_act", "silu");
            keys.require("attention_bias", false);
            keys.require("mlp_bias", false);
            keys.require("lm_head_bias", false);
            keys.require("full_attn_mod", 1);
            keys.require("interpolate_factor", 1);
            c.max_position_embeddings = keys.size("max_position_embeddings", 4096);
            c.rms_norm_eps = keys.positive("rms_norm_eps", 1e-5);
            c.fused = true;
            if (keys.has("sliding_window")) {
              set_sliding(keys, c, keys.size("sliding_window"), [](auto) { return true; });
            }
          },
      .gguf_name = "phi3",
      .read_gguf = [](gguf_keys const&, config& c) { c.fused = true; },
      .write_gguf =
          [](config const& c, gguf_settings& settings) {
            // It has to be there; llama.cpp sees no windows in this architecture.
            settings.add("attention.sliding_window", static_cast<std::uint32_t>(c.layers[0].sliding_window));
          },
  };
}

}  // namespace lm::architectures
