#include "config.hpp"

#include <algorithm>
#include <set>
#include <stdexcept>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/error.hpp>

#include "architecture.hpp"
#include "checkpoint_config.hpp"
#include "gguf_model.hpp"

namespace lm {
namespace {

using nlohmann::json;

/// Keys that change nothing of what a model computes when it runs.
bool is_harmless(std::string const& key) {
  static std::set<std::string> const keys{
      // what it is called, and by whom
      "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "auto_map",
      "tokenizer_class", "name_or_path", "finetuning_task", "task_specific_params", "problem_type",
      "id2label", "label2id", "is_llama_config", "unsloth_version", "unsloth_fixed", "transformers.js_config",
      "model_max_length",
      // training
      "initializer_range", "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop",
      "pretraining_tp", "router_aux_loss_coef", "output_router_logits", "router_jitter_noise",
      "neftune_noise_alpha",
      // how it is called
      "use_cache", "cache_implementation", "return_dict", "output_attentions", "output_hidden_states",
      "chunk_size_feed_forward", "is_decoder", "is_encoder_decoder", "add_cross_attention",
      "cross_attention_hidden_size", "tie_encoder_decoder", "torchscript", "use_bfloat16", "pruned_heads",
      // tokens, and how they are drawn: generation_config.json's
      "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id", "forced_bos_token_id",
      "forced_eos_token_id", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
      "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
      "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
      "bad_words_ids", "prefix", "num_return_sequences", "output_scores", "return_dict_in_generate",
      "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
      "tf_legacy_loss",
      // pictures, which no text model sees
      "vision_config", "image_token_index", "image_token_id", "mm_tokens_per_image", "boi_token_index",
      "eoi_token_index", "boi_token_id", "eoi_token_id", "vocab_size_per_layer_input", "quantization_config"};
  return keys.contains(key) || key.starts_with("_");
}

/// Throws gptq::error for the first key that nobody has read.
void refuse_unknown(json_keys const& keys) {
  for (auto const& [key, value] : keys.members().items()) {
    if (is_harmless(key)) keys.ignore(key);
  }
  if (auto const key = keys.unread()) {
    keys.refuse(*key, "not known, and it may change what the model computes");
  }
}

architecture const& find_architecture(json_keys const& keys) {
  std::string const type = keys.text("model_type", "");
  if (type.empty()) keys.at("model_type");
  std::vector<std::string> names;
  for (architecture const& a : all_architectures()) {
    names.push_back(a.name);
    if (a.name != type && std::find(a.also.begin(), a.also.end(), type) == a.also.end()) continue;
    auto const* const classes = keys.find("architectures");
    if (classes != nullptr &&
        (!classes->is_array() || classes->size() != 1 || !classes->front().is_string() ||
         std::find(a.classes.begin(), a.classes.end(), classes->front().get<std::string>()) ==
             a.classes.end())) {
      keys.refuse("architectures", fmt::format("only {} is implemented", fmt::join(a.classes, ", ")));
    }
    return a;
  }
  keys.refuse("model_type", fmt::format("only {} are implemented", fmt::join(names, ", ")));
}

/// The end tokens that generation_config.json names besides, and its first token where config.json has none.
void read_generation_config(std::filesystem::path const& path, config& c) {
  if (!std::filesystem::exists(path)) return;
  json const document = parse_json(path);
  json_keys const keys(document, path.string());
  for (std::int32_t const id : keys.tokens("eos_token_id", c.vocab_size)) {
    if (std::find(c.eos_token_id.begin(), c.eos_token_id.end(), id) == c.eos_token_id.end()) {
      c.eos_token_id.push_back(id);
    }
  }
  auto const bos = keys.tokens("bos_token_id", c.vocab_size);
  if (!c.bos_token_id && !bos.empty()) c.bos_token_id = bos.front();
}

/// Files beside the weights count as missing when they are not there: not when they are links to nothing.
void check_links(std::filesystem::path const& directory) {
  for (auto const* const name :
       {"config.json", "generation_config.json", "quantize_config.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"}) {
    check_link(directory / name);
  }
}

/// Where a model of several parts keeps its text model's tensors.
void find_prefix(std::filesystem::path const& directory, architecture const& a, config& c) {
  gptq::checkpoint::safetensors_directory const files(directory);
  for (auto const& [prefix, output] : a.prefixes) {
    if (files.find(prefix + "embed_tokens.weight") == nullptr) continue;
    c.prefix = prefix;
    c.output_name = output;
  }
}

}  // namespace

stage stage_of(linear kind) {
  switch (kind) {
    case linear::k_proj:
    case linear::v_proj:
    case linear::q_proj:
    case linear::qkv_proj:
      return stage::query_key_value;
    case linear::o_proj:
      return stage::output;
    case linear::up_proj:
    case linear::gate_proj:
    case linear::gate_up_proj:
      return stage::gate_up;
    case linear::down_proj:
      break;
  }
  return stage::down;
}

std::size_t decoder_description::index(linear kind, std::int64_t expert) const {
  // Those of an expert stand together, the experts in order, after those of the attention.
  std::size_t first = 0, step = linears.size();
  if (expert != no_expert) {
    while (linears[first].expert == no_expert) ++first;
    step = 0;
    while (first + step < linears.size() && linears[first + step].expert == 0) ++step;
    first += static_cast<std::size_t>(expert) * step;
  }
  for (std::size_t i = first; i < first + step; ++i) {
    if (linears.at(i).kind == kind && linears[i].expert == expert) return i;
  }
  throw std::out_of_range("no such linear layer");
}

std::vector<std::size_t> decoder_description::linears_of(stage s, std::int64_t expert) const {
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    if (stage_of(linears[i].kind) == s && linears[i].expert == expert) found.push_back(i);
  }
  return found;
}

