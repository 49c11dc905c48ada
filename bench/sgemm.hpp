// Single-precision matrix products as this machine does them at best.
#pragma once

#include <algorithm>

#include <gptq/hessian.hpp>

#include "roofline.hpp"

namespace roofline {

/// The best rate seen so far, in floating-point operations a second. Every call of measure() times one
/// product of 3072 x 3072 with everything that Eigen has behind it, on all threads.
class sgemm {
 public:
  void measure() {
    double const operations = 2.0 * size * size * size;
    best_ =
        std::max(best_, operations / seconds_of([&] {
                          gptq::linalg::for_row_tiles(size, 0, [&](gptq::index_t first, gptq::index_t count) {
                            c_.middleRows(first, count).noalias() = a_.middleRows(first, count) * b_;
                          });
                        }));
  }
  double best() const { return best_; }

 private:
  static constexpr gptq::index_t size = 3072;
  gptq::matrix a_ = gptq::matrix::Random(size, size);
  gptq::matrix b_ = gptq::matrix::Random(size, size);
  gptq::matrix c_ = gptq::matrix::Zero(size, size);
  double best_ = 0.0;
};

}  // namespace roofline
