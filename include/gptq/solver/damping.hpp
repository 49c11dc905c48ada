// The damping that a Hessian takes to be positive definite.
#pragma once

#include <algorithm>

namespace gptq::solver {

/// The dampings to try, one after the other, as fractions of the mean of diag(H): the given one, then ten
/// times as much each time (1e-4 after less than that), up to 1.
class damping_ladder {
 public:
  explicit damping_ladder(double first) : damping_(first) {}

  double damping() const { return damping_; }
  int raised() const { return raised_; }  ///< how often
  /// The next one; false when there is none.
  bool raise() {
    if (!(damping_ < 1.0) || raised_ == most_raises) return false;
    damping_ = std::min(1.0, std::max(10.0 * damping_, 1e-4));
    ++raised_;
    return true;
  }

  /// 1e-4, 1e-3, ..., 1 after a first one of 0.
  static constexpr int most_raises = 5;

 private:
  double damping_;
  int raised_ = 0;
};

}  // namespace gptq::solver
