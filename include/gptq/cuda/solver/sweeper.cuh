// The sweep over all columns: which blocks, which products between them, what runs beside what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/arrange.cuh>
#include <gptq/cuda/solver/column_order.cuh>
#include <gptq/cuda/solver/event.cuh>
#include <gptq/cuda/solver/faults.cuh>
#include <gptq/cuda/solver/grids.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/cuda/solver/sweep.cuh>
#include <gptq/cuda/solver/update_sm90.cuh>

namespace gptq::cuda::detail {

/// GPTQ of the rows of several layers, with a factor that is there.
class sweeper {
 public:
  /// Gathers the weights. `found` has to outlive it.
  sweeper(problem const& p, column_order const& order, device_array<faults> const& found)
      : problem_(p),
        order_(order),
        found_(found),
        compute_(p.options.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F),
        by_warpgroups_(!p.options.tf32 && update_sm90_runs(p.gpu)),
        work_(p.ctx, p.rows * p.ld) {
    p.visit_weights([&](weight_view const& w, index_t first_row) {
      launch(gather_weight<>, {.grid = grid_size(w.out), .block = 256, .stream = p.ctx.stream()}, w.data,
             order.diagonal.data(), order.columns_there.data(), work_.data() + first_row * p.ld, p.columns,
             p.ld, found.data());
    });
  }

  /// Codes and grids of all rows. `factor` has to stay.
  void prepare(float const* factor, solution& result) {
    problem const& p = problem_;
    factor_ = factor;
    feedback_ = device_array<float>(p.ctx, p.rows * p.ld);
    codes_by_position_ = device_array<std::uint8_t>(p.ctx, p.rows * p.ld);
    losses_ = device_array<double>(p.ctx, p.rows);
    losses_.fill_bytes(0);
    result.codes = device_array<std::uint8_t>(p.ctx, p.rows * p.columns);
    result.scales = device_array<float>(p.ctx, p.rows * p.format.groups);
    result.zeros =
        device_array<std::uint8_t>(p.ctx, p.format.levels.has_zero_point ? result.scales.size() : 0);
    grids_ = {result.scales.data(), result.zeros.data(), p.format.groups, found_.data()};
  }

  void run(solution& result) {
    problem const& p = problem_;
    if (!p.dynamic_groups()) {
      p.visit_weights([&](weight_view const& w, index_t first_row) {
        find(given_weights{w.data, order_.diagonal.data(), p.columns}, w.out, first_row, 0, p.format.groups);
      });
    }
    sweep();
    launch(
        store_codes<>,
        {.grid = grid_size(p.rows), .block = 256, .shared_memory = at(p.columns), .stream = p.ctx.stream()},
        codes_by_position_.data(), p.keeps_order() ? nullptr : order_.columns_there.data(),
        result.codes.data(), p.columns, p.ld);
  }

  /// W - Q, [rows, ld], reversed.
  float const* differences() const { return work_.data(); }
  /// Sums of ((w_now - q) R_jj)^2 of each row.
  device_array<double> const& losses() const { return losses_; }
  /// [rows, ld] of memory that the sweep does not need any more.
  float* scratch() { return feedback_.data(); }

 private:
  template <class Weights>
  void find(Weights const& weights, index_t rows, index_t first_row, index_t first_group, index_t count) {
    problem const& p = problem_;
    grid_store grids = grids_;
    grids.scales += first_row * grids.groups;
    if (grids.zeros != nullptr) grids.zeros += first_row * grids.groups;
    auto const kernel =
        p.format.levels.is_half_step() ? find_grids<true, Weights> : find_grids<false, Weights>;
    launch(kernel, {.grid = grid_size((rows * count + 7) / 8), .block = 256, .stream = p.ctx.stream()},
           weights, grids, p.format.levels, p.format.grids, rows, p.columns, p.format.group_columns,
           first_group, count);
  }

  /// The end of a run of about `size` positions: with dynamic groups, where a group ends if one does.
  index_t run_end(index_t first, index_t size, index_t limit) const {
    index_t const end = std::min(first + size, limit);
    if (!problem_.dynamic_groups() || end == limit) return end;
    index_t const boundary = end / problem_.format.group_columns * problem_.format.group_columns;
    return boundary > first ? boundary : end;
  }

