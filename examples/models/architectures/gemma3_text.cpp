// Gemma 3, its text part: Gemma 2 without caps, with RMS norms of q and k; windows in five of six layers,
// which have a rope of their own.
#include <cmath>

#include "../architecture.hpp"

namespace lm::architectures {
namespace {

void describe(config& c) {
  c.act = activation::gelu_tanh;
  c.output_norms = true;
  c.query_key_norms = true;
  c.embedding_scale = std::sqrt(static_cast<double>(c.hidden_size));
}

/// Layers without a window take the first rope, those with one the second.
void set_ropes(config& c) {
  for (auto& layer : c.layers) layer.rope = layer.sliding_window > 0 ? 1 : 0;
}

/// llama.cpp takes the size of a head, but for 62 layers that of hidden_size / num_attention_heads.
double scale_of_llama_cpp(config const& c) {
  double const size =
      static_cast<double>(c.num_hidden_layers == 62 ? c.hidden_size / c.num_attention_heads : c.head_dim);
  return 1.0 / std::sqrt(size);
}

}  // namespace

architecture gemma3_text() {
  return {
      .name = "gemma3_text",
      .classes = {"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"},
      .read =
          [](json_keys const& keys, config& c) {
            keys.require("hidden_activation", "gelu_pytorch_tanh");
            keys.ignore("hidden_act");
            keys.require("use_bidirectional_attention", false);
            c.tie_word_embeddings = keys.flag("tie_word_embeddings", true);
            c.num_attention_heads = keys.size("num_attention_heads", 8);
            c.max_position_embeddings = keys.size("max_position_embeddings", 131072);
            c.norm_offset = 1.0;
            read_biases(keys, c);
            c.attention_scale = 1.0 / std::sqrt(keys.positive("query_pre_attn_scalar", 256.0));
            if (keys.has("attn_logit_softcapping"))
              c.attention_softcap = keys.positive("attn_logit_softcapping");
            if (keys.has("final_logit_softcapping"))
              c.logit_softcap = keys.positive("final_logit_softcapping");
            std::int64_t const pattern = keys.has("sliding_window_pattern")
                                             ? keys.size("sliding_window_pattern")
                                             : keys.size("_sliding_window_pattern", 6);
            set_sliding(keys, c, keys.size("sliding_window", 4096),
                        [&](std::int64_t i) { return (i + 1) % pattern != 0; });
            rope_parameters local;
            local.dimensions = c.head_dim;
            local.theta = keys.positive("rope_local_base_freq", 10000.0);
            if (keys.has("rope_parameters") && keys.at("rope_parameters").contains("full_attention")) {
              json_keys const both = keys.object("rope_parameters");
              rope_parameters full;
              full.dimensions = c.head_dim;
              full.theta = 1e6;
              c.ropes = {read_rope(both.object("full_attention"), full, c.max_position_embeddings, 0.0),
                         read_rope(both.object("sliding_attention"), local, c.max_position_embeddings, 0.0)};
              keys.ignore("rope_theta"), keys.ignore("rope_scaling");
            } else {
              c.ropes = {read_rope_keys(keys, c, 1e6), local};
            }
            set_ropes(c);
            c.other_parts = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                             "model.multi_modal_projector."};
            describe(c);
          },
      .also = {"gemma3"},
      .text_config = "text_config",
      .prefixes = {{"language_model.model.", "language_model.lm_head"}, {"model.language_model.", "lm_head"}},
      .gguf_name = "gemma3",
      .read_gguf =
          [](gguf_keys const& keys, config& c) {
            describe(c);
            c.attention_scale = scale_of_llama_cpp(c);
            c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
            std::int64_t const window = keys.size("attention.sliding_window");
            for (std::size_t i = 0; i < c.layers.size(); ++i)
              c.layers[i].sliding_window = (i + 1) % 6 != 0 ? window : 0;
            rope_parameters local;
            local.dimensions = c.head_dim;
            c.ropes.push_back(local);
            set_ropes(c);
          },
      .write_gguf =
          [](config const& c, gguf_settings& settings) {
            if (c.attention_scale != scale_of_llama_cpp(c)) throw no_gguf("this query_pre_attn_scalar");
            if (c.ropes[1].theta != 10000.0 || c.ropes[1].type != rope_type::standard)
              throw no_gguf("this local rope");
            std::int64_t const window = c.layers[0].sliding_window;
            for (std::size_t i = 0; i < c.layers.size(); ++i) {
              if (c.layers[i].sliding_window != ((i + 1) % 6 != 0 ? window : 0))
                throw no_gguf("this order of windows");
            }
            settings.add("attention.sliding_window", static_cast<std::uint32_t>(window));
          },
  };
}

}  // namespace lm::architectures
