#include "gguf_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <gptq/error.hpp>
#include <gptq/packed.hpp>

#include "architecture.hpp"
#include "gguf_layers.hpp"
#include "gguf_tokenizer.hpp"
#include "model.hpp"
#include "output_files.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::ggml_tensor;
using gptq::checkpoint::ggml_type;
using gptq::checkpoint::gguf_file;
using gptq::checkpoint::gguf_metadata;
using gptq::checkpoint::gguf_tensor_info;

constexpr char const* rope_factors_name = "rope_freqs.weight";
constexpr char const* long_factors_name = "rope_factors_long.weight";
constexpr char const* short_factors_name = "rope_factors_short.weight";

/// What llama.cpp calls a linear layer, and an expert's share of the tensor that has those of all of them.
char const* gguf_name_of(linear_layer const& l) {
  bool const expert = l.expert != no_expert;
  switch (l.kind) {
    case linear::k_proj:
      return "attn_k";
    case linear::v_proj:
      return "attn_v";
    case linear::q_proj:
      return "attn_q";
    case linear::qkv_proj:
      return "attn_qkv";
    case linear::o_proj:
      return "attn_output";
    case linear::up_proj:
      return expert ? "ffn_up_exps" : "ffn_up";
    case linear::gate_proj:
      return expert ? "ffn_gate_exps" : "ffn_gate";
    case linear::gate_up_proj:
      return "ffn_up";
    case linear::down_proj:
      return expert ? "ffn_down_exps" : "ffn_down";
  }
  return "";
}

char const* gguf_name_of(norm kind) {
  switch (kind) {
    case norm::attention:
      return "attn_norm";
    case norm::attention_output:
      return "post_attention_norm";
    case norm::mlp:
      return "ffn_norm";
    case norm::mlp_output:
      return "post_ffw_norm";
    case norm::query:
      return "attn_q_norm";
    case norm::key:
      return "attn_k_norm";
  }
  return "";
}

/// A tensor of a model and where it is in a GGUF file.
struct tensor_place {
  std::string ours;
  std::string theirs;
  std::int64_t expert = no_expert;      ///< a part of a tensor [experts, out, in]
  std::int64_t interleaved = 0;         ///< as stored_weight has it
  linear_layer const* layer = nullptr;  ///< whose weight it is
};

std::vector<tensor_place> places_of(config const& c) {
  std::vector<tensor_place> places{{c.embedding_name(), "token_embd.weight"},
                                   {c.final_norm_name(), "output_norm.weight"}};
  if (!c.tie_word_embeddings) places.push_back({c.output_name + ".weight", "output.weight"});
  bool const interleaved = architecture_of(c).interleaved;
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    decoder_description const& layer = c.layers[i];
    std::string const prefix = fmt::format("blk.{}.", i);
    for (norm_layer const& n : layer.norms) {
      places.push_back({n.name + ".weight", prefix + gguf_name_of(n.kind) + ".weight"});
    }
    if (!layer.router.empty()) places.push_back({layer.router + ".weight", prefix + "ffn_gate_inp.weight"});
    for (linear_layer const& l : layer.linears) {
      bool const rotated = l.kind == linear::q_proj || l.kind == linear::k_proj;
      std::int64_t const rows = interleaved && rotated ? c.head_dim : 0;
      places.push_back({l.name + ".weight", prefix + gguf_name_of(l) + ".weight", l.expert, rows, &l});
      if (l.bias) places.push_back({l.name + ".bias", prefix + gguf_name_of(l) + ".bias", no_expert, rows});
    }
  }
  return places;
}

/// Rows of a matrix, from Hugging Face's order to GGUF's.
std::vector<std::byte> interleave(std::span<std::byte const> rows, std::int64_t count,
                                  std::int64_t head_dim) {
  std::vector<std::byte> result(rows.size());
  auto const row_bytes = rows.size() / static_cast<std::size_t>(count);
  for (std::int64_t row = 0; row < count; ++row) {
    auto const from = rows.subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes);
    std::copy(from.begin(), from.end(),
              result.begin() + static_cast<std::ptrdiff_t>(
                                   static_cast<std::size_t>(interleaved_row(row, head_dim)) * row_bytes));
  }
  return result;
}

