// A decoder layer on a device whose linear layers stay packed, for products by the library's kernels.
//
// Activations between products are float16, sums, the residual and what a single token's products leave are
// float32. Linear layers that share an input are one product where their formats and column orders agree and
// 32 divides their rows. A linear layer that the device has no kernel for, or that is not packed, is there in
// float16.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "decoder.hpp"

namespace lm::device {

/// The linear layers of a stage: y = x w' for all of them, side by side.
class projection {
 public:
  /// The `linears` share an input of `in` columns; waits until they are on the device. Throws gptq::error when it
  /// has too little memory.
  projection(accelerator& on, std::span<linear_source const> linears, index_t in);

  index_t in() const { return in_; }
  index_t out() const { return out_; }
  /// That a token reads.
  std::size_t bytes() const;
  /// Whether all of it is multiplied as it is packed.
  bool packed() const;
  /// Where the device has the columns of x, for multiply_one(); null: where they are.
  std::int32_t const* places() const;
  float const* bias() const { return bias_.data(); }
  /// y[rows, out] of type float16 for x[rows, in]; without the bias.
  void multiply(numbers x, index_t rows, numbers y) const;
  /// y[out] in float32 for x[in] whose columns lie at places(); without the bias.
  void multiply_one(numbers x, float* y) const;

 private:
  struct part {
    std::unique_ptr<packed_weight> packed;  ///< or
    number_array dense;                     ///< [out, in]
    index_t out;
  };
  void multiply(part const& p, numbers x, index_t rows, numbers y, bool arranged) const;

  accelerator& on_;
  index_t in_;
  index_t out_ = 0;
  std::vector<part> parts_;
  array<float> bias_;
};

class packed_layer {
 public:
  packed_layer(accelerator& on, layer_source&& source);

  layer_arithmetic const& arithmetic() const { return arithmetic_; }
  projection const& operator[](stage s) const { return stages_[static_cast<std::size_t>(s)]; }
  float const* attention_norm() const { return attention_norm_.data(); }
  /// That a token reads, without cached keys and values.
  std::size_t bytes() const;
  bool packed() const;

  /// Windows x[tokens, hidden], residual in float32, through the layer. Gives back their keys and values.
  forward_pass::keys_and_values run(forward_pass const& pass, index_t windows, float* x) const;

  /// What one token takes between products, for all layers of a model.
  struct token_memory {
    token_memory(accelerator& on, std::span<packed_layer const> layers);

    number_array normed;   ///< float16
    array<float> product;  ///< of any stage
    number_array input;    ///< float16, of stages output and down
  };
  struct cache {
    number_array keys, values;  ///< float16, [key-value head, position, element]
  };
  /// Where the token is, and what of the device's memory attention may use.
  struct token_place {
    std::int32_t const* position;
    index_t capacity;
    rotation turn;
    void* workspace;
  };
  /// One token whose normed residual is in memory.normed, for this layer's first stage; leaves it so for what
  /// comes next, which has the norm `next` and takes columns at next_places.
  void step(float* x, token_memory const& memory, cache const& kept, token_place const& place,
            float const* next, std::int32_t const* next_places) const;

 private:
  accelerator& on_;
  layer_arithmetic arithmetic_;
  std::vector<projection> stages_;
  array<float> attention_norm_, after_attention_norm_, mlp_norm_, after_mlp_norm_, query_norm_, key_norm_;
};

}  // namespace lm::device
