// What quantize_config.json, or "quantization_config" of config.json, says of the layers of a GPTQ checkpoint.
//
//   nlohmann::ordered_json const json = nlohmann::ordered_json::parse(std::ifstream("quantize_config.json"));
//   auto const config = gptq::checkpoint::parse_gptq_config(json, "quantize_config.json");
//   auto const layer = gptq::checkpoint::layer_config(config, "model.layers.0.mlp.down_proj");
//   if (layer) std::printf("%d bits\n", layer->bits);
//
// Layers may differ: "dynamic" has regular expressions, each with what is different for the layers whose names begin
// with a match ("+:PATTERN" or "PATTERN"), or that these are not quantized ("-:PATTERN"); the first that matches
// counts, so the order of keys matters and is kept. GPTQModel defined it, and vLLM reads it. vLLM looks for rules by
// the names of what it runs as one (qkv_proj, gate_up_proj): layers that share their input should not differ.
//
// The structs are in gptq/config.hpp: gptq_layer_config { bits, group_size, symmetric, act_order }, gptq_rule
// { pattern, config } and gptq_config { layers, version, rules }.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gptq/config.hpp>
#include <gptq/checkpoint/gptq/tensors.hpp>

namespace gptq::checkpoint {

/// @param source  what the JSON is, for errors
/// @throws gptq::error, naming the key, for what cannot be read: another method or format (gptq_p, marlin ...),
///   "checkpoint_format" and "format" that disagree, other words than int32, rotations and adapters, a width or group
///   size that is none, a pattern that is no regular expression or longer than 2000 bytes (with its
///   prefix), and a key of a rule that
///   is not known
inline gptq_config parse_gptq_config(nlohmann::ordered_json const& json, std::string const& source) {
  return detail::read_config(json, source);
}

/// The configuration as readers want it: the version under both its keys, and "dynamic" when there are rules.
inline nlohmann::ordered_json to_json(gptq_config const& config) { return detail::write_config(config); }

/// What the tensors of a layer hold; nothing when the layer is not quantized.
/// @param layer  its whole name: "model.layers.0.mlp.down_proj"
/// @throws gptq::error when a pattern is no regular expression
inline std::optional<gptq_layer_config> layer_config(gptq_config const& config, std::string const& layer) {
  return detail::find_layer_config(config, layer);
}

/// The same for many layers, each pattern read once: by their names. The inverse of make_gptq_config().
inline std::map<std::string, std::optional<gptq_layer_config>> layer_configs(
    gptq_config const& config, std::vector<std::string> const& layers) {
  return detail::find_layer_configs(config, layers);
}

/// The configuration of layers with these names: the most frequent one for all, and a rule for each layer that is
/// different or, with nothing as its configuration, not quantized.
/// @throws gptq::error when no layer is quantized
inline gptq_config make_gptq_config(std::map<std::string, std::optional<gptq_layer_config>> const& layers,
                                    gptq_version version) {
  return detail::summarize(layers, version);
}

}  // namespace gptq::checkpoint
