#include "config.hpp"

#include <cmath>
#include <fstream>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

#include "gguf_model.hpp"

namespace lm {
namespace {

using nlohmann::json;

/// The keys of one JSON object. A key that is null counts as missing, as it does in transformers.
class reader {
 public:
  reader(json const& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) throw gptq::error(where_ + ": is not a JSON object");
  }

  json const* find(char const* key) const {
    auto const found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  json const& at(char const* key) const {
    auto const* const value = find(key);
    if (value == nullptr) throw gptq::error(fmt::format("{}: has no '{}'", where_, key));
    return *value;
  }

  [[noreturn]] void refuse(char const* key, std::string const& why) const {
    throw gptq::error(fmt::format("{}: '{}' is {}: {}", where_, key, at(key).dump(), why));
  }

  std::int64_t size(char const* key) const {
    constexpr std::int64_t limit = std::int64_t{1} << 24;
    json const& value = at(key);
    if (!value.is_number_integer() || value < 1 || value > limit) {
      refuse(key, fmt::format("not a whole number between 1 and {}", limit));
    }
    return value.get<std::int64_t>();
  }
  std::int64_t size(char const* key, std::int64_t missing) const { return find(key) ? size(key) : missing; }

  double positive(char const* key) const {
    json const& value = at(key);
    if (!value.is_number() || !(value.get<double>() > 0.0) || !std::isfinite(value.get<double>())) {
      refuse(key, "not a positive number");
    }
    return value.get<double>();
  }
  double positive(char const* key, double missing) const { return find(key) ? positive(key) : missing; }

  bool flag(char const* key, bool missing) const {
    if (find(key) == nullptr) return missing;
    if (!at(key).is_boolean()) refuse(key, "neither true nor false");
    return at(key).get<bool>();
  }

  std::string text(char const* key, std::string const& missing) const {
    if (find(key) == nullptr) return missing;
    if (!at(key).is_string()) refuse(key, "not a string");
    return at(key).get<std::string>();
  }

  /// One token id, or a list of them; none when missing.
  std::vector<std::int32_t> tokens(char const* key, std::int64_t vocab_size) const {
    std::vector<std::int32_t> ids;
    auto const* const value = find(key);
    if (value == nullptr) return ids;
    for (json const& id : value->is_array() ? *value : json::array({*value})) {
      if (!id.is_number_integer() || id < 0 || id >= vocab_size) refuse(key, "not a token of the vocabulary");
      ids.push_back(id.get<std::int32_t>());
    }
    return ids;
  }

  int integer(char const* key) const {
    if (!at(key).is_number_integer()) refuse(key, "not a whole number");
    return at(key).get<int>();
  }

  reader object(char const* key) const { return {at(key), fmt::format("{}: '{}'", where_, key)}; }
  json const& members() const { return object_; }

 private:
  json const& object_;
  std::string where_;
};

json parse(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw gptq::error(path.string() + ": cannot be opened");
  try {
    return json::parse(in);
  } catch (json::exception const& e) {
    throw gptq::error(path.string() + ": not valid JSON: " + e.what());
  }
}

void check_architecture(reader const& keys) {
  if (keys.text("model_type", "") != "llama") {
    keys.at("model_type");
    keys.refuse("model_type", "only llama is implemented");
  }
  if (auto const* const names = keys.find("architectures");
      names != nullptr && *names != json::array({"LlamaForCausalLM"})) {
    keys.refuse("architectures", "only LlamaForCausalLM is implemented");
  }
  if (keys.text("hidden_act", "silu") != "silu") keys.refuse("hidden_act", "only silu is implemented");
  for (auto const* const key : {"attention_bias", "mlp_bias"}) {
    if (keys.flag(key, false)) keys.refuse(key, "biases are not implemented");
  }
}

/// What packed_model.hpp says about each linear layer.
std::map<std::string, gptq::format_spec> parse_packed(reader const& keys) {
  if (keys.find("quantization_config") == nullptr) return {};
  reader const quantization = keys.object("quantization_config");
  if (quantization.text("quant_method", "") != packed_method) return {};
  std::map<std::string, gptq::format_spec> formats;
  reader const layers = quantization.object("layers");
  for (auto const& [name, value] : layers.members().items()) {
    reader const format = layers.object(name.c_str());
    std::string const scales = format.text("scales", "float16");
    if (scales != "float16" && scales != "float32") format.refuse("scales", "neither float16 nor float32");
    formats[name] = {format.text("scheme", ""), format.integer("bits"), format.integer("group_size"),
                     scales == "float16" ? gptq::scale_type::float16 : gptq::scale_type::float32};
  }
  if (formats.empty()) keys.refuse("quantization_config", "no layer in it");
  return formats;
}

/// What quantize_config.json says, too.
quantized_checkpoint parse_gptq(reader const& quantization) {
  std::string const version = quantization.text("checkpoint_format", "gptq");
  if (version != "gptq" && version != "gptq_v2") {
    quantization.refuse("checkpoint_format", "only gptq and gptq_v2 can be read");
  }
  quantized_checkpoint checkpoint;
  checkpoint.format.scheme = quantization.flag("sym", true) ? "fixed_zero" : "asymmetric";
  int const bits = checkpoint.format.bits = quantization.integer("bits");
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) quantization.refuse("bits", "not 2, 3, 4 or 8");
  checkpoint.format.group_size = quantization.integer("group_size");
  if (version == "gptq_v2") checkpoint.version = gptq::checkpoint::gptq_version::v2;
  return checkpoint;
}

/// AutoAWQ's dictionary, by the names that it and those that transformers have for its keys.
quantized_checkpoint parse_awq(reader const& quantization) {
  auto const either = [&](char const* one, char const* other) {
    return quantization.find(one) != nullptr ? one : other;
  };
  std::string const version = quantization.text("version", "gemm");
  if (version != "gemm" && version != "GEMM") quantization.refuse("version", "only gemm can be read");
  if (!quantization.flag("zero_point", true)) {
    quantization.refuse("zero_point", "only layers with zero points can be read");
  }
  char const* const bits = either("bits", "w_bit");
  if (quantization.integer(bits) != 4) quantization.refuse(bits, "not 4");
  int const group_size = quantization.integer(either("group_size", "q_group_size"));
  return {checkpoint_method::awq, {"asymmetric", 4, group_size}, {}};
}

/// One scheme for all layers, as llm-compressor's recipes for weights have it.
quantized_checkpoint parse_compressed(reader const& quantization) {
  if (quantization.text("format", "") != "pack-quantized") {
    quantization.refuse("format", "only pack-quantized can be read");
  }
  if (auto const* const transforms = quantization.find("transform_config");
      transforms != nullptr && !transforms->empty()) {
    quantization.refuse("transform_config", "transformed weights are not implemented");
  }
  if (auto const* const sparsity = quantization.find("sparsity_config");
      sparsity != nullptr && !sparsity->empty() &&
      quantization.object("sparsity_config").text("format", "") != "dense") {
    quantization.refuse("sparsity_config", "sparse weights are not implemented");
  }
  reader const groups = quantization.object("config_groups");
  if (groups.members().size() != 1) {
    quantization.refuse("config_groups", "only one scheme for all layers is implemented");
  }
  reader const group = groups.object(groups.members().begin().key().c_str());
  if (group.at("targets") != json::array({"Linear"})) {
    group.refuse("targets", "only [\"Linear\"] is implemented");
  }
  for (auto const* const key : {"input_activations", "output_activations"}) {
    if (group.find(key) != nullptr) group.refuse(key, "quantized activations are not implemented");
  }
  reader const weights = group.object("weights");
  if (weights.text("type", "int") != "int") weights.refuse("type", "only int is implemented");
  int const bits = weights.integer("num_bits");
  if (bits != 4 && bits != 8) weights.refuse("num_bits", "neither 4 nor 8");
  bool const in_groups = weights.find("group_size") != nullptr && weights.integer("group_size") > 0;
  std::string const strategy = weights.text("strategy", in_groups ? "group" : "channel");
  if (strategy != "group" && strategy != "channel") {
    weights.refuse("strategy", "only group and channel are implemented");
  }
  return {checkpoint_method::compressed_tensors,
          {weights.flag("symmetric", true) ? "fixed_zero" : "asymmetric", bits,
           strategy == "group" ? weights.integer("group_size") : gptq::whole_row},
          {}};
}

/// What "quantization_config" says of a checkpoint's layers; nothing when there is none, or it is a packed
/// model's.
std::optional<quantized_checkpoint> parse_checkpoint(reader const& keys) {
  if (keys.find("quantization_config") == nullptr) return std::nullopt;
  reader const quantization = keys.object("quantization_config");
  std::string const method = quantization.text("quant_method", "");
  if (method == packed_method) return std::nullopt;
  if (method == gptq_method) return parse_gptq(quantization);
  if (method == "awq") return parse_awq(quantization);
  if (method == "compressed-tensors") return parse_compressed(quantization);
  keys.refuse("quantization_config",
              fmt::format("only {}, {}, awq and compressed-tensors can be read", packed_method, gptq_method));
}

/// The scaling that a "rope_scaling" or "rope_parameters" object asks for.
std::optional<rope_scaling> parse_scaling(reader const& keys) {
  char const* const key = keys.find("rope_type") != nullptr ? "rope_type" : "type";  // older files: "type"
  std::string const type = keys.text(key, "default");
  if (type == "default") return std::nullopt;
  if (type != "llama3") keys.refuse(key, "only llama3 is implemented");
  rope_scaling const scaling{keys.positive("factor"), keys.positive("low_freq_factor"),
                             keys.positive("high_freq_factor"),
                             keys.positive("original_max_position_embeddings")};
  if (!(scaling.low_freq_factor < scaling.high_freq_factor)) {
    keys.refuse("low_freq_factor", "not below high_freq_factor");
  }
  return scaling;
}

}  // namespace

