// The tensors of a model, whichever kind of file they are in, by the names of a Hugging Face directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <gptq/checkpoint/gguf.hpp>
#include <gptq/checkpoint/safetensors.hpp>

#include "config.hpp"
#include "linear.hpp"

namespace lm {

/// A quantized matrix that stands where others have a tensor.
struct packed_tensor {
  std::vector<std::size_t> shape;  ///< [out, in]
  std::shared_ptr<packed_linear const> packed;
};

/// A tensor where it lies in its file.
struct stored_weight {
  std::variant<gptq::checkpoint::tensor_view, gptq::checkpoint::ggml_tensor, packed_tensor> tensor;
  /// Rows of a head that GGUF has in another order (gguf_model.hpp); 0: none are.
  std::int64_t interleaved = 0;

  std::vector<std::size_t> const& shape() const;
  std::span<std::byte const> bytes() const;  ///< of packed_tensor: its codes
  /// Whether it can be read as numbers.
  bool is_readable() const;
  /// F32, F16 or BF16, where the weights lie in the file as such and in order.
  std::optional<gptq::checkpoint::dtype> float_type() const;
  /// As a tensor of a safetensors file; what those cannot hold is decoded into `decoded`, which has to
  /// outlive the view.
  gptq::checkpoint::tensor_view as_safetensors(std::vector<float>& decoded) const;
  /// Decodes elements of rows [first, first + count) into out[count, columns]; a vector is one row.
  void rows(std::int64_t first, std::int64_t count, float* out) const;
};

/// "F32 [32000, 288]"
std::string to_string(stored_weight const& weight);

/// All tensors of a model: a directory of safetensors, called model*.safetensors or, as AutoGPTQ names them,
/// gptq_model-*.safetensors; or a GGUF file.
class weight_files {
 public:
  /// @param c  what read_config() has found in `path`
  /// @throws gptq::error when a file is missing or wrong
  weight_files(std::filesystem::path const& path, config const& c);

  std::map<std::string, stored_weight, std::less<>> const& all() const { return weights_; }
  /// Throws gptq::error when there is no such tensor.
  stored_weight const& at(std::string_view name) const;
  /// The tensors of a directory; empty for GGUF.
  gptq::checkpoint::tensor_map const& safetensors() const;

 private:
  std::filesystem::path path_;
  std::optional<gptq::checkpoint::safetensors_directory> directory_;
  std::vector<gptq::checkpoint::safetensors_file> named_;  ///< in place of it
  gptq::checkpoint::tensor_map tensors_;                   ///< of these
  std::optional<gptq::checkpoint::gguf_file> gguf_;
  std::map<std::string, stored_weight, std::less<>> weights_;
};

}  // namespace lm
