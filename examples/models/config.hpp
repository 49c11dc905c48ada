// The configuration of a LLaMA, of a Hugging Face directory or a GGUF file: what the model's shape is, and
// whether we can run it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gptq.hpp>
#include <gptq/format_spec.hpp>

namespace lm {

/// "quant_method" of a packed model.
inline constexpr char const* packed_method = "gptq-packed";
/// "quant_method" of a GPTQ checkpoint.
inline constexpr char const* gptq_method = "gptq";

/// Whose tensors the linear layers of a checkpoint are.
enum class checkpoint_method { gptq, awq, compressed_tensors };

/// What a checkpoint that others may have quantized says of all its linear layers.
struct quantized_checkpoint {
  checkpoint_method method = checkpoint_method::gptq;
  gptq::format_spec format;
  gptq::checkpoint::gptq_version version = gptq::checkpoint::gptq_version::v1;  ///< of method gptq
};

/// Llama 3's way of stretching rotary embeddings over longer contexts ("rope_type": "llama3").
struct rope_scaling {
  double factor;
  double low_freq_factor;
  double high_freq_factor;
  double original_max_position_embeddings;
};

/// Names as in config.json; sizes are positive and small enough that any product of two fits 48 bits.
struct config {
  std::int64_t hidden_size;
  std::int64_t intermediate_size;
  std::int64_t num_hidden_layers;
  std::int64_t num_attention_heads;
  std::int64_t num_key_value_heads;
  std::int64_t head_dim;
  std::int64_t vocab_size;
  std::int64_t max_position_embeddings;
  double rms_norm_eps;
  double rope_theta;
  std::optional<lm::rope_scaling> rope_scaling;
  /// What the frequencies of each pair of a head's elements are divided by: such a scaling as GGUF has it.
  std::vector<float> rope_factors;
  bool tie_word_embeddings;
  std::optional<std::int32_t> bos_token_id;
  std::vector<std::int32_t> eos_token_id;  ///< any of these ends a text; may be empty
  /// The formats of the linear layers of a packed model (packed_model.hpp), by name; empty: not quantized.
  std::map<std::string, gptq::format_spec> packed;
  /// Nothing: not one (gptq_model.hpp, checkpoint_model.hpp).
  std::optional<quantized_checkpoint> checkpoint;

  bool quantized() const { return checkpoint || !packed.empty(); }

  std::int64_t query_size() const { return num_attention_heads * head_dim; }
  std::int64_t key_value_size() const { return num_key_value_heads * head_dim; }
};

/// Reads PATH/config.json, or the metadata of a GGUF file. Throws gptq::error, naming the file and the key,
/// when something is missing, is out of range, or asks for an architecture that is not implemented here.
config read_config(std::filesystem::path const& path);

/// config.json of such a model. Throws gptq::error for rope_factors, which it has no place for.
nlohmann::ordered_json json_of(config const& c);

}  // namespace lm