config read_config(std::filesystem::path const& directory) {
  if (is_gguf(directory)) return config_of(gptq::checkpoint::gguf_file(directory), directory);
  if (!std::filesystem::is_directory(directory)) {
    throw gptq::error(directory.string() + ": is not a directory");
  }
  auto const path = directory / "config.json";
  json const document = parse(path);
  reader const keys(document, path.string());
  check_architecture(keys);

  config c{};
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

  if (keys.find("head_dim") == nullptr && c.hidden_size % c.num_attention_heads != 0) {
    keys.refuse("num_attention_heads", "does not divide hidden_size, and there is no head_dim");
  }
  c.head_dim = keys.size("head_dim", c.hidden_size / c.num_attention_heads);
  if (c.head_dim % 2 != 0) throw gptq::error(path.string() + ": heads of an odd size cannot be rotated");
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    keys.refuse("num_key_value_heads", "does not divide num_attention_heads");
  }

  c.rope_theta = keys.positive("rope_theta", 10000.0);
  if (keys.find("rope_scaling") != nullptr) c.rope_scaling = parse_scaling(keys.object("rope_scaling"));
  if (keys.find("rope_parameters") != nullptr) {  // transformers 5 keeps both in one place
    reader const rope = keys.object("rope_parameters");
    c.rope_theta = rope.positive("rope_theta", c.rope_theta);
    c.rope_scaling = parse_scaling(rope);
  }
  c.packed = parse_packed(keys);
  c.checkpoint = parse_checkpoint(keys);
  return c;
}