// What can be written: type_for() of all of these, and their layers, unpacked.
using schemes = gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>;
using formats =
    gptq::combinations<schemes, gptq::bit_widths<4, 8>, gptq::group_sizes<32, 64, 128, gptq::whole_row>>;

std::vector<std::byte> blocks_of(packed_linear const& packed, ggml_type type) {
  return gptq::with_format<formats>(packed.format(), [&]<class Format>() {
    return to_ggml(gptq::unpack(view_of<Format>(packed.parts())), type);
  });
}

/// A tensor that is not a linear layer.
struct plain_tensor {
  gguf_tensor_info info;
  stored_weight const* weight;
  std::int64_t interleaved;
  float offset;  ///< is added to all of it

  std::vector<std::byte> bytes() const {
    if (auto const* const stored = std::get_if<ggml_tensor>(&weight->tensor);
        stored != nullptr && stored->type == info.type && interleaved == 0 && offset == 0.0F) {
      return {stored->bytes.begin(), stored->bytes.end()};
    }
    // A slice at a time in float32.
    constexpr std::int64_t slice = 1024;
    auto const columns = static_cast<std::int64_t>(info.shape.back());
    auto const count = info.shape.size() == 1 ? 1 : static_cast<std::int64_t>(info.shape[0]);
    std::vector<std::byte> result;
    for (std::int64_t first = 0; first < count; first += slice) {
      auto const rows = std::min(slice, count - first);
      std::vector<float> values(static_cast<std::size_t>(rows * columns));
      weight->rows(first, rows, values.data());
      for (float& v : values) v += offset;
      auto const encoded = gptq::checkpoint::from_float(info.type, values);
      result.insert(result.end(), encoded.begin(), encoded.end());
    }
    return interleaved == 0 ? result : interleave(result, columns, interleaved);
  }
};

/// The type that keeps a tensor as it is.
ggml_type type_of(stored_weight const& weight) {
  if (auto const* const stored = std::get_if<ggml_tensor>(&weight.tensor)) return stored->type;
  switch (std::get<gptq::checkpoint::tensor_view>(weight.tensor).type) {
    case gptq::checkpoint::dtype::f16:
      return ggml_type::f16;
    case gptq::checkpoint::dtype::bf16:
      return ggml_type::bf16;
    default:
      return ggml_type::f32;
  }
}

/// What llama.cpp calls the types of most of a file's weights.
std::uint32_t file_type_of(ggml_type type) {
  switch (type) {
    case ggml_type::q4_0:
      return 2;
    case ggml_type::q4_1:
      return 3;
    default:
      return 7;  // Q8_0
  }
}

/// Positions that llama.cpp may be asked for: where it sees all tokens and the model a window, no more than
/// that.
std::int64_t context_length(config const& c, architecture const& a) {
  std::int64_t length = c.max_position_embeddings;
  if (a.gguf_name == "gemma2" || a.gguf_name == "gemma3") return length;  // it knows their windows
  for (decoder_description const& layer : c.layers) {
    if (layer.sliding_window > 0) length = std::min(length, layer.sliding_window);
  }
  return length;
}

void add_rope(gguf_settings& settings, rope_parameters const& rope) {
  settings.add("rope.dimension_count", static_cast<std::uint32_t>(rope.dimensions));
  settings.add("rope.freq_base", static_cast<float>(rope.theta));
  switch (rope.type) {
    case rope_type::standard:
    case rope_type::llama3:  // in a tensor
      return;
    case rope_type::dynamic:
      throw no_gguf("a rope of type dynamic");
    case rope_type::linear:
      settings.add("rope.scaling.type", "linear");
      settings.add("rope.scaling.factor", static_cast<float>(rope.factor));
      return;
    case rope_type::yarn: {
      double const usual = 0.1 * std::log(rope.factor) + 1.0;
      if (std::abs(rope.attention_factor - usual) > 1e-6 || rope.beta_fast != 32.0 || rope.beta_slow != 1.0 ||
          !rope.truncate) {
        throw no_gguf("this rope of type yarn");
      }
      settings.add("rope.scaling.type", "yarn");
      settings.add("rope.scaling.factor", static_cast<float>(rope.factor));
      settings.add("rope.scaling.original_context_length",
                   static_cast<std::uint32_t>(rope.original_positions));
      return;
    }
    case rope_type::longrope:
      settings.add("rope.scaling.type", "longrope");
      // No factor: llama.cpp would divide positions by it, too.
      settings.add("rope.scaling.original_context_length",
                   static_cast<std::uint32_t>(rope.original_positions));
      settings.add("rope.scaling.attn_factor", static_cast<float>(rope.attention_factor));
      return;
  }
}

