// Linear layers to quantize, with the Hessians of what they read: those of a model, or made up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <gptq/hessian.hpp>

#include "model.hpp"
#include "tokens.hpp"

namespace accuracy {

struct layer {
  std::string name;
  gptq::matrix weight;    ///< [out, in]
  std::size_t input = 0;  ///< which Hessian it reads
};

/// Every linear layer of a model in the order of its decoder layers; those that share an input share its
/// number.
std::vector<layer> layers_of(lm::model const& m, int threads);

/// The Hessians of every input, as the unquantized model computes them from some windows: the same for all
/// methods, whatever they make of the layers before.
std::vector<gptq::hessian> hessians_of(lm::model const& m, std::span<lm::token_window const> windows,
                                       int threads);

/// A layer that no model has: `in` inputs whose covariance has eigenvalues i^-decay in random directions that
/// mix neighbours, some of them outliers, `outlier` times as large as the rest; normal weights, with heavier
/// tails along some rows.
struct synthetic_layer {
  gptq::index_t out = 256;
  gptq::index_t in = 512;
  float decay = 1.0F;
  gptq::index_t outliers = 5;
  float outlier = 20.0F;

  std::string name() const;
  gptq::matrix weight(std::uint32_t seed) const;
  /// The Hessian of `tokens` tokens. `seed` is of the tokens; their covariance is the layer's own.
  gptq::hessian inputs(gptq::index_t tokens, std::uint32_t seed) const;
};

}  // namespace accuracy