nlohmann::ordered_json json_of(config const& c) {
  if (!c.rope_factors.empty()) {
    throw gptq::error("config.json has no place for the factors that this GGUF file scales frequencies by");
  }
  nlohmann::ordered_json document{{"architectures", {"LlamaForCausalLM"}},
                                  {"model_type", "llama"},
                                  {"hidden_size", c.hidden_size},
                                  {"intermediate_size", c.intermediate_size},
                                  {"num_hidden_layers", c.num_hidden_layers},
                                  {"num_attention_heads", c.num_attention_heads},
                                  {"num_key_value_heads", c.num_key_value_heads},
                                  {"head_dim", c.head_dim},
                                  {"vocab_size", c.vocab_size},
                                  {"max_position_embeddings", c.max_position_embeddings},
                                  {"rms_norm_eps", c.rms_norm_eps},
                                  {"rope_theta", c.rope_theta},
                                  {"hidden_act", "silu"},
                                  {"tie_word_embeddings", c.tie_word_embeddings}};
  if (c.bos_token_id) document["bos_token_id"] = *c.bos_token_id;
  if (!c.eos_token_id.empty()) document["eos_token_id"] = c.eos_token_id;
  if (auto const& s = c.rope_scaling) {
    document["rope_scaling"] = {{"rope_type", "llama3"},
                                {"factor", s->factor},
                                {"low_freq_factor", s->low_freq_factor},
                                {"high_freq_factor", s->high_freq_factor},
                                {"original_max_position_embeddings", s->original_max_position_embeddings}};
  }
  return document;
}

}  // namespace lm