gguf_metadata metadata_of(config const& c, fs::path const& source, ggml_type type) {
  gguf_metadata metadata;
  architecture const& a = architecture_of(c);
  gguf_settings settings{metadata, a.gguf_name};
  auto const put = [&](char const* key, std::int64_t value) {
    settings.add(key, static_cast<std::uint32_t>(value));
  };
  metadata.add("general.architecture", a.gguf_name);
  metadata.add("general.type", "model");
  auto const name = fs::absolute(source).lexically_normal();
  metadata.add("general.name",
               valid_utf8((name.has_filename() ? name : name.parent_path()).filename().string()));
  metadata.add("general.file_type", file_type_of(type));
  metadata.add("general.quantization_version", std::uint32_t{2});
  put("block_count", c.num_hidden_layers);
  put("context_length", context_length(c, a));
  put("embedding_length", c.hidden_size);
  put("feed_forward_length", c.intermediate_size);
  put("attention.head_count", c.num_attention_heads);
  put("attention.head_count_kv", c.num_key_value_heads);
  put("attention.key_length", c.head_dim);
  put("attention.value_length", c.head_dim);
  put("vocab_size", c.vocab_size);
  settings.add("attention.layer_norm_rms_epsilon", static_cast<float>(c.rms_norm_eps));
  add_rope(settings, c.ropes.front());
  if (c.attention_softcap != 0.0)
    settings.add("attn_logit_softcapping", static_cast<float>(c.attention_softcap));
  if (c.logit_softcap != 0.0) settings.add("final_logit_softcapping", static_cast<float>(c.logit_softcap));
  if (c.num_experts > 0) {
    put("expert_count", c.num_experts);
    put("expert_used_count", c.experts_per_token);
    put("expert_feed_forward_length", c.expert_intermediate_size);
  }
  if (a.write_gguf != nullptr) a.write_gguf(c, settings);
  if (is_gguf(source)) {
    gguf_file const file(source);
    for (auto const& [key, value] : file.metadata()) {
      if (key.starts_with("tokenizer.")) metadata.add(key, value);
    }
  } else {
    add_tokenizer(metadata, source, c);
  }
  return metadata;
}

/// By how much each rotary frequency is slowed down: all that Llama 3's scaling comes to.
std::vector<float> rope_factors_of(config const& c) {
  rope_parameters const& rope = c.ropes.front();
  if (rope.type != rope_type::llama3 && rope.divisors.empty()) return {};
  rope_parameters plain = rope;
  plain.type = rope_type::standard;
  plain.divisors.clear();
  auto const from = rope_frequencies(plain, 1);
  auto const to = rope_frequencies(rope, 1);
  std::vector<float> factors;
  for (std::size_t i = 0; i < from.size(); ++i) factors.push_back(static_cast<float>(from[i] / to[i]));
  return factors;
}

/// Tables of factors that belong to the rope.
std::vector<std::pair<char const*, std::vector<float>>> rope_tensors(config const& c) {
  std::vector<std::pair<char const*, std::vector<float>>> tensors;
  if (auto factors = rope_factors_of(c); !factors.empty())
    tensors.emplace_back(rope_factors_name, std::move(factors));
  rope_parameters const& rope = c.ropes.front();
  if (rope.type == rope_type::longrope) {
    tensors.emplace_back(long_factors_name,
                         std::vector<float>(rope.long_factors.begin(), rope.long_factors.end()));
    tensors.emplace_back(short_factors_name,
                         std::vector<float>(rope.short_factors.begin(), rope.short_factors.end()));
  }
  return tensors;
}

