// Which rank solves which linear layers of a decoder layer.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <gptq/config.hpp>

namespace lm {

/// A linear layer that has to be solved: weight[out, in].
struct solving_task {
  gptq::index_t out = 0;
  gptq::index_t in = 0;
  int input = 0;  ///< tasks of the same number share a Hessian, and where they share a rank, its factor
};

struct solving_plan {
  std::vector<int> owner;    ///< the rank of each task
  std::vector<double> cost;  ///< of each rank, in multiplications
};

/// Gives each task, the most expensive first, to the rank that is done with it earliest: K^3 multiplications
/// for the factor of a Hessian of K inputs, 3 N K^2 for N rows: the sweep, and the output's error and power.
/// The last rank gets the first one: that is where sums arrive (add_in_order() in ranks.hpp).
solving_plan make_plan(std::span<solving_task const> tasks, int ranks);

}  // namespace lm
