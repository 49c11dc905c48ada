#include "checkpoint_config.hpp"

#include <fmt/format.h>

#include <gptq/error.hpp>

namespace lm {
namespace {

/// What quantize_config.json says, too.
quantized_checkpoint parse_gptq(json_keys const& quantization) {
  std::string const version = quantization.text("checkpoint_format", "gptq");
  if (version != "gptq" && version != "gptq_v2") {
    quantization.refuse("checkpoint_format", "only gptq and gptq_v2 can be read");
  }
  quantization.require("lm_head", false);
  for (auto const* const key : {"dynamic", "rotation"}) {
    if (quantization.has(key) && !quantization.at(key).empty() && quantization.at(key) != false) {
      quantization.refuse(key, std::string(key) == "dynamic" ? "settings of single layers are not implemented"
                                                             : "rotated weights are not implemented");
    }
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
  return {checkpoint_method::awq, {"asymmetric", 4, group_size}, {}};
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

/// AutoRound's, around tensors of GPTQ.
quantized_checkpoint parse_auto_round(json_keys const& quantization) {
  std::string const packing = quantization.text("packing_format", "");
  if (packing.find("gptq") == std::string::npos) {
    quantization.refuse("packing_format", "only auto_round:auto_gptq and auto_round:gptq can be read");
  }
  if (quantization.has("extra_config") && !quantization.at("extra_config").empty()) {
    quantization.refuse("extra_config", "settings of single layers are not implemented");
  }
  return parse_gptq(quantization);
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
                                                      std::filesystem::path const& directory) {
  if (!keys.has("quantization_config")) {
    auto const path = directory / "quantize_config.json";
    if (!std::filesystem::exists(path)) return std::nullopt;
    nlohmann::json const document = parse_json(path);
    return parse_gptq(json_keys(document, path.string()));
  }
  json_keys const quantization = keys.object("quantization_config");
  std::string const method = quantization.text("quant_method", "");
  if (method == packed_method) return std::nullopt;
  if (method == gptq_method) return parse_gptq(quantization);
  if (method == "auto-round" || method == "intel/auto-round") return parse_auto_round(quantization);
  if (method == "awq") return parse_awq(quantization);
  if (method == "compressed-tensors") return parse_compressed(quantization);
  keys.refuse("quantization_config",
              fmt::format("only {}, {}, auto-round, awq and compressed-tensors can be read", packed_method,
                          gptq_method));
}

}  // namespace lm