/// One positive factor for each pair of a head's elements.
std::vector<double> factors_in(gguf_file const& file, fs::path const& path, char const* name,
                               std::int64_t dimensions) {
  auto const* const tensor = file.find_tensor(name);
  if (tensor == nullptr) return {};
  auto const values = to_float(*tensor);
  if (values.size() != static_cast<std::size_t>(dimensions / 2) ||
      !std::all_of(values.begin(), values.end(), [](float f) { return f > 0.0F && std::isfinite(f); })) {
    throw gptq::error(fmt::format("{}: tensor '{}' is not one positive factor for each pair of a head",
                                  path.string(), name));
  }
  return {values.begin(), values.end()};
}

rope_parameters read_rope(gguf_keys const& keys, fs::path const& path, config const& c) {
  rope_parameters rope;
  rope.theta = keys.positive("rope.freq_base", 10000.0);
  rope.dimensions = keys.size("rope.dimension_count", c.head_dim);
  if (rope.dimensions > c.head_dim || rope.dimensions % 2 != 0) {
    keys.refuse("rope.dimension_count",
                fmt::format("is {}: not an even part of a head of {}", rope.dimensions, c.head_dim));
  }
  rope.original_positions =
      keys.positive("rope.scaling.original_context_length", static_cast<double>(c.max_position_embeddings));
  rope.divisors = factors_in(keys.file(), path, rope_factors_name, rope.dimensions);
  // An older name; and a factor without a type means linear.
  double const factor = keys.positive("rope.scaling.factor", keys.positive("rope.scale_linear", 1.0));
  auto const type = keys.file().get<std::string_view>(keys.full("rope.scaling.type"));
  if (type ? *type == "linear" : factor != 1.0) {
    rope.type = rope_type::linear;
    rope.factor = factor;
  } else if (type && *type == "yarn") {
    rope.type = rope_type::yarn;
    rope.factor = factor;
    rope.attention_factor =
        keys.positive("rope.scaling.attn_factor", 1.0) * (factor > 1.0 ? 0.1 * std::log(factor) + 1.0 : 1.0);
    rope.beta_fast = keys.positive("rope.scaling.yarn_beta_fast", 32.0);
    rope.beta_slow = keys.positive("rope.scaling.yarn_beta_slow", 1.0);
    for (char const* const key : {"rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
                                  "rope.scaling.yarn_log_multiplier"}) {
      if (keys.has(key)) keys.refuse(key, "is there: not implemented");
    }
  } else if (type ? *type == "longrope" : keys.file().find_tensor(long_factors_name) != nullptr) {
    rope.type = rope_type::longrope;
    rope.attention_factor = keys.positive("rope.scaling.attn_factor", 1.0);
    rope.long_factors = factors_in(keys.file(), path, long_factors_name, rope.dimensions);
    rope.short_factors = factors_in(keys.file(), path, short_factors_name, rope.dimensions);
    if (rope.long_factors.empty() || rope.short_factors.empty()) {
      throw gptq::error(fmt::format("{}: has no tensors '{}' and '{}'", path.string(), long_factors_name,
                                    short_factors_name));
    }
  } else if (type && *type != "none") {
    keys.refuse("rope.scaling.type", fmt::format("is {}: not implemented", *type));
  }
  return rope;
}

/// The architecture that a file is of: where several share a name, the one with experts or without.
architecture const& architecture_in(gguf_file const& file, fs::path const& path) {
  auto const name = file.at<std::string_view>("general.architecture");
  bool const experts = file.get<std::int64_t>(fmt::format("{}.expert_count", name)).value_or(0) > 0;
  std::vector<std::string> known;
  for (architecture const& a : all_architectures()) {
    if (a.gguf_name.empty()) continue;
    known.push_back(a.gguf_name);
    if (a.gguf_name == name && a.gguf_experts == experts) return a;
  }
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  if (std::find(known.begin(), known.end(), name) != known.end()) {
    throw gptq::error(
        fmt::format("{}: metadata '{}.expert_count' is not what this architecture has", path.string(), name));
  }
  throw gptq::error(fmt::format("{}: metadata 'general.architecture' is {}: only {} are implemented",
                                path.string(), name, fmt::join(known, ", ")));
}

