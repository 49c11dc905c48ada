// Gemma 2: norms of (1 + w), four a layer; embeddings scaled by sqrt(hidden_size); a gate through GELU;
// scores and logits kept small by tanh; windows in every other layer.
#include <cmath>

#include "../architecture.hpp"

namespace lm::architectures {
namespace {

void describe(config& c) {
  c.act = activation::gelu_tanh;
  c.output_norms = true;
  c.embedding_scale = std::sqrt(static_cast<double>(c.hidden_size));
}

/// llama.cpp takes the size of a head, but for 46 layers that of hidden_size / num_attention_heads.
double scale_of_llama_cpp(config const& c) {
  double const size =
      static_cast<double>(c.num_hidden_layers == 46 ? c.hidden_size / c.num_attention_heads : c.head_dim);
  return 1.0 / std::sqrt(size);
}

}  // namespace

architecture gemma2() {
  return {
      .name = "gemma2",
      .classes = {"Gemma2ForCausalLM"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_activation", "gelu_pytorch_tanh");
            keys.ignore("hidden_act");  // an older name, which transformers does not read
            keys.require("use_bidirectional_attention", false);
            c.tie_word_embeddings = keys.flag("tie_word_embeddings", true);
            c.max_position_embeddings = keys.size("max_position_embeddings", 8192);
            c.norm_offset = 1.0;
            read_biases(keys, c);
            c.attention_scale = 1.0 / std::sqrt(keys.positive("query_pre_attn_scalar", 256.0));
            if (keys.has("attn_logit_softcapping"))
              c.attention_softcap = keys.positive("attn_logit_softcapping");
            if (keys.has("final_logit_softcapping"))
              c.logit_softcap = keys.positive("final_logit_softcapping");
            set_sliding(keys, c, keys.size("sliding_window", 4096),
                        [](std::int64_t i) { return i % 2 == 0; });
            describe(c);
          },
      .gguf_name = "gemma2",
      .read_gguf =
          [](gguf_keys const& keys, config& c) {
            describe(c);
            c.attention_scale = scale_of_llama_cpp(c);
            c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
            std::int64_t const window = keys.size("attention.sliding_window", 4096);
            for (std::size_t i = 0; i < c.layers.size(); i += 2) c.layers[i].sliding_window = window;
          },
      .write_gguf =
          [](config const& c, gguf_settings& settings) {
            if (c.attention_scale != scale_of_llama_cpp(c)) throw no_gguf("this query_pre_attn_scalar");
            std::int64_t const window = c.layers[0].sliding_window;
            for (std::size_t i = 0; i < c.layers.size(); ++i) {
              if (c.layers[i].sliding_window != (i % 2 == 0 ? window : 0))
                throw no_gguf("this order of windows");
            }
            settings.add("attention.sliding_window", static_cast<std::uint32_t>(window));
          },
  };
}

}  // namespace lm::architectures
