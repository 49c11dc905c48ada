// Model architectures: what each has besides the common keys, as a description of what it computes
// (config.hpp).
//
// An architecture is a file in architectures/ that defines one function, called as the file:
//
//   namespace lm::architectures {
//   architecture qwen3() { return {.name = "qwen3", .classes = {"Qwen3ForCausalLM"}, .read = ...}; }
//   }
//
// and a model in tests/models/data that a test holds it against. Nothing else knows of it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gptq/checkpoint/gguf.hpp>
#include <gptq/error.hpp>

#include "config.hpp"
#include "json_keys.hpp"

namespace lm {

/// The metadata of a GGUF file of one architecture.
class gguf_keys {
 public:
  gguf_keys(gptq::checkpoint::gguf_file const& file, std::string where, std::string architecture)
      : file_(file), where_(std::move(where)), architecture_(std::move(architecture)) {}

  gptq::checkpoint::gguf_file const& file() const { return file_; }
  /// "llama.block_count"
  std::string full(std::string_view key) const { return architecture_ + "." + std::string(key); }
  [[noreturn]] void refuse(std::string_view key, std::string const& why) const;
  /// A whole number between 1 and 2^24.
  std::int64_t size(std::string_view key, std::optional<std::int64_t> missing = std::nullopt) const;
  double positive(std::string_view key, std::optional<double> missing = std::nullopt) const;
  bool has(std::string_view key) const;
  std::string const& where() const { return where_; }

 private:
  gptq::checkpoint::gguf_file const& file_;
  std::string where_;
  std::string architecture_;
};

/// Metadata to write, with keys of one architecture.
struct gguf_settings {
  gptq::checkpoint::gguf_metadata& metadata;
  std::string architecture;

  template <class T>
  void add(std::string_view key, T const& value) {
    metadata.add(architecture + "." + std::string(key), value);
  }
};

struct architecture {
  std::string name;                  ///< "model_type" in config.json, and the file's name
  std::vector<std::string> classes;  ///< of "architectures" in config.json
  /// Sets what differs from LLaMA; `c` has what read_common() found.
  void (*read)(json_keys const& keys, config& c) = nullptr;
  /// Other model_types that are the same.
  std::vector<std::string> also = {};
  /// Where the text model's keys are: of a model of several parts. Null: in the document itself.
  std::string text_config = {};
  /// There: what the names of its tensors may begin with, and the output layer's name then.
  std::vector<std::pair<std::string, std::string>> prefixes = {};

  // As a GGUF file (gguf_model.hpp); empty: there is no such file.
  std::string gguf_name = {};
  /// Where several architectures share the name: whether this is the one with experts.
  bool gguf_experts = false;
  /// Rows of q and k in the order that rotates neighbouring elements.
  bool interleaved = false;
  /// Sets what differs from LLaMA; `c` has what the common keys say.
  void (*read_gguf)(gguf_keys const& keys, config& c) = nullptr;
  /// Adds what the common keys do not say. Throws gptq::error for what llama.cpp computes otherwise.
  void (*write_gguf)(config const& c, gguf_settings& settings) = nullptr;
  /// Keys of config.json that the common ones lack, for a model that comes from a GGUF file. Null: such a
  /// config.json cannot be written.
  void (*write)(config const& c, nlohmann::ordered_json& document) = nullptr;
};

/// All of them, one for each file in architectures/.
std::span<architecture const> all_architectures();
architecture const& architecture_of(config const& c);

// What several architectures have in common.

/// The keys that nearly all models have, LLaMA's defaults for what is missing.
config read_common(json_keys const& keys);
/// Attention biases of q, k, v and o, and biases of the MLP, where LLaMA has its switches.
void read_biases(json_keys const& keys, config& c);
/// Gives `window` to the layers that "layer_types" names "sliding_attention", or without it to those that
/// `is_sliding(layer)` says.
template <class IsSliding>
void set_sliding(json_keys const& keys, config& c, std::int64_t window, IsSliding const& is_sliding);
/// Which layers "layer_types" calls sliding; nothing without that key.
std::optional<std::vector<bool>> sliding_layers(json_keys const& keys, config const& c);
/// The rope of "rope_theta", "rope_scaling" and the like, or of what is in `keys` ("rope_parameters").
rope_parameters read_rope_keys(json_keys const& keys, config const& c, double theta = 10000.0);
/// How many of a head's elements rope turns: all, or the share that "partial_rotary_factor" says.
std::int64_t rotated_dimensions(json_keys const& keys, config const& c);

/// "use_sliding_window", "sliding_window" and "max_window_layers", as of Qwen 2 and its kin.
void read_qwen_windows(json_keys const& keys, config& c);
/// What to throw where llama.cpp computes something else than the model.
gptq::error no_gguf(std::string const& what);

template <class IsSliding>
void set_sliding(json_keys const& keys, config& c, std::int64_t window, IsSliding const& is_sliding) {
  auto const listed = sliding_layers(keys, c);
  c.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    bool const sliding = listed ? (*listed)[i] : is_sliding(static_cast<std::int64_t>(i));
    c.layers[i].sliding_window = sliding ? window : 0;
  }
}

}  // namespace lm