/// All tensors but the linear layers' weights.
std::vector<plain_tensor> plain_tensors(model const& m, std::optional<ggml_type> embeddings) {
  config const& c = m.config();
  std::map<std::string, tensor_place> places;
  for (tensor_place const& place : places_of(c)) places[place.ours] = place;
  std::vector<plain_tensor> tensors;
  m.for_each_float_weight([&](std::string const& name, stored_weight const& weight) {
    bool const is_embedding = name == c.embedding_name() || name == c.output_name + ".weight";
    // A tied model may have its one matrix under the output layer's name.
    std::string const& key = c.tie_word_embeddings && is_embedding ? c.embedding_name() : name;
    tensor_place const& place = places.at(key);
    bool const is_norm = weight.shape().size() == 1 && !name.ends_with(".bias");
    tensors.push_back(
        {{place.theirs, is_embedding ? embeddings.value_or(type_of(weight)) : ggml_type::f32, weight.shape()},
         &weight,
         place.interleaved,
         is_norm ? static_cast<float>(c.norm_offset) : 0.0F});
  });
  return tensors;
}

std::vector<std::byte> encoded(plain_tensor const& t) {
  try {
    return t.bytes();
  } catch (gptq::error const& e) {
    throw gptq::error(t.info.name + ": " + e.what());
  }
}

}  // namespace

bool is_gguf(fs::path const& path) { return fs::is_regular_file(path); }

fs::path directory_of(fs::path const& path) { return is_gguf(path) ? path.parent_path() : path; }

std::int64_t interleaved_row(std::int64_t row, std::int64_t head_dim) {
  std::int64_t const in_head = row % head_dim;
  std::int64_t const half = in_head / (head_dim / 2);
  return row - in_head + 2 * (in_head % (head_dim / 2)) + half;
}

config config_of(gguf_file const& file, fs::path const& path) {
  architecture const& a = architecture_in(file, path);
  gguf_keys const keys(file, path.string(), a.gguf_name);

  config c{};
  c.architecture = a.name;
  c.num_hidden_layers = keys.size("block_count");
  if (static_cast<std::size_t>(c.num_hidden_layers) > file.tensors().size()) {
    keys.refuse("block_count", fmt::format("is {}, more than the file's {} tensors", c.num_hidden_layers,
                                           file.tensors().size()));
  }
  c.max_position_embeddings = keys.size("context_length");
  c.hidden_size = keys.size("embedding_length");
  c.num_attention_heads = keys.size("attention.head_count");
  c.num_key_value_heads = keys.size("attention.head_count_kv", c.num_attention_heads);
  c.rms_norm_eps = keys.positive("attention.layer_norm_rms_epsilon");
  c.tie_word_embeddings = file.find_tensor("output.weight") == nullptr;
  auto const* const embeddings = file.find_tensor("token_embd.weight");
  if (embeddings == nullptr || embeddings->shape.size() != 2) {
    throw gptq::error(path.string() + ": has no matrix 'token_embd.weight'");
  }
  c.vocab_size = keys.size("vocab_size", static_cast<std::int64_t>(embeddings->shape[0]));
  auto const token_of = [&](char const* key) -> std::optional<std::int32_t> {
    auto const id = file.get<std::int64_t>(key);
    if (!id) return std::nullopt;
    if (*id < 0 || *id >= c.vocab_size) {
      throw gptq::error(
          fmt::format("{}: metadata '{}' is {}: not a token of the vocabulary", path.string(), key, *id));
    }
    return static_cast<std::int32_t>(*id);
  };
  c.bos_token_id = token_of("tokenizer.ggml.bos_token_id");
  for (char const* const key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    auto const end = token_of(key);
    if (end && std::find(c.eos_token_id.begin(), c.eos_token_id.end(), *end) == c.eos_token_id.end()) {
      c.eos_token_id.push_back(*end);
    }
  }

  if (!keys.has("attention.key_length") && c.hidden_size % c.num_attention_heads != 0) {
    keys.refuse("attention.head_count",
                fmt::format("does not divide {}, and there is no key_length", keys.full("embedding_length")));
  }
  c.head_dim = keys.size("attention.key_length", c.hidden_size / c.num_attention_heads);
  if (c.head_dim % 2 != 0) throw gptq::error(path.string() + ": heads of an odd size cannot be rotated");
  if (std::int64_t const value = keys.size("attention.value_length", c.head_dim); value != c.head_dim) {
    keys.refuse("attention.value_length",
                fmt::format("is {}: only the size of a head is implemented", value));
  }
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    keys.refuse("attention.head_count_kv",
                fmt::format("does not divide {}", keys.full("attention.head_count")));
  }
  c.attention_scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  if (a.gguf_experts) {
    c.num_experts = keys.size("expert_count");
    c.experts_per_token = keys.size("expert_used_count");
    if (c.experts_per_token > c.num_experts) keys.refuse("expert_used_count", "is more than the experts");
    c.expert_intermediate_size = keys.size("expert_feed_forward_length", keys.size("feed_forward_length", 1));
    c.intermediate_size = keys.size("feed_forward_length", c.expert_intermediate_size);
  } else {
    c.intermediate_size = keys.size("feed_forward_length");
  }
  if (keys.has("attn_logit_softcapping")) c.attention_softcap = keys.positive("attn_logit_softcapping");
  if (keys.has("final_logit_softcapping")) c.logit_softcap = keys.positive("final_logit_softcapping");
  c.query_key_value_bias = file.find_tensor("blk.0.attn_q.bias") != nullptr;
  c.output_bias = file.find_tensor("blk.0.attn_output.bias") != nullptr;
  c.mlp_bias = file.find_tensor("blk.0.ffn_up.bias") != nullptr;
  c.ropes = {read_rope(keys, path, c)};
  if (a.read_gguf != nullptr) a.read_gguf(keys, c);
  complete(c);
  return c;
}

