// What can be chosen about quantizing a layer.
//
//   gptq::quantize_options options{.quality = gptq::quality::best, .damping = 0.03};
//   options.threads = 1;  // one for each layer, where a program quantizes a layer on every core
#pragma once

#include <gptq/grid.hpp>

namespace gptq {

/// How much work goes into a layer's codes and scales. How many bytes these take does not depend on it.
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
  /// As fast, and two more sweeps before the descent, the last with several candidates for the codes of a row
  /// (a beam); then up to four passes of descent. Held-out tokens choose the damping (quantize.hpp).
  best,
};

/// What can be chosen about quantize().
struct quantize_options {
  gptq::quality quality = gptq::quality::fast;
  /// How a group's scale is found (grid.hpp), and whether smaller ranges are tried as well (`mse`, see
  /// grid_options). Quality fast and best find what these say first, and look for a better scale from there.
  grid_rule grid = grid_rule::published;
  bool mse = false;
  /// Quantize the inputs with the largest diag(H) first. A group is then a run of columns in that order, which
  /// is stored with the layer (quantized_layer::order); with static_groups it is a run of original columns, and
  /// no order is stored. Quality fast and best work as if both were true, and store no order, with one
  /// exception: act_order without static_groups, and held-out tokens by which plain GPTQ is better
  /// (quantize_report::fell_back). The layer is then that of quality plain, order included.
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
