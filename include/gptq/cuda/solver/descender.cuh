// Passes of coordinate descent over all columns of what sweeps have left: which blocks, which products
// between them, what runs beside what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/arrange.cuh>
#include <gptq/cuda/solver/descent.cuh>
#include <gptq/cuda/solver/event.cuh>
#include <gptq/cuda/solver/faults.cuh>
#include <gptq/cuda/solver/hessian_diagonal.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/cuda/solver/products.cuh>

namespace gptq::cuda::detail {

/// Coordinate descent on the rows of several layers.
class descender {
 public:
  /// @param kept      codes, grids, W - Q and losses, which are kept up to date
  /// @param gradient  [rows, ld] of memory to work in
  /// @param added     what damping adds to the diagonal of H
  descender(problem const& p, hessian_diagonal const& diagonal, kept_result const& kept, float* gradient,
            double added, device_array<faults> const& found)
      : problem_(p),
        products_(p),
        kept_(kept),
        gradient_(gradient),
        found_(found),
        metric_(p.ctx, p.ld * p.ld),
        gained_(p.ctx, p.rows) {
    gained_.fill_bytes(0);
    launch(damped_metric<>, {.grid = grid_size(p.ld), .block = 256, .stream = p.ctx.stream()}, p.h.sum(),
           diagonal.there.data(), metric_.data(), p.columns, p.ld, p.h.scale(), added, diagonal.average);
  }

  /// Goes once through all columns of the rows first..first+count: codes if asked to, then the grids.
  void pass(bool choose, index_t first_row, index_t rows) {
    first_row_ = first_row;
    rows_ = rows;
    problem const& p = problem_;
    index_t const size = p.format.group_columns;
    bool const small = size <= block_columns;          // blocks hold whole groups
    bool const soon = !small && size <= soon_columns;  // a group is fitted before the next one's codes
    if (small || choose) {
      index_t const outer = small  ? block_columns / size * size * 4
                            : soon ? outer_columns / size * size
                                   : outer_columns;
      go_through(outer, choose, small, soon);
    } else if (soon) {
      for (index_t group = 0; group < p.format.groups; ++group) fit_large(group);
    }
    if (!small && !soon) {
      for (index_t group = 0; group < p.format.groups; ++group) fit_large(group);
    }
    launch(take_off<>, {.grid = grid_size((rows + 255) / 256), .block = 256, .stream = p.ctx.stream()},
           kept_.losses + first_row, gained_.data() + first_row, p.h.scale(), rows);
  }

 private:
  static constexpr index_t outer_columns = 4 * block_columns;
  static constexpr index_t soon_columns = 256;  ///< as on the CPU

  /// Blocks of an outer block at a time, whose gradient is made beside the outer block before.
  void go_through(index_t outer, bool choose, bool small, bool soon) {
    problem const& p = problem_;
    index_t const size = p.format.group_columns;
    index_t const step = small ? block_columns / size * size : block_columns;
    event begun, ready;
    bool started = false;  // whether there is something in the gradient of the outer block
    for (index_t first = 0; first < p.columns; first += outer) {
      index_t const end = std::min(first + outer, p.columns);
      if (first == 0) started = add(stream_choice::main, end, p.columns, first, end, false);
      index_t const next_end = std::min(end + outer, p.columns);
      bool const look_ahead = end < p.columns;
      bool next_started = false;
      if (look_ahead) {  // of what is neither in this outer block nor in the next
        begun.record(p.ctx.stream());
        begun.hold_up(p.ctx.side_stream());
        next_started = add(stream_choice::beside, 0, first, end, next_end, false);
        next_started = add(stream_choice::beside, next_end, p.columns, end, next_end, next_started);
        ready.record(p.ctx.side_stream());
      }
      for (index_t block = first; block < end;) {
        index_t const limit = soon ? std::min(end, (block / size + 1) * size) : end;
        index_t const block_end = std::min(block + step, limit);
        add(stream_choice::main, first, end, block, block_end, started);
        descend(block, block_end, choose, small);
        if (soon && block_end == limit) fit_large(block / size);
        block = block_end;
      }
      if (look_ahead) {
        ready.hold_up(p.ctx.stream());
        started = add(stream_choice::main, first, end, end, next_end, next_started);
      }
    }
  }