std::map<std::string, stored_weight, std::less<>> weights_of(gguf_file const& file, config const& c) {
  std::map<std::string, stored_weight, std::less<>> weights;
  std::set<std::string_view> taken{rope_factors_name, long_factors_name, short_factors_name};
  for (tensor_place const& place : places_of(c)) {
    auto const* const tensor = file.find_tensor(place.theirs);
    if (tensor == nullptr) continue;
    taken.insert(file.tensors().find(place.theirs)->first);
    ggml_tensor part = *tensor;
    if (place.expert != no_expert) {
      auto const experts = static_cast<std::size_t>(c.num_experts);
      if (part.shape.size() != 3 || part.shape[0] != experts) {
        throw gptq::error(fmt::format("tensor '{}' is {}, not a matrix for each of {} experts", place.theirs,
                                      to_string(*tensor), experts));
      }
      std::size_t const bytes = part.bytes.size() / experts;
      part.shape.erase(part.shape.begin());
      part.bytes = part.bytes.subspan(static_cast<std::size_t>(place.expert) * bytes, bytes);
    }
    weights[place.ours] = {part, place.interleaved};
  }
  // What nobody takes keeps its name, which no model has.
  for (auto const& [name, tensor] : file.tensors()) {
    if (!taken.contains(name)) weights[name] = {tensor, 0};
  }
  return weights;
}

ggml_type gguf_type_of(gptq::format_spec const& format) {
  if (format.scales == gptq::scale_type::float32) {
    throw gptq::error("GGUF blocks have float16 scales: float32 ones would be rounded after the fact");
  }
  if (format.bits != 4 && format.bits != 8) {
    throw gptq::error(
        fmt::format("GGUF has no blocks for codes of {} bits as they are here: 4 bits (Q4_0, Q4_1) "
                    "and 8 bits (Q8_0) can be written",
                    format.bits));
  }
  return gptq::with_format<formats>(format, []<class Format>() {
    ggml_type const type = gptq::checkpoint::type_for(Format::levels).value_or(ggml_type::q8_0);
    check_type(type, Format::levels, Format::group_size);
    return type;
  });
}

