// Quantized linear layers that one rank has and the others need.
#pragma once

#include <memory>

#include "linear.hpp"
#include "model.hpp"
#include "quantization.hpp"
#include "ranks.hpp"

namespace lm {

/// A linear layer as it was quantized.
struct solved_linear {
  linear_report report;
  std::unique_ptr<packed_linear> packed;
};

/// All ranks get what rank `from` has.
solved_linear broadcast(ranks& world, solved_linear&& mine, int from);

/// All ranks' models get the packed linear layers of rank 0's, all of whose linear layers are packed.
void broadcast_packed(ranks& world, model& m);

}  // namespace lm
