// What can be chosen about quantizing a layer.
#pragma once

#include <gptq/grid.hpp>

namespace gptq {

struct quantize_options {
  /// How a group's scale is found (grid.hpp), and whether smaller ranges are tried as well.
  grid_rule grid = grid_rule::published;
  bool mse = false;
  /// Quantize the inputs with the largest diag(H) first. Groups are then runs of that order, and the layer
  /// carries the order with it, unless static_groups keeps them runs of the original columns.
  bool act_order = false;
  /// Find all grids before the first column is quantized, on the given weights and the original columns.
  bool static_groups = false;
  /// Added to diag(H), as a fraction of its mean. It is raised tenfold, up to 1, while H is not positive
  /// definite; the report says so.
  double damping = 0.01;
  /// Columns that are handled together between two large products. Changes rounding errors only.
  int block_size = 128;
  /// Run the published algorithm in its own order of operations, defects included, instead of ours: for
  /// comparisons (detail/published.hpp names the defects). Use float32 scales, the fourth parameter of
  /// format, with it: the published solvers do not round them.
  bool reference = false;
  /// Report the output error on the calibration data, which costs N K^2 operations more.
  bool measure_output_error = true;
  /// 0: one a core. The result does not depend on it (but see detail/linear_algebra.hpp for a threaded BLAS).
  int threads = 0;
};

}  // namespace gptq