void check_gguf(model const& m, fs::path const& source, gptq::format_spec const& format,
                std::optional<ggml_type> embeddings) {
  config const& c = m.config();
  if (architecture_of(c).gguf_name.empty()) {
    throw gptq::error(
        fmt::format("llama.cpp's name for model architecture {} is not known: --format packed and gptq can "
                    "be written",
                    c.architecture));
  }
  for (decoder_description const& layer : c.layers) {
    for (linear_layer const& l : layer.linears) {
      if (l.in % 32 != 0) {
        throw gptq::error(
            fmt::format("GGUF has blocks of 32 weights: rows of {} are not whole blocks", l.in));
      }
    }
  }
  metadata_of(c, source, gguf_type_of(format));
  if (!embeddings) return;
  for (plain_tensor const& t : plain_tensors(m, embeddings)) {
    if (t.info.type == *embeddings) encoded(t);  // whether its values fit
  }
}

void write_gguf_model(fs::path const& directory, model const& m, fs::path const& source,
                      std::optional<ggml_type> embeddings, gguf_blocks blocks) {
  std::error_code failure;
  fs::create_directories(directory, failure);
  if (failure) throw gptq::error(directory.string() + ": cannot be made: " + failure.message());
  config const& c = m.config();
  std::vector<gguf_tensor_info> infos;
  /// A linear layer, or those of all experts.
  struct linear_tensor {
    gguf_tensor_info info;
    std::int64_t interleaved;
    std::vector<named_layer> parts;
  };
  std::vector<linear_tensor> layers;
  std::map<std::string, packed_linear const*> packed;
  m.for_each_packed([&](linear_layer const& l, packed_linear const& p) { packed[l.name + ".weight"] = &p; });
  std::map<std::string, std::size_t> of_experts;  // places in `layers`
  for (tensor_place const& place : places_of(c)) {
    if (place.layer == nullptr) continue;
    packed_linear const* const layer = packed.at(place.ours);
    if (auto const found = of_experts.find(place.theirs); found != of_experts.end()) {
      layers[found->second].parts.emplace_back(place.ours, layer);
      continue;
    }
    std::vector<std::size_t> shape{static_cast<std::size_t>(place.layer->out),
                                   static_cast<std::size_t>(place.layer->in)};
    if (place.expert != no_expert) {
      shape.insert(shape.begin(), static_cast<std::size_t>(c.num_experts));
      of_experts[place.theirs] = layers.size();
    }
    ggml_type const type =
        blocks == gguf_blocks::exact ? ggml_type::q8_0 : gguf_type_of(layer->format());  // settled below
    layers.push_back({{place.theirs, type, shape}, place.interleaved, {{place.ours, layer}}});
  }
  if (blocks == gguf_blocks::exact) {
    for (linear_tensor& t : layers) t.info.type = exact_type(t.parts);
  }
  std::vector<plain_tensor> const others = plain_tensors(m, embeddings);
  for (plain_tensor const& t : others) infos.push_back(t.info);
  auto const of_rope = rope_tensors(c);
  for (auto const& [name, factors] : of_rope) infos.push_back({name, ggml_type::f32, {factors.size()}});
  for (linear_tensor const& t : layers) infos.push_back(t.info);

  gptq::checkpoint::gguf_writer out(directory / gguf_name, metadata_of(c, source, layers.front().info.type),
                                    std::move(infos));
  for (plain_tensor const& t : others) out.write(encoded(t));
  for (auto const& [name, factors] : of_rope) out.write(std::as_bytes(std::span(factors)));
  for (linear_tensor const& t : layers) {
    std::vector<std::byte> all;
    for (auto const& [name, layer] : t.parts) {
      try {
        auto const bytes =
            blocks == gguf_blocks::exact ? exact_blocks(*layer, t.info.type) : blocks_of(*layer, t.info.type);
        auto const rows = static_cast<std::int64_t>(t.info.shape[t.info.shape.size() - 2]);
        auto const ordered = t.interleaved > 0 ? interleave(bytes, rows, t.interleaved) : bytes;
        all.insert(all.end(), ordered.begin(), ordered.end());
      } catch (gptq::error const& e) {
        throw gptq::error(name + ": " + e.what());
      }
    }
    out.write(all);
  }
  out.finish();
}

}  // namespace lm
