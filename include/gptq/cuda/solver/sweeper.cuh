// The sweep over all columns: which blocks, which products between them, what runs beside what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <utility>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/arrange.cuh>
#include <gptq/cuda/solver/beam.cuh>
#include <gptq/cuda/solver/column_order.cuh>
#include <gptq/cuda/solver/event.cuh>
#include <gptq/cuda/solver/faults.cuh>
#include <gptq/cuda/solver/grids.cuh>
#include <gptq/cuda/solver/hessian_diagonal.cuh>
#include <gptq/cuda/solver/metric.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/cuda/solver/products.cuh>
#include <gptq/cuda/solver/sweep.cuh>

namespace gptq::cuda::detail {

/// GPTQ of the rows of several layers in one order, with a factor that is there.
class sweeper {
 public:
  /// Gathers the weights. All of these have to outlive it.
  sweeper(problem const& p, hessian_diagonal const& diagonal, column_order const& order,
          device_array<faults> const& found)
      : problem_(p),
        diagonal_(diagonal),
        order_(order),
        found_(found),
        products_(p),
        work_(p.ctx, p.rows * p.ld) {
    p.visit_weights([&](weight_view const& w, index_t first_row) {
      launch(gather_weight<>, {.grid = grid_size(w.out), .block = 256, .stream = p.ctx.stream()}, w.data,
             diagonal.there.data(), order.columns_there.data(), work_.data() + first_row * p.ld, p.columns,
             p.ld, found.data());
    });
  }

  /// Takes the factor, which has to stay.
  void prepare(float const* factor) {
    problem const& p = problem_;
    factor_ = factor;
    feedback_ = device_array<float>(p.ctx, p.rows * p.ld);
    codes_by_position_ = device_array<std::uint8_t>(p.ctx, p.rows * p.ld);
    losses_ = device_array<double>(p.ctx, p.rows);
    losses_.fill_bytes(0);
    scales_ = device_array<float>(p.ctx, p.rows * p.format.groups);
    zeros_ = device_array<std::uint8_t>(p.ctx, p.format.levels.has_zero_point ? scales_.size() : 0);
    if (!order_.searched) return;
    metric_ = device_array<float>(p.ctx, p.columns);
    launch(sweep_metric<>, {.grid = 1, .block = 1024, .stream = p.ctx.stream()}, factor,
           order_.grids_on_the_way ? nullptr : order_.columns_there.data(), metric_.data(), p.columns, p.ld);
  }

  /// Codes of all rows, with grids that are there, and as many candidates a row.
  void run_with_grids(float const* scales, std::uint8_t const* zeros, int candidates) {
    cudaStream_t const stream = problem_.ctx.stream();
    check(cudaMemcpyAsync(scales_.data(), scales, at(scales_.size()) * sizeof(float),
                          cudaMemcpyDeviceToDevice, stream),
          "copying scales");
    if (zeros != nullptr) {
      check(cudaMemcpyAsync(zeros_.data(), zeros, at(zeros_.size()), cudaMemcpyDeviceToDevice, stream),
            "copying zero points");
    }
    candidates_ = candidates;
    sweep();
  }

  /// Codes and grids of all rows.
  void run() {
    problem const& p = problem_;
    if (!order_.grids_on_the_way) {
      p.visit_weights([&](weight_view const& w, index_t first_row) {
        find(given_weights{w.data, diagonal_.there.data(), p.columns}, w.out, first_row,
             {p.columns, p.format.group_columns, 0, p.format.groups, nullptr, metric_.data()});
      });
    }
    sweep();
  }

  /// W - Q, [rows, ld], reversed.
  float const* differences() const { return work_.data(); }
  /// [rows, ld], by position.
  std::uint8_t const* codes_by_position() const { return codes_by_position_.data(); }
  /// Sums of ((w_now - q) R_jj)^2 of each row.
  device_array<double> const& losses() const { return losses_; }
  device_array<float>& scales() { return scales_; }
  device_array<std::uint8_t>& zeros() { return zeros_; }
  /// [rows, ld] of memory that the sweep does not need any more.
  float* scratch() { return feedback_.data(); }

 private:
  /// Whether a group lies within a block, which then finds its grid.
  bool small_groups() const {
    return order_.grids_on_the_way && problem_.format.group_columns <= block_columns;
  }

  grid_store grids() { return {scales_.data(), zeros_.data(), problem_.format.groups, found_.data()}; }

  template <class Weights>
  void find(Weights const& weights, index_t rows, index_t first_row, group_run const& run) {
    problem const& p = problem_;
    grid_store grids = this->grids();
    grids.scales += first_row * grids.groups;
    if (grids.zeros != nullptr) grids.zeros += first_row * grids.groups;
    auto const kernel =
        p.format.levels.is_half_step()
            ? (order_.searched ? find_grids<true, true, Weights> : find_grids<true, false, Weights>)
            : (order_.searched ? find_grids<false, true, Weights> : find_grids<false, false, Weights>);
    launch(kernel, {.grid = grid_size((rows * run.count + 7) / 8), .block = 256, .stream = p.ctx.stream()},
           weights, grids, p.format.rules(), rows, run);
  }

  /// The end of a run of about `size` positions: where grids are found on the way, where a group ends if one
  /// does.
  index_t run_end(index_t first, index_t size, index_t limit) const {
    index_t const end = std::min(first + size, limit);
    if (!order_.grids_on_the_way || end == limit) return end;
    index_t const boundary = end / problem_.format.group_columns * problem_.format.group_columns;
    return boundary > first ? boundary : end;
  }

