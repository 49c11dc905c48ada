#include "architecture.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <gptq/error.hpp>

namespace lm {

using nlohmann::json;

void gguf_keys::refuse(std::string_view key, std::string const& why) const {
  throw gptq::error(fmt::format("{}: metadata '{}' {}", where_, full(key), why));
}

std::int64_t gguf_keys::size(std::string_view key, std::optional<std::int64_t> missing) const {
  constexpr std::int64_t limit = std::int64_t{1} << 24;
  auto const given = file_.get<std::int64_t>(full(key));
  std::int64_t const value = given ? *given : missing ? *missing : file_.at<std::int64_t>(full(key));
  if (value < 1 || value > limit) refuse(key, fmt::format("is {}: not between 1 and {}", value, limit));
  return value;
}

double gguf_keys::positive(std::string_view key, std::optional<double> missing) const {
  auto const given = file_.get<double>(full(key));
  double const value = given ? *given : missing ? *missing : file_.at<double>(full(key));
  if (!(value > 0.0) || !std::isfinite(value)) refuse(key, fmt::format("is {}: not positive", value));
  return value;
}

bool gguf_keys::has(std::string_view key) const { return file_.metadata().contains(full(key)); }

architecture const& architecture_of(config const& c) {
  for (architecture const& a : all_architectures()) {
    if (a.name == c.architecture) return a;
  }
  throw gptq::error("no model architecture is called '" + c.architecture + "'");
}

config read_common(json_keys const& keys) {
  config c;
  c.hidden_size = keys.size("hidden_size");
  c.intermediate_size = keys.size("intermediate_size");
  c.num_hidden_layers = keys.size("num_hidden_layers");
  c.num_attention_heads = keys.size("num_attention_heads");
  c.vocab_size = keys.size("vocab_size");
  // From here on a missing key has the default of transformers' LlamaConfig.
  c.num_key_value_heads = keys.size("num_key_value_heads", c.num_attention_heads);
  c.max_position_embeddings = keys.size("max_position_embeddings", 2048);
  c.rms_norm_eps = keys.positive("rms_norm_eps", 1e-6);
  c.tie_word_embeddings = keys.flag("tie_word_embeddings", false);
  c.eos_token_id = keys.tokens("eos_token_id", c.vocab_size);
  if (auto const bos = keys.tokens("bos_token_id", c.vocab_size); !bos.empty()) c.bos_token_id = bos.front();
  if (!keys.has("head_dim") && c.hidden_size % c.num_attention_heads != 0) {
    keys.refuse("num_attention_heads", "does not divide hidden_size, and there is no head_dim");
  }
  c.head_dim = keys.size("head_dim", c.hidden_size / c.num_attention_heads);
  if (c.head_dim % 2 != 0) throw gptq::error(keys.where() + ": heads of an odd size cannot be rotated");
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    keys.refuse("num_key_value_heads", "does not divide num_attention_heads");
  }
  c.attention_scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  return c;
}

void read_biases(json_keys const& keys, config& c) {
  c.query_key_value_bias = c.output_bias = keys.flag("attention_bias", false);
  c.mlp_bias = keys.flag("mlp_bias", false);
}

std::optional<std::vector<bool>> sliding_layers(json_keys const& keys, config const& c) {
  if (!keys.has("layer_types")) return std::nullopt;
  json const& types = keys.at("layer_types");
  if (!types.is_array() || types.size() != static_cast<std::size_t>(c.num_hidden_layers)) {
    keys.refuse("layer_types", "not a list of one type a layer");
  }
  std::vector<bool> sliding;
  for (json const& type : types) {
    if (type != "full_attention" && type != "sliding_attention") {
      keys.refuse("layer_types", "only full_attention and sliding_attention are implemented");
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

void read_qwen_windows(json_keys const& keys, config& c) {
  bool const used = keys.flag("use_sliding_window", false);
  std::int64_t const first = keys.has("max_window_layers") ? keys.integer("max_window_layers") : 28;
  auto const listed = sliding_layers(keys, c);
  keys.ignore("sliding_window");
  if (!used && !(listed && std::count(listed->begin(), listed->end(), true) > 0)) return;
  set_sliding(keys, c, keys.size("sliding_window", 4096), [&](std::int64_t i) { return i >= first; });
}

gptq::error no_gguf(std::string const& what) {
  return gptq::error("llama.cpp does not compute " + what +
                     " in this model architecture: --format packed and gptq can");
}

std::int64_t rotated_dimensions(json_keys const& keys, config const& c) {
  double const share = keys.positive("partial_rotary_factor", 1.0);
  auto const dimensions = static_cast<std::int64_t>(static_cast<double>(c.head_dim) * share);
  if (share > 1.0 || dimensions < 2 || dimensions % 2 != 0) {
    keys.refuse("partial_rotary_factor", fmt::format("not an even part of a head of {}", c.head_dim));
  }
  return dimensions;
}

rope_parameters read_rope_keys(json_keys const& keys, config const& c, double theta) {
  rope_parameters rope;
  rope.theta = keys.positive("rope_theta", theta);
  rope.dimensions = rotated_dimensions(keys, c);
  rope.original_positions = static_cast<double>(c.max_position_embeddings);
  double const trained_on =
      keys.has("original_max_position_embeddings") ? keys.positive("original_max_position_embeddings") : 0.0;
  // transformers 5 keeps all of it in one place.
  for (char const* const key : {"rope_scaling", "rope_parameters"}) {
    if (!keys.has(key)) continue;
    json_keys const inner = keys.object(key);
    if (inner.has("partial_rotary_factor")) rope.dimensions = rotated_dimensions(inner, c);
    rope = read_rope(inner, rope, c.max_position_embeddings, trained_on);
  }
  return rope;
}

}  // namespace lm
