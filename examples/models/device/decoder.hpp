// A decoder layer on a device: its arithmetic as values, its weights, and its stages over many windows.
//
// A stage's linear layers share their input. Their weights lie in one matrix, one below the other, so that
// projections that a checkpoint holds apart or fused (q, k, v; gate, up) are the same to the device. The
// stages are those of forward.hpp: the first three turn what the stage before leaves into the input of
// theirs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "accelerator.hpp"

namespace lm::device {

enum class stage { query_key_value, output, gate_up, down };
inline constexpr std::size_t stages = 4;

/// What a decoder layer computes; the same words as in the description of a model architecture.
struct layer_arithmetic {
  index_t hidden = 0;
  index_t heads = 0;
  index_t key_value_heads = 0;
  index_t head_dim = 0;
  index_t intermediate = 0;  ///< of an expert, in a layer of experts
  index_t experts = 0;       ///< 0: an MLP that all tokens go through
  index_t chosen = 0;        ///< experts of a token
  bool normalized = true;    ///< the weights of a token's experts add up to 1
  float epsilon = 0.0F;
  float attention_scale = 0.0F;
  float attention_soft_cap = 0.0F;  ///< 0: none
  index_t window = 0;               ///< keys that a query sees, with its own; 0: all up to it
  int rope = -1;                    ///< which of the tables of forward_pass; -1: none
  gate_function gate = gate_function::silu;
  float residual_multiplier = 1.0F;

  index_t query_size() const { return heads * head_dim; }
  index_t key_value_size() const { return key_value_heads * head_dim; }
  /// Rows of a stage's weights, of all experts one below the other, and their columns.
  index_t out(stage s) const;
  index_t in(stage s) const;
};

/// A matrix where it lies in the host's memory, row-major.
struct host_matrix {
  void const* data = nullptr;
  number type = number::float32;
  index_t rows = 0;
  index_t columns = 0;
  std::shared_ptr<void const> owner;  ///< of data; null: it lives as long as the model

  std::size_t bytes() const { return static_cast<std::size_t>(rows * columns) * size_of(type); }
};

/// A packed matrix where it lies in the host's memory.
struct packed_source {
  gptq::format_spec format;
  packed_parts parts;
  std::function<void(float*)> decode = {};  ///< writes weight[out, in]
};

struct linear_source {
  std::string name;  ///< "model.layers.0.self_attn.q_proj"
  host_matrix weight;
  std::vector<float> bias;  ///< [rows] or empty
  /// In place of weight.data, where packed weights are asked for.
  std::optional<packed_source> packed = std::nullopt;
};

/// A decoder layer as a model has it. Norms' weights are what is multiplied with: 1 + w where a model means
/// that.
struct layer_source {
  layer_arithmetic arithmetic;
  std::vector<float> attention_norm;        ///< [hidden]
  std::vector<float> after_attention_norm;  ///< [hidden], or empty: none, and so on
  std::vector<float> mlp_norm;
  std::vector<float> after_mlp_norm;
  std::vector<float> query_norm;  ///< [head_dim]
  std::vector<float> key_norm;
  std::vector<float> router;                               ///< [experts, hidden]
  std::array<std::vector<linear_source>, stages> linears;  ///< in the order of their rows
  bool finished = false;                                   ///< its weights are quantized already
};

/// Throws gptq::error, naming what is wrong, unless the shapes agree.
void check(layer_source const& source);
/// Bytes of its weights as they are stored, norms and biases included, each aligned.
std::size_t stored_bytes(layer_source const& source);

/// The weights of a decoder layer in a device's memory.
class decoder_layer {
 public:
  explicit decoder_layer(accelerator& on) : on_(on) {}

  /// Copies what has been loaded to the device, by transfers; keeps what is on the host until the next
  /// call. Not before order_transfers() was called after the last use of what was here. Throws gptq::error
  /// for wrong shapes.
  void fill(layer_source&& source);
  /// After await_transfers(): brings the weights into the type that they are multiplied in.
  void prepare(number type);

  layer_source const& source() const { return source_; }
  layer_arithmetic const& arithmetic() const { return source_.arithmetic; }
  /// A stage's weights[out, in], to be multiplied with, or to be replaced.
  numbers weights(stage s) const { return weights_[static_cast<std::size_t>(s)]; }
  /// From now on these are a stage's weights, which have to outlive their use here.
  void use(stage s, numbers weights) { weights_[static_cast<std::size_t>(s)] = weights; }
  /// They as they are stored, as long as they have not been replaced.
  numbers stored(stage s) const { return places_[static_cast<std::size_t>(s)]; }
  float const* bias(stage s) const { return biases_[static_cast<std::size_t>(s)]; }

  float const* attention_norm = nullptr;
  float const* after_attention_norm = nullptr;
  float const* mlp_norm = nullptr;
  float const* after_mlp_norm = nullptr;
  float const* query_norm = nullptr;
  float const* key_norm = nullptr;
  float const* router = nullptr;

 private:
  accelerator& on_;
  array<char> stored_;
  std::array<number_array, stages> converted_;
  layer_source source_;
  std::array<numbers, stages> places_{};
  std::array<numbers, stages> weights_{};
  std::array<float const*, stages> biases_{};
};

/// cos and sin of rotary embeddings: [positions, rotated / 2] each.
struct rope_table {
  std::vector<float> cos;
  std::vector<float> sin;
  index_t rotated = 0;
};

/// What the decoder layers of a run share.
class forward_pass {
 public:
  /// @param type    of the activations between products; the residual is float32
  /// @param length  tokens in a window
  forward_pass(accelerator& on, number type, index_t length, std::span<rope_table const> ropes);

  accelerator& on() const { return on_; }
  number type() const { return type_; }
  index_t length() const { return length_; }

  /// Windows to compute at a time, so that what is between the stages takes about `bytes`.
  index_t windows_at_a_time(layer_arithmetic const& a, std::size_t bytes) const;

  /// Some windows' residual x[tokens, hidden] and what the stage before has left in `from`; `to` becomes the
  /// input of this stage's linear layers, [tokens, in]. The first stage uses no `from`.
  void run_stage(decoder_layer const& layer, stage s, index_t windows, float* x, numbers from,
                 numbers to) const;
  /// Adds the last stage's output to x.
  void finish(decoder_layer const& layer, index_t windows, float* x, numbers from) const;
  /// All of it.
  void run_layer(decoder_layer const& layer, index_t windows, float* x) const;

  /// Rotated keys, and values, of some windows: [window, key-value head, token, element].
  struct keys_and_values {
    number_array keys, values;
  };
  /// Attention: from rows of query, key and value to[tokens, query_size].
  keys_and_values attend(layer_arithmetic const& a, index_t windows, numbers rows, numbers to) const;
  /// cos and sin of a layer's rotary embeddings.
  rotation turn(layer_arithmetic const& a) const;

 private:
  void multiply(decoder_layer const& layer, stage s, index_t rows, numbers x, numbers y) const;
  void add_output(decoder_layer const& layer, stage s, index_t rows, float* x, numbers from,
                  float const* norm) const;
  struct table {
    array<float> cos, sin;
    index_t rotated;
  };
  accelerator& on_;
  number type_;
  index_t length_;
  std::vector<table> ropes_;
};

}  // namespace lm::device
