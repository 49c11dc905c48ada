// Quantized models in the formats that the programs write.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/ggml.hpp>
#include <gptq/format_spec.hpp>

#include "checkpoint_writer.hpp"
#include "gguf_model.hpp"
#include "model.hpp"

namespace lm {

enum class output_format {
  packed,              ///< a packed model (packed_model.hpp)
  gguf,                ///< a GGUF file (gguf_model.hpp)
  gptq,                ///< a GPTQ checkpoint (gptq_model.hpp), version 1
  gptq_v2,             ///< the same, version 2
  awq,                 ///< an AWQ checkpoint (checkpoint_model.hpp)
  compressed_tensors,  ///< a compressed-tensors checkpoint, likewise
};

/// As the command line has them.
inline std::map<std::string, output_format> const output_formats{
    {"packed", output_format::packed}, {"gguf", output_format::gguf},
    {"gptq", output_format::gptq},     {"gptq_v2", output_format::gptq_v2},
    {"awq", output_format::awq},       {"compressed-tensors", output_format::compressed_tensors}};

/// Types of embeddings and output layer in a GGUF file, as the command line has them.
inline std::map<std::string, gptq::checkpoint::ggml_type> const embedding_types{
    {"f32", gptq::checkpoint::ggml_type::f32},
    {"f16", gptq::checkpoint::ggml_type::f16},
    {"bf16", gptq::checkpoint::ggml_type::bf16},
    {"q8_0", gptq::checkpoint::ggml_type::q8_0}};

struct output_options {
  std::optional<gptq::checkpoint::ggml_type> embeddings;  ///< of a GGUF file; nothing: as they are
  gguf_blocks blocks = gguf_blocks::of_format;            ///< likewise
  std::size_t shard_bytes = default_shard_bytes;          ///< of checkpoints in safetensors
  nlohmann::ordered_json method;  ///< of a GPTQ checkpoint: "damp_percent" and the like
};

/// Throws gptq::error for options that are about another format.
void check_options(output_format format, std::optional<gptq::checkpoint::ggml_type> const& embeddings,
                   std::optional<std::size_t> const& shard_bytes);

/// Throws gptq::error for whatever write_model() would refuse of such a model, as far as that is known before its
/// linear layers are in this format.
void check_output(output_format format, model const& m, std::filesystem::path const& source,
                  gptq::format_spec const& layers,
                  std::optional<gptq::checkpoint::ggml_type> const& embeddings);

/// Writes a model all of whose linear layers are packed. Throws as the function for its format.
/// @param source  the model's own directory or GGUF file
void write_model(std::filesystem::path const& directory, model const& m, std::filesystem::path const& source,
                 output_format format, output_options const& options);

}  // namespace lm
