// What can be chosen about quantizing a layer.
//
//   gptq::quantize_options options{.quality = gptq::quality::best, .damping = 0.03};
//   options.threads = 1;  // of this layer; as many layers at a time as there are cores
//
#pragma once

#include <gptq/grid.hpp>

namespace gptq {

/// How much work goes into a layer's codes and scales; the bytes are the same.
enum class quality {
  /// The published algorithm in its own order of operations, defects included (solver/published.hpp names
  /// them): for comparisons. Use float32 scales, the fourth parameter of format, with it: the published
  /// solvers do not round them.
  reference,
  /// The same algorithm without the defects, and several times as fast.
  plain,
  /// Grids found in the Hessian's metric, in the better one of two orders of columns, then two passes of
  /// coordinate descent.
  fast,
  /// More rounds of both, and a beam of several candidates in every sweep.
  best,
};

struct quantize_options {
  gptq::quality quality = gptq::quality::fast;
  /// How a group's scale is found (grid.hpp), and whether smaller ranges are tried as well. With quality fast
  /// and best, this is where the search for a better one begins.
  grid_rule grid = grid_rule::published;
  bool mse = false;
  /// Quantize the inputs with the largest diag(H) first. Groups are then runs of that order, and the layer
  /// carries the order with it, unless static_groups keeps them runs of the original columns. Quality fast
  /// and best always do both; but with act_order and without static_groups, a layer for which held-out tokens
  /// say that plain GPTQ is better may come with an order.
  bool act_order = false;
  /// Find all grids before the first column is quantized, on the given weights and the original columns.
  bool static_groups = false;
  /// Added to diag(H), as a fraction of its mean; finite and not negative. While H is not positive definite
  /// it is raised to ten times as much (to 1e-4 from less than a tenth of that), up to 1, at most five times;
  /// the report says what it was in the end. Quality reference does not raise it, as published.
  double damping = 0.01;
  /// Columns that are handled together between two large products; positive. Changes rounding errors only.
  int block_size = 128;
  /// Report the output error on the calibration data, which costs N K^2 operations more.
  bool measure_output_error = true;
  /// 0: one a core. The result does not depend on it (but see linalg/products.hpp for a threaded BLAS).
  int threads = 0;
};

}  // namespace gptq