  /// An outer block: some blocks between two products over all later columns; it begins and ends with a group.
  index_t outer_block_end(index_t first) const {
    index_t const size = 4 * block_columns;
    return run_end(first, order_.grids_on_the_way ? std::max(size, problem_.format.group_columns) : size,
                   problem_.columns);
  }

  /// f of positions q0..q1 += what the quantized positions p0..p1 pass on to them; or =, where it is the
  /// first. Memory is reversed.
  void pass_on(stream_choice stream, index_t p0, index_t p1, index_t q0, index_t q1) {
    if (q0 == q1) return;
    problem const& p = problem_;
    index_t const a = p.ld - p1;
    // With what pads a row, so that everything begins at 8 floats: the factor is zero there, and f not used.
    index_t const b = q1 == p.columns ? 0 : p.ld - q1;
    static_assert(block_columns % 8 == 0);  // as groups are, too
    products_.run(stream, work_.data() + a, factor_ + b * p.ld + a, feedback_.data() + b, p.rows,
                  p.ld - q0 - b, p1 - p0, p0 != 0);
  }

  void sweep() {
    problem const& p = problem_;
    event swept;    // the outer block's last column, on the main stream
    event updated;  // everything that is later than the next outer block, on the side stream
    bool beside = false;
    for (index_t first = 0; first < p.columns;) {
      index_t const end = outer_block_end(first);
      for (index_t block = first; block < end;) {
        index_t const block_end = run_end(block, block_columns, end);
        sweep_one(block, block_end);
        pass_on(stream_choice::main, block, block_end, block_end, end);
        block = block_end;
      }
      if (end < p.columns) {
        // Look-ahead: the next outer block's columns first, the rest while these are swept.
        index_t const next_end = outer_block_end(end);
        swept.record(p.ctx.stream());
        if (beside) updated.hold_up(p.ctx.stream());
        pass_on(stream_choice::main, first, end, end, next_end);
        beside = next_end < p.columns;
        if (beside) {
          swept.hold_up(p.ctx.side_stream());
          pass_on(stream_choice::beside, first, end, next_end, p.columns);
          updated.record(p.ctx.side_stream());
        }
      }
      first = end;
    }
  }

  void sweep_one(index_t first, index_t end) {
    problem const& p = problem_;
    index_t const group_columns = p.format.group_columns;
    bool const small = small_groups();
    if (order_.grids_on_the_way && !small && first % group_columns == 0) find_large_group(first);
    sweep_arguments const arguments{work_.data(),
                                    first == 0 ? nullptr : feedback_.data(),
                                    factor_,
                                    p.ld,
                                    order_.groups_there.data(),
                                    grids(),
                                    codes_by_position_.data(),
                                    losses_.data(),
                                    p.rows,
                                    static_cast<int>(std::min<index_t>(group_columns, block_columns)),
                                    metric_.data(),
                                    p.format.rules()};
    launch_config config{.grid = grid_size((p.rows + block_rows - 1) / block_rows),
                         .block = block_rows * row_lanes,
                         .shared_memory = sweep_shared_memory,
                         .stream = p.ctx.stream()};
    int const width = static_cast<int>(end - first);
    if (candidates_ > 1) {
      config.shared_memory = beam_shared_memory;
      launch(p.format.levels.is_half_step() ? beam_block<true> : beam_block<false>, config, arguments, first,
             width, candidates_);
      return;
    }
    bool const search = small && order_.searched;
    auto const kernel = p.format.levels.is_half_step()
                            ? (search ? sweep_block<true, true> : sweep_block<true, false>)
                            : (search ? sweep_block<false, true> : sweep_block<false, false>);
    launch(kernel, config, arguments, first, width, small);
  }

  /// The grids of a group that no block holds, from where its weights will move: d with d L = f.
  void find_large_group(index_t first) {
    problem const& p = problem_;
    index_t const count = std::min(p.format.group_columns, p.columns - first);
    index_t const a = p.ld - first - count;
    device_array<float> moves;
    if (first > 0) {
      moves = device_array<float>(p.ctx, p.rows * count);
      check(cudaMemcpy2DAsync(moves.data(), at(count) * sizeof(float), feedback_.data() + a,
                              at(p.ld) * sizeof(float), at(count) * sizeof(float), at(p.rows),
                              cudaMemcpyDeviceToDevice, p.ctx.stream()),
            "copying a group");
      float const one = 1.0F;
      check(cublasStrsm_64(p.ctx.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T,
                           CUBLAS_DIAG_NON_UNIT, count, p.rows, &one, factor_ + a * (p.ld + 1), p.ld,
                           moves.data(), count),
            "solving for a group's weights");
    }
    find(expected_weights{work_.data(), p.ld, moves.data(), count, first}, p.rows, 0,
         {p.columns, p.format.group_columns, first / p.format.group_columns, 1, order_.groups_there.data(),
          metric_.data()});
  }

  problem const& problem_;
  hessian_diagonal const& diagonal_;
  column_order const& order_;
  device_array<faults> const& found_;
  column_products products_;
  float const* factor_ = nullptr;
  int candidates_ = 1;
  device_array<float> work_;
  device_array<float> feedback_;
  device_array<std::uint8_t> codes_by_position_;
  device_array<double> losses_;
  device_array<float> scales_;
  device_array<std::uint8_t> zeros_;
  device_array<float> metric_;
};

}  // namespace gptq::cuda::detail
