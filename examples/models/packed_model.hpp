// Quantized models on disk: the finished directory, and the decoder layers of a run that is not finished yet.
//
// A packed model is a Hugging Face directory with model.safetensors, config.json and the tokenizer. In place
// of NAME.weight a linear layer has NAME.codes, NAME.scales and, where there are any, NAME.zeros and
// NAME.order: the pieces of gptq::packed_view, to be used where they are mapped. config.json says which
// format each is in:
//
//   "quantization_config": {"quant_method": "gptq-packed", "layers": {NAME: {"scheme": "symmetric", "bits":
//   4,
//     "group_size": 128, "scales": "float16"}, ...}}
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "lock_file.hpp"
#include "model.hpp"
#include "quantization.hpp"

namespace lm {

/// Adds the tensors of a packed linear layer, which have to outlive the map.
void add_packed(gptq::checkpoint::tensor_map& tensors, std::string const& name, packed_linear const& packed);

/// Writes a model all of whose linear layers are packed. config.json comes last, so a directory that has one
/// is whole. Throws gptq::error when the disk does not take a file; nothing of that file is left then.
/// @param source  the model's own directory or file: its config.json is extended, its tokenizer copied
void write_packed_model(std::filesystem::path const& directory, model const& m,
                        std::filesystem::path const& source);

/// What makes text of tokens, and the like: from beside a model's weights, or out of its GGUF file.
void copy_tokenizer(std::filesystem::path const& source, std::filesystem::path const& directory);

/// Throws gptq::error when the directory holds a finished model.
void check_no_model(std::filesystem::path const& directory);

/// The decoder layers that a run has finished, each in a file of its own below directory/unfinished. As long as it is
/// there no other process can have one of the same directory.
class unfinished_run {
 public:
  /// @param settings  an object: all that the result depends on
  /// @param resume    whether layers of an earlier run are welcome
  /// @throws gptq::error when there is such a run and it is not to be resumed, or had other settings; when another
  ///   process is at it; when the directory holds a finished model; or when it cannot be written to
  unfinished_run(std::filesystem::path const& directory, nlohmann::ordered_json const& settings, bool resume);

  /// A decoder layer of an earlier run, as it was reported and packed.
  struct saved_layer {
    std::vector<linear_report> reports;                  ///< in the order of quantization
    std::vector<std::unique_ptr<packed_linear>> packed;  ///< likewise
  };
  /// Nothing when the layer is not there yet. Throws gptq::error when its file is damaged, or not of such a
  /// layer.
  std::optional<saved_layer> load(std::int64_t layer, decoder_description const& description) const;
  void save(std::int64_t layer, model const& m, std::vector<linear_report> const& reports) const;
  /// Decoder layers that are there.
  std::int64_t finished() const;
  /// Removes all of it: the model is written.
  void remove() const;

 private:
  std::filesystem::path file_of(std::int64_t layer) const;
  std::filesystem::path path_;
  std::optional<lock_file> lock_;
};

}  // namespace lm