  /// An outer block: some blocks between two products over all later columns; it begins and ends with a group.
  index_t outer_block_end(index_t first) const {
    index_t const size = 4 * block_columns;
    return run_end(first, problem_.dynamic_groups() ? std::max(size, problem_.format.group_columns) : size,
                   problem_.columns);
  }

  /// Which stream a product runs in: the sweep's, which waits for it, or the one beside.
  enum class stream_choice { main, beside };

  /// f of positions q0..q1 += what the quantized positions p0..p1 pass on to them; or =, where it is the
  /// first. Memory is reversed, and cuBLAS sees it transposed.
  void pass_on(stream_choice stream, index_t p0, index_t p1, index_t q0, index_t q1) {
    if (q0 == q1) return;
    problem const& p = problem_;
    bool const beside = stream == stream_choice::beside;
    index_t const a = p.ld - p1;
    // With what pads a row, so that everything begins at 8 floats: the factor is zero there, and f not used.
    index_t const b = q1 == p.columns ? 0 : p.ld - q1;
    index_t const count = p.ld - q0 - b;
    if (by_warpgroups_ && (p1 - p0) % update_step == 0) {
      static_assert(block_columns % 8 == 0);  // as groups are, too
      launch_update_sm90({work_.data() + a, factor_ + b * p.ld + a, feedback_.data() + b, p.ld, p.rows,
                          static_cast<int>(count), static_cast<int>(p1 - p0), p0 != 0},
                         beside ? multiprocessors_beside() : p.gpu.multiprocessors,
                         beside ? p.ctx.side_stream() : p.ctx.stream());
      return;
    }
    float const one = 1.0F;
    float const keep = p0 == 0 ? 0.0F : 1.0F;
    check(
        cublasGemmEx_64(beside ? p.ctx.side_blas() : p.ctx.blas(), CUBLAS_OP_T, CUBLAS_OP_N, count, p.rows,
                        p1 - p0, &one, factor_ + b * p.ld + a, CUDA_R_32F, p.ld, work_.data() + a, CUDA_R_32F,
                        p.ld, &keep, feedback_.data() + b, CUDA_R_32F, p.ld, compute_, CUBLAS_GEMM_DEFAULT),
        "updating later columns");
  }

  /// What the sweep, of two blocks to a multiprocessor, leaves free where that is half of the device or more.
  int multiprocessors_beside() const {
    index_t const swept = (sweep_blocks() + 1) / 2;
    int const all = problem_.gpu.multiprocessors;
    return all - static_cast<int>(2 * swept <= all ? swept : 0);
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

  index_t sweep_blocks() const { return (problem_.rows + block_rows - 1) / block_rows; }

  void sweep_one(index_t first, index_t end) {
    problem const& p = problem_;
    index_t const group_columns = p.format.group_columns;
    if (p.dynamic_groups() && !p.small_groups() && first % group_columns == 0) find_large_group(first);
    sweep_arguments const arguments{work_.data(),
                                    first == 0 ? nullptr : feedback_.data(),
                                    factor_,
                                    p.ld,
                                    order_.groups_there.data(),
                                    grids_,
                                    codes_by_position_.data(),
                                    losses_.data(),
                                    p.rows,
                                    static_cast<int>(std::min<index_t>(group_columns, block_columns)),
                                    p.format.levels,
                                    p.format.grids};
    launch(p.format.levels.is_half_step() ? sweep_block<true> : sweep_block<false>,
           {.grid = grid_size(sweep_blocks()),
            .block = block_rows * row_lanes,
            .shared_memory = sweep_shared_memory,
            .stream = p.ctx.stream()},
           arguments, first, static_cast<int>(end - first), p.small_groups());
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
         first / p.format.group_columns, 1);
  }

  problem const& problem_;
  column_order const& order_;
  device_array<faults> const& found_;
  cublasComputeType_t compute_;
  bool by_warpgroups_;
  float const* factor_ = nullptr;
  device_array<float> work_;
  device_array<float> feedback_;
  device_array<std::uint8_t> codes_by_position_;
  device_array<double> losses_;
  grid_store grids_{};
};

}  // namespace gptq::cuda::detail
