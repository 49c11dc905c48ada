// GPTQ checkpoints: the directories that AutoGPTQ and GPTQModel write, and Transformers and vLLM read.
//
// In place of NAME.weight a linear layer has NAME.qweight, NAME.qzeros, NAME.scales and NAME.g_idx
// (gptq/checkpoint/gptq.hpp); config.json has what quantize_config.json says as "quantization_config".
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gptq.hpp>
#include <gptq/checkpoint/safetensors.hpp>

#include "checkpoint_writer.hpp"
#include "model.hpp"

namespace lm {

/// Throws gptq::error, with the reason and what can be written instead, unless a GPTQ checkpoint holds layers
/// of this format and a model of this shape.
void check_gptq(gptq::format_spec const& format, config const& c);

/// Writes a model all of whose linear layers are packed, as write_checkpoint() does (checkpoint_writer.hpp).
/// config.json names the layers that differ from the most frequent format as "dynamic", which GPTQModel and vLLM
/// read.
/// @param how  "damp_percent" and the like, for those who want to know
void write_gptq_model(std::filesystem::path const& directory, model const& m,
                      std::filesystem::path const& source, gptq::checkpoint::gptq_version version,
                      nlohmann::ordered_json const& how, std::size_t shard_bytes = default_shard_bytes);

/// The version that all linear layers of a directory are of: what it says of itself, unless the zero points
/// of one of them prove that it is the other, which a line on stderr then says.
gptq::checkpoint::gptq_version version_of(gptq::checkpoint::tensor_map const& tensors,
                                          quantized_checkpoint const& checkpoint,
                                          std::filesystem::path const& where);

}  // namespace lm
