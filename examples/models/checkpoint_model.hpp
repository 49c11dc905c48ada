// AWQ and compressed-tensors checkpoints: their linear layers, read, and models in these formats, written.
//
// In place of NAME.weight a linear layer has NAME.qweight, NAME.qzeros and NAME.scales (AWQ,
// gptq/checkpoint/awq.hpp), or NAME.weight_packed, NAME.weight_scale and so on (gptq/checkpoint/
// compressed_tensors.hpp). GPTQ checkpoints are in gptq_model.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include <gptq/checkpoint/safetensors.hpp>

#include "checkpoint_writer.hpp"
#include "config.hpp"
#include "linear.hpp"

namespace lm {

/// The linear layer called NAME of such a directory, repacked, whichever kind it is. Throws gptq::error,
/// naming it, when a tensor is missing or does not fit, or the directory says that it is not quantized.
std::unique_ptr<packed_linear> read_checkpoint(gptq::checkpoint::tensor_map const& tensors,
                                               std::string const& name,
                                               quantized_checkpoint const& checkpoint, std::int64_t out,
                                               std::int64_t in);

/// Throws gptq::error, with the reason and what can be written instead, unless an AWQ checkpoint ("version": "gemm")
/// holds layers of this format and a model of this shape.
void check_awq(gptq::format_spec const& format, config const& c);

/// Writes a model as write_checkpoint() does. Throws gptq::error, before it writes anything, when layers differ in
/// their groups or have their columns reordered.
void write_awq_model(std::filesystem::path const& directory, model const& m,
                     std::filesystem::path const& source, std::size_t shard_bytes = default_shard_bytes);

/// The same for compressed-tensors ("format": "pack-quantized").
void check_compressed(gptq::format_spec const& format, config const& c);

/// Writes a model as write_checkpoint() does. Throws gptq::error, before it writes anything, when layers differ in
/// their formats.
void write_compressed_model(std::filesystem::path const& directory, model const& m,
                            std::filesystem::path const& source,
                            std::size_t shard_bytes = default_shard_bytes);

}  // namespace lm
