// A LLaMA's weights: which there are, where they come from, one decoder layer at a time.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/hessian.hpp>

#include "config.hpp"
#include "linear.hpp"
#include "quant_directory.hpp"
#include "tokens.hpp"
#include "weights.hpp"

namespace lm {

using gptq::matrix;
using row_vector = Eigen::Matrix<float, 1, Eigen::Dynamic>;

/// The linear layers of a decoder layer, in the order in which they are quantized.
enum class linear { k_proj, v_proj, q_proj, o_proj, up_proj, gate_proj, down_proj };
inline constexpr std::size_t linears = 7;

/// A decoder layer computes in four stages; the linear layers that take part in a stage share their input.
enum class stage { query_key_value, output, gate_up, down };
inline constexpr std::array stages{stage::query_key_value, stage::output, stage::gate_up, stage::down};

/// The linear layers of a stage.
std::span<linear const> linears_of(stage s);
/// Width of their input.
std::int64_t input_size(config const& c, stage s);
/// "model.layers.0.self_attn.q_proj"
std::string full_name(std::int64_t layer, linear l);

/// Rows of the output layer that are best in float32 at a time.
inline constexpr std::int64_t output_slice = 1024;

/// One decoder layer, ready to be run.
struct decoder_layer {
  row_vector attention_norm;  ///< [hidden]
  row_vector mlp_norm;        ///< [hidden]

  virtual ~decoder_layer() = default;
  /// x W' for x[tokens, in].
  matrix multiply(linear l, matrix const& x) const {
    matrix y;
    multiply_all(std::span(&l, 1), x, &y);
    return y;
  }
  /// The same for several linear layers with the same input: threads meet only once.
  template <std::size_t N>
  std::array<matrix, N> multiply(linear const (&some)[N], matrix const& x) const {
    std::array<matrix, N> y;
    multiply_all(some, x, y.data());
    return y;
  }
  /// Bytes that multiply() reads of all linear layers, once each.
  virtual std::size_t bytes() const = 0;

 private:
  virtual void multiply_all(std::span<linear const> some, matrix const& x, matrix* y) const = 0;
};

/// In float32.
struct float_layer final : decoder_layer {
  std::array<matrix, linears> weights;  ///< [out, in] each

  matrix& operator[](linear l) { return weights[static_cast<std::size_t>(l)]; }
  matrix const& operator[](linear l) const { return weights[static_cast<std::size_t>(l)]; }
  std::size_t bytes() const override;

 private:
  void multiply_all(std::span<linear const> some, matrix const& x, matrix* y) const override;
};

/// Packed, through the library's gemv.
struct packed_layer final : decoder_layer {
  struct entry {
    packed_parts weight;
    gemv_kernel gemv = nullptr;
  };
  std::array<entry, linears> weights;
  int threads = 1;

  std::size_t bytes() const override;

 private:
  void multiply_all(std::span<linear const> some, matrix const& x, matrix* y) const override;
};

/// What linear layers are computed with.
enum class arithmetic {
  float32,  ///< decoded to float32
  int15,    ///< straight from packed codes, activations in 15 bits: to 1e-4 the same as float32
  int8      ///< the same in 8 bits: fastest
};

inline std::map<std::string, arithmetic> const arithmetic_names{
    {"float32", arithmetic::float32}, {"int15", arithmetic::int15}, {"int8", arithmetic::int8}};
/// "float32", "int15" or "int8"
std::string name_of(arithmetic how);

/// The linear layer called NAME among tensors NAME.codes, NAME.scales, NAME.zeros, NAME.order
/// (packed_model.hpp), which `owner` keeps. Throws gptq::error, naming the tensor, when one is missing or
/// does not fit.
std::unique_ptr<packed_linear> find_packed(gptq::checkpoint::tensor_map const& tensors,
                                           std::string const& name, gptq::format_spec const& format,
                                           std::int64_t out, std::int64_t in,
                                           std::shared_ptr<void const> owner);

/// A model directory, packed or not, or a GGUF file. Weights stay in the mapped files, or packed once they
/// are replaced, until they are asked for.
class model {
 public:
  /// Throws gptq::error when a file, a tensor or a shape is wrong; afterwards loading cannot fail.
  explicit model(std::filesystem::path const& path);

  lm::config const& config() const { return config_; }
  /// Weights of all tensors that the model uses.
  std::int64_t parameters() const;

  /// Embeddings of some tokens: [tokens, hidden].
  matrix embed(std::span<token const> tokens) const;
  /// Whether all linear layers are packed, in formats that there are kernels for.
  bool has_kernels() const;
  /// A decoder layer in float32, decoding what is packed; on `threads` threads.
  float_layer load(std::int64_t layer, int threads) const;
  /// A decoder layer in the arithmetic asked for, which packed layers share with this model, and whose
  /// products they make on `threads` threads. Throws gptq::error when one of its linear layers is not packed,
  /// or in a format without kernels.
  std::unique_ptr<decoder_layer> load(std::int64_t layer, arithmetic how, int threads) const;
  /// A linear layer as the model directory has it: [out, in].
  matrix original(std::int64_t layer, linear l) const;
  row_vector const& final_norm() const { return final_norm_; }
  /// Rows [first, first + count) of the output layer: [count, hidden].
  matrix output_rows(std::int64_t first, std::int64_t count) const;
  /// The output layer of one token, x[1, hidden], on `threads` threads: [vocab_size].
  row_vector logits(row_vector const& x, int threads) const;
  /// The output layer as it is stored.
  std::span<std::byte const> output_bytes() const;

  /// From now on, load() takes this linear layer from its packed form.
  void replace(std::int64_t layer, linear l, std::unique_ptr<packed_linear> packed);
  /// From now on, load() rounds linear layers that are not packed to these grids. Throws gptq::error, naming
  /// the layer, when there are none for one, they do not fit it, or it is packed.
  void round_to(model_grids grids);
  /// Null until it is packed.
  packed_linear const* packed(std::int64_t layer, linear l) const {
    return packed_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(l)].get();
  }
  /// Tells models apart: a number made of all tensors' names, shapes, types and first bytes.
  std::string fingerprint() const;
  /// Throws gptq::error when the directory holds a packed model or a GPTQ checkpoint: there are no weights to
  /// quantize. Those of AWQ and compressed-tensors checkpoints are what their codes stand for.
  void require_unquantized() const;
  /// The tensors that stay as they are, as safetensors have them (decoded to float32 if they are quantized;
  /// this model then keeps that): visit(name, tensor).
  void for_each_float_tensor(
      std::function<void(std::string const&, gptq::checkpoint::tensor_view const&)> const& visit) const;
  /// The same as they are stored: visit(name, weight).
  void for_each_float_weight(
      std::function<void(std::string const&, stored_weight const&)> const& visit) const;

 private:
  stored_weight const& output() const;
  void attach_packed();
  /// Whether the linear layer with a tensor NAME.weight is there in packed form only.
  bool is_packed(std::string const& weight) const;
  /// A linear layer of a checkpoint that others have quantized.
  std::unique_ptr<packed_linear> read_checkpoint(std::int64_t layer, linear l) const;

  std::filesystem::path path_;
  lm::config config_;
  weight_files files_;
  std::vector<std::array<std::unique_ptr<packed_linear>, linears>> packed_;
  model_grids grids_;
  row_vector final_norm_;
  mutable std::map<std::string, std::vector<float>> decoded_;
};

}  // namespace lm