  /// The gradient of columns q0..q1 = D M of columns p0..p1, or += ; returns whether there is something in
  /// it.
  bool add(stream_choice stream, index_t p0, index_t p1, index_t q0, index_t q1, bool there) {
    if (p0 == p1) return there;
    problem const& p = problem_;
    // With what pads a row.
    auto const padded = [&](index_t column) { return column == p.columns ? p.ld : column; };
    products_.run(stream, kept_.difference + first_row_ * p.ld + p0, metric_.data() + q0 * p.ld + p0,
                  gradient_ + first_row_ * p.ld + q0, rows_, padded(q1) - q0, padded(p1) - p0, there);
    return true;
  }

  void descend(index_t first, index_t end, bool choose, bool fit) {
    problem const& p = problem_;
    descent_arguments const arguments{kept_.difference + first_row_ * p.ld,
                                      gradient_ + first_row_ * p.ld,
                                      metric_.data(),
                                      p.ld,
                                      grids(),
                                      kept_.codes + first_row_ * p.columns,
                                      gained_.data() + first_row_,
                                      rows_,
                                      p.columns,
                                      p.format.group_columns,
                                      p.format.rules()};
    launch(p.format.levels.is_half_step() ? descend_block<true> : descend_block<false>,
           {.grid = grid_size((rows_ + block_rows - 1) / block_rows),
            .block = block_rows * row_lanes,
            .shared_memory = descent_shared_memory,
            .stream = p.ctx.stream()},
           arguments, first, static_cast<int>(end - first), choose, fit);
  }

  grid_store grids(index_t row = 0) {
    index_t const first = (first_row_ + row) * problem_.format.groups;
    return {kept_.scales + first, kept_.zeros == nullptr ? nullptr : kept_.zeros + first,
            problem_.format.groups, found_.data()};
  }

  /// The best grids of a group that no block holds: its levels times M is a product of its own.
  void fit_large(index_t group) {
    problem const& p = problem_;
    index_t const first = group * p.format.group_columns;
    index_t const count = std::min(p.format.group_columns, p.columns - first);
    index_t const stride = (count + 7) / 8 * 8;
    bool const whole_row = count == p.columns;
    constexpr index_t most = index_t{1} << 26;  // floats of memory for levels
    index_t const at_once = std::min(rows_, std::max<index_t>(256, most / stride));
    device_array<float> levels(p.ctx, at_once * stride), product(p.ctx, at_once * stride),
        gradient(p.ctx, whole_row ? 0 : at_once * stride), centers(p.ctx, at_once);
    device_array<double> ones(p.ctx, count);
    launch(sum_of_group<>, {.grid = grid_size(count), .block = 256, .stream = p.ctx.stream()}, metric_.data(),
           p.ld, first, count, ones.data());
    for (index_t row = 0; row < rows_; row += at_once) {
      index_t const rows = std::min(at_once, rows_ - row);
      float* const difference = kept_.difference + (first_row_ + row) * p.ld;
      large_group const g{difference,
                          levels.data(),
                          product.data(),
                          gradient.data(),
                          ones.data(),
                          p.ld,
                          stride,
                          grids(row),
                          kept_.codes + (first_row_ + row) * p.columns,
                          gained_.data() + first_row_ + row,
                          centers.data(),
                          p.columns,
                          first,
                          count,
                          group,
                          p.format.rules()};
      launch_config const by_rows{.grid = grid_size(rows), .block = 256, .stream = p.ctx.stream()};
      launch(load_large_group<>, by_rows, g);
      multiply(levels.data(), stride, metric_.data() + first * p.ld + first, product.data(), stride, rows,
               count);
      if (!whole_row) {
        multiply(difference, p.ld, metric_.data() + first * p.ld, gradient.data(), stride, rows, count,
                 p.columns);
      }
      launch(fit_large_group<>, by_rows, g);
    }
  }

  /// to[rows, count] = from[rows, inner] M'[count, inner]; inner: count.
  void multiply(float const* from, index_t from_ld, float const* metric, float* to, index_t to_ld,
                index_t rows, index_t count, index_t inner = 0) {
    problem const& p = problem_;
    float const one = 1.0F;
    float const none = 0.0F;
    check(cublasGemmEx_64(p.ctx.blas(), CUBLAS_OP_T, CUBLAS_OP_N, count, rows, inner == 0 ? count : inner,
                          &one, metric, CUDA_R_32F, p.ld, from, CUDA_R_32F, from_ld, &none, to, CUDA_R_32F,
                          to_ld, products_.compute(), CUBLAS_GEMM_DEFAULT),
          "measuring a group");
  }

  problem const& problem_;
  column_products products_;
  kept_result kept_;
  float* gradient_;
  device_array<faults> const& found_;
  device_array<float> metric_;
  device_array<double> gained_;
  index_t first_row_ = 0;
  index_t rows_ = 0;
};

}  // namespace gptq::cuda::detail
