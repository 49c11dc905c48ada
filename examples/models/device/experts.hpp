// Layers of experts on a device: which tokens go to which expert, and what the experts make of them. Routing never
// leaves the device but for the number of tokens of each expert.
#pragma once

#include <vector>

#include "decoder.hpp"

namespace lm::device {

/// Tokens by expert. An entry is a token and one of its experts: token * chosen + j.
struct routed_tokens {
  array<std::int32_t>
      order;  ///< entries, those of an expert one after another, each in the order of the text
  array<std::int32_t> places;  ///< of each entry in `order`
  array<float> weights;        ///< of each entry
  std::vector<index_t>
      starts;  ///< [experts * windows + 1], where those of each expert's windows begin in `order`
  index_t windows;

  index_t entries() const { return order.size(); }
  index_t count(index_t expert) const { return begin(expert + 1) - begin(expert); }
  index_t begin(index_t expert) const { return starts[static_cast<std::size_t>(expert * windows)]; }
  /// Windows of which an expert has tokens.
  index_t sequences(index_t expert) const;
};

/// Routes x[windows * length, hidden], the residual before the norm of a layer of experts. Waits for the counts.
routed_tokens route(accelerator& on, decoder_layer const& layer, index_t windows, index_t length,
                    float const* x);

/// What is routed to experts first and on: rows [count, hidden] of normed[tokens, hidden].
void gather_routed(accelerator& on, decoder_layer const& layer, routed_tokens const& routed, index_t first,
                   index_t count, numbers normed, numbers to);

/// An expert's hidden rows, down_proj's input: to[rows, intermediate] of x[rows, hidden].
void run_expert(accelerator& on, decoder_layer const& layer, index_t expert, numbers x, index_t rows,
                numbers to);

/// Adds what a layer of experts makes of normed[rows, hidden] to x[rows, hidden].
void add_experts(accelerator& on, decoder_layer const& layer, routed_tokens const& routed, numbers normed,
                 index_t rows, float* x);

}  // namespace lm::device
