// What a quality consists of, on the CPU and on a GPU.
#pragma once

#include <string>

#include <gptq/error.hpp>
#include <gptq/options.hpp>

namespace gptq::solver {

struct recipe {
  bool search = false;  ///< grids in the sweep's metric, static groups and act-order, instead of the options'
  bool group_aware =
      false;       ///< with these, another sweep in group-aware order; each row keeps the better one
  int rounds = 0;  ///< scales fitted to the codes and another sweep with them; whatever is better stays
  int beam = 1;    ///< candidates a row in the last of these sweeps
  int passes = 0;  ///< coordinate descent on codes and grids, at most
  bool choose_damping = false;  ///< by the error on held-out tokens, where there are some
  /// What is taken instead, where it has the smaller error on held-out tokens: 1: the published default; 2:
  /// the better one of it and the published best, whose search takes long.
  int guards = 0;
};

inline recipe recipe_for(quality q) {
  switch (q) {
    case quality::reference:
    case quality::plain:
      return {};
    case quality::fast:
      return {.search = true, .group_aware = true, .passes = 2, .guards = 1};
    case quality::best:
      return {.search = true,
              .group_aware = true,
              .rounds = 2,
              .beam = 6,
              .passes = 4,
              .choose_damping = true,
              .guards = 2};
  }
  throw error("quantize: quality is " + std::to_string(static_cast<int>(q)) + ", which there is not");
}

/// Another pass of coordinate descent is not worth it where the last one has made less of the loss go away.
inline constexpr double least_gain_of_a_pass = 1e-3;

}  // namespace gptq::solver
