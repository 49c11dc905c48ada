// Directories of safetensors in the checkpoint formats of others, written a linear layer at a time.
//
// A format says what tensors stand in place of NAME.weight and what config.json says of them; the rest is the same
// for all: shards and their index, the tensors that stay as they are, tokenizers and whatever else lies beside them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "model.hpp"

namespace lm {

/// How much of the weights a file holds unless it is told otherwise.
inline constexpr std::size_t default_shard_bytes = 5'000'000'000;

/// What is written at once: a linear layer, which is converted only then, or another tensor.
struct checkpoint_piece {
  std::vector<gptq::checkpoint::tensor_info> tensors;
  std::function<void(gptq::checkpoint::safetensors_writer&)> write;

  std::size_t bytes() const;
};

/// What a checkpoint format does with linear layers.
struct checkpoint_format {
  /// Checks a layer before anything is written. Throws gptq::error when it cannot be held.
  std::function<checkpoint_piece(linear_layer const&, packed_linear const&)> piece;
  nlohmann::ordered_json configuration;      ///< "quantization_config" of config.json
  char const* configuration_file = nullptr;  ///< where the same lies once more; null: nowhere
};

/// Writes a model all of whose linear layers are packed. Files beside the weights are carried over; config.json
/// comes last, so a directory that has one is whole. Throws gptq::error before it writes anything when a layer
/// cannot be held, and when the disk does not take a file, of which nothing is left then.
/// @param source       the model's own directory or GGUF file
/// @param shard_bytes  weights beyond these go into further files, and model.safetensors.index.json lists
///   them; a tensor, or those of a linear layer, stay in one file even if they are larger
void write_checkpoint(std::filesystem::path const& directory, model const& m,
                      std::filesystem::path const& source, checkpoint_format const& format,
                      std::size_t shard_bytes);

}  // namespace lm