std::int64_t decoder_description::input_size(stage s) const {
  for (linear_layer const& l : linears) {
    if (stage_of(l.kind) == s) return l.in;
  }
  throw std::out_of_range("no linear layer in this stage");
}

std::int64_t config::positions() const {
  bool const dynamic =
      std::any_of(ropes.begin(), ropes.end(), [](auto const& r) { return r.type == rope_type::dynamic; });
  if (!dynamic) return max_position_embeddings;
  return static_cast<std::int64_t>(static_cast<double>(max_position_embeddings) * ropes.front().factor);
}

void complete(config& c) {
  c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    decoder_description& layer = c.layers[i];
    std::string const prefix = fmt::format("{}layers.{}.", c.prefix, i);
    auto const add = [&](linear kind, std::string const& name, std::int64_t out, std::int64_t in, bool bias,
                         std::int64_t expert = no_expert) {
      layer.linears.push_back({kind, expert, prefix + name, out, in, bias});
    };
    std::int64_t const hidden = c.hidden_size, query = c.query_size(), key = c.key_value_size();
    if (c.fused) {
      add(linear::qkv_proj, "self_attn.qkv_proj", query + 2 * key, hidden, c.query_key_value_bias);
    } else {
      add(linear::k_proj, "self_attn.k_proj", key, hidden, c.query_key_value_bias);
      add(linear::v_proj, "self_attn.v_proj", key, hidden, c.query_key_value_bias);
      add(linear::q_proj, "self_attn.q_proj", query, hidden, c.query_key_value_bias);
    }
    add(linear::o_proj, "self_attn.o_proj", hidden, query, c.output_bias);
    if (layer.experts) {
      layer.router = prefix + c.router_name;
      std::int64_t const inner = c.expert_intermediate_size;
      for (std::int64_t e = 0; e < c.num_experts; ++e) {
        std::string const expert = fmt::format(fmt::runtime(c.expert_prefix), e);
        add(linear::up_proj, expert + c.expert_names[1], inner, hidden, false, e);
        add(linear::gate_proj, expert + c.expert_names[0], inner, hidden, false, e);
        add(linear::down_proj, expert + c.expert_names[2], hidden, inner, false, e);
      }
    } else if (c.fused) {
      add(linear::gate_up_proj, "mlp.gate_up_proj", 2 * c.intermediate_size, hidden, c.mlp_bias);
      add(linear::down_proj, "mlp.down_proj", hidden, c.intermediate_size, c.mlp_bias);
    } else {
      add(linear::up_proj, "mlp.up_proj", c.intermediate_size, hidden, c.mlp_bias);
      add(linear::gate_proj, "mlp.gate_proj", c.intermediate_size, hidden, c.mlp_bias);
      add(linear::down_proj, "mlp.down_proj", hidden, c.intermediate_size, c.mlp_bias);
    }
    auto const add_norm = [&](norm kind, char const* name, std::int64_t size) {
      layer.norms.push_back({kind, prefix + name, size});
    };
    add_norm(norm::attention, "input_layernorm", hidden);
    if (c.output_norms) {
      add_norm(norm::attention_output, "post_attention_layernorm", hidden);
      add_norm(norm::mlp, "pre_feedforward_layernorm", hidden);
      add_norm(norm::mlp_output, "post_feedforward_layernorm", hidden);
    } else {
      add_norm(norm::mlp, "post_attention_layernorm", hidden);
    }
    if (c.query_key_norms) {
      add_norm(norm::query, "self_attn.q_norm", c.head_dim);
      add_norm(norm::key, "self_attn.k_norm", c.head_dim);
    }
  }
}

