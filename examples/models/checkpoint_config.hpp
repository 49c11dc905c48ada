// What a model directory says of the way in which it was quantized: "quantization_config" of config.json, or
// quantize_config.json.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "config.hpp"
#include "json_keys.hpp"

namespace lm {

/// What packed_model.hpp says about each linear layer; empty: it is no packed model.
std::map<std::string, gptq::format_spec> packed_formats(json_keys const& keys);

/// What is said of a checkpoint's layers; nothing when there are no such words, or they are a packed model's.
/// Throws gptq::error, naming the file and the key, for what is not understood.
/// @param keys       of config.json
/// @param directory  has this config.json, or a quantize_config.json in place of the words in it
/// @param c          the model, its layers complete: what is said of single ones is found for them
std::optional<quantized_checkpoint> read_quantization(json_keys const& keys,
                                                      std::filesystem::path const& directory,
                                                      config const& c);

}  // namespace lm
