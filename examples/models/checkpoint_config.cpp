#include "checkpoint_config.hpp"

#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/checkpoint/gptq_config.hpp>
#include <gptq/error.hpp>

#include "output_files.hpp"

namespace lm {
namespace {

using nlohmann::ordered_json;

gptq::format_spec format_for(gptq::checkpoint::gptq_layer_config const& layer) {
  return {layer.symmetric ? "fixed_zero" : "asymmetric", layer.bits, layer.group_size};
}

/// What quantize_config.json says, too: its keys in the order of the file, since the first rule of "dynamic"
/// that fits a layer counts.
quantized_checkpoint parse_gptq(ordered_json quantization, std::string const& source, config const& c) {
  for (auto const* const key : {"dynamic", "rotation", "adapter"}) {
    auto const found = quantization.find(key);
    if (found != quantization.end() && (*found == false || found->empty())) quantization.erase(found);
  }
  auto const parsed = gptq::checkpoint::parse_gptq_config(quantization, source);
  quantized_checkpoint checkpoint;
  checkpoint.version = parsed.version;
  checkpoint.format = format_for(parsed.layers);
  std::vector<std::string> names;
  for (decoder_description const& layer : c.layers) {
    for (linear_layer const& l : layer.linears) names.push_back(l.name);
  }
  auto const output = quantization.find("lm_head");
  if (output != quantization.end() && *output != false && !output->is_null()) {
    std::string const said = source + ": 'lm_head' is " + output->dump();
    if (*output != true) throw gptq::error(said + ": neither true nor false");
    if (c.tie_word_embeddings) throw gptq::error(said + ", but config.json ties it to the embeddings");
    checkpoint.output = true;
    names.push_back(c.output_name);
  }
  for (auto const& [name, layer] : layer_configs(parsed, names)) {
    if (layer == parsed.layers) continue;
    checkpoint.exceptions[name] = layer ? std::optional(format_for(*layer)) : std::nullopt;
  }
  if (!checkpoint.find_format(c.output_name)) checkpoint.output = false;
  return checkpoint;
}

/// AutoAWQ's dictionary, by the names that it and those that transformers have for its keys.
quantized_checkpoint parse_awq(json_keys const& quantization) {
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
  return {checkpoint_method::awq, {"asymmetric", 4, group_size}};
}

/// One scheme for all layers, as llm-compressor's recipes for weights have it.
quantized_checkpoint parse_compressed(json_keys const& quantization) {
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
  json_keys const groups = quantization.object("config_groups");
  if (groups.members().size() != 1) {
    quantization.refuse("config_groups", "only one scheme for all layers is implemented");
  }
  json_keys const group = groups.object(groups.members().begin().key());
  if (group.at("targets") != nlohmann::json::array({"Linear"})) {
    group.refuse("targets", "only [\"Linear\"] is implemented");
  }
  for (auto const* const key : {"input_activations", "output_activations"}) {
    if (group.find(key) != nullptr) group.refuse(key, "quantized activations are not implemented");
  }
  json_keys const weights = group.object("weights");
  if (weights.text("type", "int") != "int") weights.refuse("type", "only int is implemented");
  int const bits = weights.integer("num_bits");
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) weights.refuse("num_bits", "not 2, 3, 4 or 8");
  bool const in_groups = weights.find("group_size") != nullptr && weights.integer("group_size") > 0;
  std::string const strategy = weights.text("strategy", in_groups ? "group" : "channel");
  if (strategy != "group" && strategy != "channel") {
    weights.refuse("strategy", "only group and channel are implemented");
  }
  return {checkpoint_method::compressed_tensors,
          {weights.flag("symmetric", true) ? "fixed_zero" : "asymmetric", bits,
           strategy == "group" ? weights.integer("group_size") : gptq::whole_row}};
}

/// Throws gptq::error unless AutoRound's words stand around tensors of GPTQ.
void check_auto_round(json_keys const& quantization) {
  std::string const packing = quantization.text("packing_format", "");
  if (packing.find("gptq") == std::string::npos) {
    quantization.refuse("packing_format", "only auto_round:auto_gptq and auto_round:gptq can be read");
  }
  if (quantization.has("extra_config") && !quantization.at("extra_config").empty()) {
    quantization.refuse("extra_config", "settings of single layers are not implemented");
  }
}

}  // namespace

std::map<std::string, gptq::format_spec> packed_formats(json_keys const& keys) {
  if (keys.find("quantization_config") == nullptr) return {};
  json_keys const quantization = keys.object("quantization_config");
  if (quantization.text("quant_method", "") != packed_method) return {};
  std::map<std::string, gptq::format_spec> formats;
  json_keys const layers = quantization.object("layers");
  for (auto const& [name, value] : layers.members().items()) {
    json_keys const format = layers.object(name);
    std::string const scales = format.text("scales", "float16");
    if (scales != "float16" && scales != "float32") format.refuse("scales", "neither float16 nor float32");
    formats[name] = {format.text("scheme", ""), format.integer("bits"), format.integer("group_size"),
                     scales == "float16" ? gptq::scale_type::float16 : gptq::scale_type::float32};
  }
  if (formats.empty()) keys.refuse("quantization_config", "no layer in it");
  return formats;
}

std::optional<quantized_checkpoint> read_quantization(json_keys const& keys,
                                                      std::filesystem::path const& directory,
                                                      config const& c) {
  if (!keys.has("quantization_config")) {
    auto const path = directory / "quantize_config.json";
    if (!std::filesystem::exists(path)) return std::nullopt;
    return parse_gptq(read_json(path), path.string(), c);
  }
  json_keys const quantization = keys.object("quantization_config");
  std::string const method = quantization.text("quant_method", "");
  if (method == packed_method) return std::nullopt;
  if (method == "awq") return parse_awq(quantization);
  if (method == "compressed-tensors") return parse_compressed(quantization);
  bool const auto_round = method == "auto-round" || method == "intel/auto-round";
  if (auto_round) check_auto_round(quantization);
  if (method != gptq_method && !auto_round) {
    keys.refuse("quantization_config",
                fmt::format("only {}, {}, auto-round, awq and compressed-tensors can be read", packed_method,
                            gptq_method));
  }
  ordered_json in_order = read_json(directory / "config.json").at("quantization_config");
  in_order["quant_method"] = gptq_method;
  return parse_gptq(std::move(in_order), quantization.where(), c);
}

}  // namespace lm
