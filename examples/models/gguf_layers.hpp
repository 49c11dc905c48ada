// Linear layers in the blocks of GGUF files, read and written without touching a weight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gptq/checkpoint/ggml.hpp>

#include "linear.hpp"
#include "weights.hpp"

namespace lm {

/// The layer whose blocks a GGUF file has, packed: the same weights. Throws gptq::error when it is in blocks that no
/// format here holds.
std::unique_ptr<packed_linear> read_blocks(stored_weight const& weight);

class model;

/// The same for all linear layers of a model in a GGUF file: read_blocks(), in their places.
void pack_blocks(model& m);

/// A packed layer and the name of its weight.
using named_layer = std::pair<std::string, packed_linear const*>;

/// The smallest type whose blocks decode to the weights of all these layers. Throws gptq::error, naming one, with the
/// reason, when there is none.
gptq::checkpoint::ggml_type exact_type(std::vector<named_layer> const& layers);

/// Its blocks, in our order of rows. Throws gptq::error unless they decode to the layer's weights.
std::vector<std::byte> exact_blocks(packed_linear const& layer, gptq::checkpoint::ggml_type type);

}  // namespace lm
