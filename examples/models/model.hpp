// A model's weights: which there are, where they come from, one decoder layer at a time.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
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

/// Rows of the output layer that are best in float32 at a time.
inline constexpr std::int64_t output_slice = 1024;

/// One decoder layer, ready to be run.
struct decoder_layer {
  decoder_description const* description = nullptr;  ///< the model's, which has to outlive this
  std::array<row_vector, norm_kinds> norms;          ///< by `norm`; empty where there is none
  std::vector<row_vector> biases;                    ///< of each linear layer; empty where there is none
  matrix router;                                     ///< [experts, hidden]; empty without experts

  virtual ~decoder_layer() = default;
  row_vector const& operator[](norm kind) const { return norms[static_cast<std::size_t>(kind)]; }
  /// x W' and the bias for x[tokens, in].
  matrix multiply(linear kind, matrix const& x, std::int64_t expert = no_expert) const {
    return multiply_by(description->index(kind, expert), x);
  }
  /// The same for several linear layers with the same input: threads meet only once.
  template <std::size_t N>
  std::array<matrix, N> multiply(linear const (&kinds)[N], matrix const& x,
                                 std::int64_t expert = no_expert) const {
    std::array<std::size_t, N> places;
    for (std::size_t i = 0; i < N; ++i) places[i] = description->index(kinds[i], expert);
    std::array<matrix, N> y;
    multiply_and_add_bias(places, x, y.data());
    return y;
  }
  /// The same for one linear layer by its place.
  matrix multiply_by(std::size_t place, matrix const& x) const {
    matrix y;
    multiply_and_add_bias(std::span(&place, 1), x, &y);
    return y;
  }
  /// Bytes that a token reads of all linear layers, once each; of the experts, as many as it goes through.
  std::size_t bytes(std::int64_t experts_per_token) const;

 private:
  void multiply_and_add_bias(std::span<std::size_t const> places, matrix const& x, matrix* y) const;
  virtual void multiply_all(std::span<std::size_t const> places, matrix const& x, matrix* y) const = 0;
  virtual std::size_t bytes_of(std::size_t place) const = 0;
};

/// In float32.
struct float_layer final : decoder_layer {
  std::vector<matrix> weights;  ///< [out, in] each, as the description has them

 private:
  void multiply_all(std::span<std::size_t const> places, matrix const& x, matrix* y) const override;
  std::size_t bytes_of(std::size_t place) const override;
};

/// Packed, through the library's gemv.
struct packed_layer final : decoder_layer {
  struct entry {
    packed_parts weight;
    gemv_kernel gemv = nullptr;
  };
  std::vector<entry> weights;
  int threads = 1;

 private:
  void multiply_all(std::span<std::size_t const> places, matrix const& x, matrix* y) const override;
  std::size_t bytes_of(std::size_t place) const override;
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

  /// Embeddings of some tokens, scaled: [tokens, hidden].
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
  matrix original(std::int64_t layer, std::size_t place) const;
  row_vector const& final_norm() const { return final_norm_; }
  /// All of a decoder layer but the weights of its linear layers.
  void load_small(std::int64_t layer, decoder_layer& result) const;
  /// A tensor as it is stored. Throws gptq::error when there is none.
  stored_weight const& stored(std::string const& name) const { return files_.at(name); }
  stored_weight const& embedding() const { return files_.at(embedding_name()); }
  stored_weight const& output() const;
  /// Whether load() rounds to grids.
  bool is_rounded() const { return !grids_.empty(); }
  /// Rows [first, first + count) of the output layer: [count, hidden].
  matrix output_rows(std::int64_t first, std::int64_t count) const;
  /// Logits of one token, x[1, hidden], on `threads` threads: [vocab_size]. Of a quantized output layer by the
  /// kernels, with 15 bits of x, which is as good as float32, where there are any for its format.
  row_vector logits(row_vector const& x, int threads) const;
  /// That the output layer takes, with its scales and the like.
  std::size_t output_bytes() const;
  /// Whether the output layer is quantized, in a checkpoint that others have made.
  bool has_quantized_output() const { return packed_output_.has_value(); }

  /// From now on, load() takes this linear layer from its packed form.
  void replace(std::int64_t layer, std::size_t place, std::unique_ptr<packed_linear> packed);
  /// From now on, load() rounds linear layers that are not packed to these grids. Throws gptq::error, naming
  /// the layer, when there are none for one, they do not fit it, or it is packed.
  void round_to(model_grids grids);
  /// Null until it is packed.
  packed_linear const* packed(std::int64_t layer, std::size_t place) const {
    return packed_[static_cast<std::size_t>(layer)][place].get();
  }
  /// Calls visit(layer, packed) for all linear layers. Throws gptq::error, naming it, when one is not packed.
  void for_each_packed(std::function<void(linear_layer const&, packed_linear const&)> const& visit) const;
  /// Tells models apart: a number made of all tensors' names, shapes, types and first bytes.
  std::string fingerprint() const;
  /// Throws gptq::error when the directory holds a packed model or a GPTQ checkpoint: there are no weights to
  /// quantize. Those of AWQ and compressed-tensors checkpoints are what their codes stand for.
  void require_unquantized() const;
  /// The tensors that stay as they are, as safetensors have them (decoded to float32 if they are quantized;
  /// this model then keeps that), those of parts that are not the text model's included: visit(name, tensor).
  void for_each_float_tensor(
      std::function<void(std::string const&, gptq::checkpoint::tensor_view const&)> const& visit) const;
  /// The same as they are stored, without the other parts: visit(name, weight).
  void for_each_float_weight(
      std::function<void(std::string const&, stored_weight const&)> const& visit) const;

 private:
  void attach_packed();
  /// Whether the linear layer with a tensor NAME.weight is there in packed form only.
  bool is_packed(std::string const& weight) const;
  /// A linear layer of a checkpoint that others have quantized.
  std::unique_ptr<packed_linear> read_checkpoint(std::string const& name, std::int64_t out,
                                                 std::int64_t in) const;
  std::string embedding_name() const;
  template <class Visit>
  void for_each_tensor(Visit&& visit) const;
  bool is_other_part(std::string_view name) const;
  void check_tensors() const;
  void refuse_unknown_tensors() const;

  std::filesystem::path path_;
  lm::config config_;
  weight_files files_;
  std::vector<std::vector<std::unique_ptr<packed_linear>>> packed_;
  std::optional<stored_weight> packed_output_;
  model_grids grids_;
  row_vector final_norm_;
  mutable std::map<std::string, std::vector<float>> decoded_;
};

}  // namespace lm
