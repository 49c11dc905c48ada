// What a model computes: its sizes, and what sets its architecture apart from others, independent of what it
// is computed with. A model architecture (architecture.hpp) fills this in from config.json or a GGUF file's
// metadata.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gptq.hpp>
#include <gptq/format_spec.hpp>

#include "rope.hpp"

namespace lm {

/// "quant_method" of a packed model.
inline constexpr char const* packed_method = "gptq-packed";
/// "quant_method" of a GPTQ checkpoint.
inline constexpr char const* gptq_method = "gptq";

/// Whose tensors the linear layers of a checkpoint are.
enum class checkpoint_method { gptq, awq, compressed_tensors };

/// What a checkpoint that others may have quantized says of its linear layers.
struct quantized_checkpoint {
  checkpoint_method method = checkpoint_method::gptq;
  gptq::format_spec format;
  gptq::checkpoint::gptq_version version = gptq::checkpoint::gptq_version::v1;  ///< of method gptq
  /// Layers that are not in `format`, by name; nothing: not quantized.
  std::map<std::string, std::optional<gptq::format_spec>> exceptions = {};
  bool output = false;  ///< whether the output layer is quantized, too

  /// Nothing when this layer is not quantized.
  std::optional<gptq::format_spec> find_format(std::string const& layer) const {
    auto const found = exceptions.find(layer);
    return found == exceptions.end() ? format : found->second;
  }
};

/// What a linear layer is for, in the order in which they are quantized. A model has either q_proj, k_proj
/// and v_proj or qkv_proj, rows of q first; either up_proj and gate_proj or gate_up_proj, rows of gate first.
enum class linear { k_proj, v_proj, q_proj, qkv_proj, o_proj, up_proj, gate_proj, gate_up_proj, down_proj };
inline constexpr std::size_t linear_kinds = 9;

/// A decoder layer computes in four stages; the linear layers that take part in a stage share their input
/// (those of one expert, in a layer of experts).
enum class stage { query_key_value, output, gate_up, down };
inline constexpr std::array stages{stage::query_key_value, stage::output, stage::gate_up, stage::down};
stage stage_of(linear kind);

/// No expert: what all tokens go through.
inline constexpr std::int64_t no_expert = -1;

/// A linear layer of a decoder layer.
struct linear_layer {
  linear kind = linear::k_proj;
  std::int64_t expert = no_expert;
  std::string name;  ///< of its tensors, without ".weight": "model.layers.0.self_attn.q_proj"
  std::int64_t out = 0;
  std::int64_t in = 0;
  bool bias = false;
};

/// RMS norms of a decoder layer.
enum class norm {
  attention,         ///< of the residual, before q, k and v
  attention_output,  ///< of what o_proj adds to the residual
  mlp,               ///< of the residual, before gate and up
  mlp_output,        ///< of what down_proj adds
  query,             ///< of q, head by head, before rope
  key                ///< of k
};
inline constexpr std::size_t norm_kinds = 6;
struct norm_layer {
  norm kind = norm::attention;
  std::string name;  ///< of its tensor, without ".weight"
  std::int64_t size = 0;
};

/// One decoder layer. The architecture sets the first three, complete() the rest.
struct decoder_description {
  std::int64_t sliding_window = 0;  ///< a token sees itself and the ones before it, so many in all; 0: all
  int rope = 0;                     ///< which of config::ropes; -1: none
  bool experts = false;

  std::vector<linear_layer> linears;  ///< in the order in which they are quantized
  std::vector<norm_layer> norms;
  std::string router;  ///< tensor [experts, hidden], without ".weight"; empty: no experts

  /// Place in `linears`; throws std::out_of_range when there is none.
  std::size_t index(linear kind, std::int64_t expert = no_expert) const;
  /// Places of the linear layers that take part in a stage, of one expert if the layer has experts and the
  /// stage is theirs.
  std::vector<std::size_t> linears_of(stage s, std::int64_t expert = no_expert) const;
  std::int64_t input_size(stage s) const;
};

enum class activation { silu, gelu_tanh };

/// Names as in config.json; sizes are positive and small enough that any product of two fits 48 bits.
struct config {
  std::string architecture;  ///< name of the architecture: "qwen3"
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0.0;
  bool tie_word_embeddings = false;
  std::optional<std::int32_t> bos_token_id;
  std::vector<std::int32_t> eos_token_id;  ///< any of these ends a text; may be empty

  // What differs from LLaMA.
  std::vector<rope_parameters> ropes;  ///< layers choose among them
  activation act = activation::silu;   ///< of the gate
  double norm_offset = 0.0;            ///< is added to the stored weights of norms
  bool output_norms = false;           ///< norm::attention_output and mlp_output are there
  bool query_key_norms = false;        ///< norm::query and key are there
  bool query_key_value_bias = false, output_bias = false, mlp_bias = false;
  bool fused = false;              ///< qkv_proj and gate_up_proj
  double attention_scale = 0.0;    ///< of q k'
  double attention_softcap = 0.0;  ///< c: scores become c tanh(scores / c); 0: they stay
  double logit_softcap = 0.0;      ///< likewise
  double embedding_scale = 1.0;    ///< embeddings are multiplied by it
  double residual_scale = 1.0;     ///< so is what is added to the residual
  double logit_scale = 1.0;        ///< so are logits
  std::int64_t num_experts = 0;
  std::int64_t experts_per_token = 0;
  std::int64_t expert_intermediate_size = 0;
  bool normalize_expert_weights = true;  ///< the weights of a token's experts add up to 1

  // Names of tensors.
  std::string prefix = "model.";  ///< of all but the output layer
  std::string output_name = "lm_head";
  std::string router_name = "mlp.gate";
  std::string expert_prefix = "mlp.experts.{}.";
  std::array<std::string, 3> expert_names{"gate_proj", "up_proj", "down_proj"};
  std::vector<std::string>
      other_parts;  ///< tensors beginning with one of these are no part of the text model

  std::vector<decoder_description> layers;

  /// The formats of the linear layers of a packed model (packed_model.hpp), by name; empty: not quantized.
  std::map<std::string, gptq::format_spec> packed;
  /// Nothing: not one (gptq_model.hpp, checkpoint_model.hpp).
  std::optional<quantized_checkpoint> checkpoint;

  bool quantized() const { return checkpoint || !packed.empty(); }

  std::int64_t query_size() const { return num_attention_heads * head_dim; }
  std::int64_t key_value_size() const { return num_key_value_heads * head_dim; }
  decoder_description const& layer(std::int64_t i) const { return layers[static_cast<std::size_t>(i)]; }
  /// How long a text may be: max_position_embeddings, or as far as a rope of type dynamic stretches them.
  std::int64_t positions() const;
  std::string embedding_name() const { return prefix + "embed_tokens.weight"; }
  std::string final_norm_name() const { return prefix + "norm.weight"; }
};

/// Fills in each layer's linear layers and norms from the rest. `c.layers` has num_hidden_layers of them, or
/// none if they are all alike.
void complete(config& c);

/// Cosines and sines of each of the model's ropes, for a text of so many positions.
std::vector<rotations> make_rotations(config const& c, std::int64_t positions);

/// Reads PATH/config.json, or the metadata of a GGUF file. Throws gptq::error, naming the file and the key,
/// when something is missing, is out of range, or asks for an architecture that is not implemented here.
config read_config(std::filesystem::path const& path);

/// config.json of such a model, for those that come from a GGUF file. Throws gptq::error where there is none.
nlohmann::ordered_json json_of(config const& c);

}  // namespace lm