std::vector<rotations> make_rotations(config const& c, std::int64_t positions) {
  std::vector<rotations> all;
  for (rope_parameters const& rope : c.ropes) all.push_back(make_rotations(rope, positions));
  return all;
}

config read_config(std::filesystem::path const& directory) {
  check_links(directory_of(directory));
  if (is_gguf(directory)) return config_of(gptq::checkpoint::gguf_file(directory), directory);
  if (!std::filesystem::is_directory(directory)) {
    throw gptq::error(directory.string() + ": is not a directory");
  }
  auto const path = directory / "config.json";
  json const document = parse_json(path);
  json_keys const outer(document, path.string());
  architecture const& a = find_architecture(outer);
  bool const nested = !a.text_config.empty() && outer.has(a.text_config);
  json_keys const keys = nested ? outer.object(a.text_config) : outer;
  config c = read_common(keys);
  c.architecture = a.name;
  a.read(keys, c);
  if (!keys.has("layer_types")) {
  } else if (auto const sliding = sliding_layers(keys, c)) {
    for (std::size_t i = 0; i < sliding->size(); ++i) {
      if ((*sliding)[i] && (c.layers.empty() || c.layers[i].sliding_window == 0)) {
        keys.refuse("layer_types", "sliding windows are not known in this model architecture");
      }
    }
  }
  if (c.ropes.empty()) c.ropes = {read_rope_keys(keys, c)};
  if (c.num_experts > 0 && c.experts_per_token > c.num_experts) {
    keys.refuse("num_experts_per_tok", fmt::format("more than the {} experts", c.num_experts));
  }
  refuse_unknown(keys);
  if (nested) {
    // Of what the outer document repeats, the tokens are what matters.
    if (c.eos_token_id.empty() || outer.has("eos_token_id")) {
      auto const ends = outer.tokens("eos_token_id", c.vocab_size);
      if (!ends.empty()) c.eos_token_id = ends;
    }
    outer.ignore("bos_token_id"), outer.ignore("tie_word_embeddings");
    refuse_unknown(outer);
  }
  if (nested) find_prefix(directory, a, c);
  complete(c);
  read_generation_config(directory / "generation_config.json", c);
  c.packed = packed_formats(outer);
  c.checkpoint = read_quantization(outer, directory, c);
  return c;
}

nlohmann::ordered_json json_of(config const& c) {
  architecture const& a = architecture_of(c);
  if (a.write == nullptr || c.ropes.size() != 1 || c.norm_offset != 0.0) {
    throw gptq::error(
        fmt::format("a config.json of model architecture {} cannot be made from a GGUF file: begin with "
                    "the model's own directory",
                    a.name));
  }
  rope_parameters const& rope = c.ropes.front();
  if (!rope.divisors.empty()) {
    throw gptq::error("config.json has no place for the factors that this GGUF file scales frequencies by");
  }
  nlohmann::ordered_json document{{"architectures", {a.classes.front()}},
                                  {"model_type", a.name},
                                  {"hidden_size", c.hidden_size},
                                  {"intermediate_size", c.intermediate_size},
                                  {"num_hidden_layers", c.num_hidden_layers},
                                  {"num_attention_heads", c.num_attention_heads},
                                  {"num_key_value_heads", c.num_key_value_heads},
                                  {"head_dim", c.head_dim},
                                  {"vocab_size", c.vocab_size},
                                  {"max_position_embeddings", c.max_position_embeddings},
                                  {"rms_norm_eps", c.rms_norm_eps},
                                  {"rope_theta", rope.theta},
                                  {"hidden_act", "silu"},
                                  {"tie_word_embeddings", c.tie_word_embeddings}};
  a.write(c, document);
  if (c.bos_token_id) document["bos_token_id"] = *c.bos_token_id;
  if (!c.eos_token_id.empty()) document["eos_token_id"] = c.eos_token_id;
  switch (rope.type) {
    case rope_type::standard:
      break;
    case rope_type::linear:
      document["rope_scaling"] = {{"rope_type", "linear"}, {"factor", rope.factor}};
      break;
    case rope_type::yarn:
      document["rope_scaling"] = {{"rope_type", "yarn"},
                                  {"factor", rope.factor},
                                  {"original_max_position_embeddings", rope.original_positions},
                                  {"attention_factor", rope.attention_factor},
                                  {"beta_fast", rope.beta_fast},
                                  {"beta_slow", rope.beta_slow}};
      break;
    default:
      throw gptq::error(fmt::format("a rope of type {} cannot be made a config.json of", name_of(rope.type)));
  }
  return document;
}

}  // namespace lm
