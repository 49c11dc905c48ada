// Factors of a Hessian, kept for the next layer that has the same one.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace gptq::solver {

struct factor;  // factor.hpp

/// Of one Hessian.
struct shared_factors {
  struct entry {
    std::vector<std::int32_t> columns;  ///< in this order
    double first_damping;               ///< as it was asked for
    std::shared_ptr<factor const> f;
  };
  std::vector<entry> known;
};

}  // namespace gptq::solver
