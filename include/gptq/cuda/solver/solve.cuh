// GPTQ of several layers as a recipe says: orders, factors, sweeps, coordinate descent, report. The twin of
// solver/layer_solver.hpp.
#pragma once

#include <cuda_runtime.h>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/arrange.cuh>
#include <gptq/cuda/solver/column_order.cuh>
#include <gptq/cuda/solver/descender.cuh>
#include <gptq/cuda/solver/event.cuh>
#include <gptq/cuda/solver/factor.cuh>
#include <gptq/cuda/solver/find_faults.cuh>
#include <gptq/cuda/solver/hessian_diagonal.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/cuda/solver/reports.cuh>
#include <gptq/cuda/solver/sweeper.cuh>

namespace gptq::cuda::detail {

class layers_solver {
 public:
  /// All of these have to outlive it; held_out may be null.
  layers_solver(problem const& p, gptq::solver::recipe const& steps, hessian const* held_out)
      : problem_(p), steps_(steps), held_out_(held_out), diagonal_(p), found_(p.ctx, 1) {
    found_.fill_bytes(0xff);
  }

  solution solve() {
    problem const& p = problem_;
    cudaStream_t const stream = p.ctx.stream();
    event start(cudaEventDefault), solved(cudaEventDefault), done(cudaEventDefault);
    start.record(stream);
    solution result;
    result.codes = device_array<std::uint8_t>(p.ctx, p.rows * p.columns);
    if (steps_.search && !diagonal_.all_dead) {
      search(result, solved);
    } else {
      sweep_once(result, solved);
    }
    if (held_out_ != nullptr) measure_held_out(p, *held_out_, result);
    done.record(stream);
    p.ctx.synchronize();
    double factorizing = 0.0;
    for (auto const& [begun, ended] : factorizations_) factorizing += ended.seconds_since(begun);
    for (quantize_report& r : result.reports) {
      r.seconds_factorization = factorizing;
      r.seconds_columns = solved.seconds_since(start) - factorizing;
      r.seconds = done.seconds_since(start);
    }
    return result;
  }

 private:
  struct factor_times {
    event begun{cudaEventDefault}, ended{cudaEventDefault};
  };

  std::unique_ptr<factorization> factorize(column_order const& order) {
    factor_times& times = factorizations_.emplace_back();
    times.begun.record(problem_.ctx.stream());
    auto factor = std::make_unique<factorization>(problem_, diagonal_, order, found_);
    times.ended.record(problem_.ctx.stream());
    return factor;
  }

  /// In the order that the options ask for.
  void sweep_once(solution& result, event& solved) {
    problem const& p = problem_;
    auto const order = column_order::chosen(p, diagonal_);
    sweeper sweep(p, diagonal_, order, found_);
    auto const factor = factorize(order);
    sweep.prepare(factor->data());
    sweep.run();
    launch(
        store_codes<>,
        {.grid = grid_size(p.rows), .block = 256, .shared_memory = at(p.columns), .stream = p.ctx.stream()},
        sweep.codes_by_position(), order.stored ? nullptr : order.columns_there.data(), result.codes.data(),
        p.columns, p.ld);
    solved.record(p.ctx.stream());
    check_faults(p, found_);
    if (order.stored) result.order = order.columns;
    result.reports =
        make_reports(p, diagonal_,
                     {sweep.losses(), sweep.differences(), order.columns_there.data(), factor->damping(),
                      factor->damping_raised(), factor->added_diagonal(), sweep.scratch()});
    result.scales = std::move(sweep.scales());
    result.zeros = std::move(sweep.zeros());
  }

  /// With grids that are searched for, in one or two orders, more sweeps and coordinate descent.
  void search(solution& result, event& solved) {
    problem const& p = problem_;
    result.scales = device_array<float>(p.ctx, p.rows * p.format.groups);
    result.zeros =
        device_array<std::uint8_t>(p.ctx, p.format.levels.has_zero_point ? result.scales.size() : 0);
    device_array<float> differences(p.ctx, p.rows * p.ld);
    differences.fill_bytes(0);  // what pads a row
    device_array<double> losses(p.ctx, p.rows);
    kept_ = {differences.data(), result.codes.data(), result.scales.data(), result.zeros.data(),
             losses.data()};
    double damping = -1.0;  // of what is kept: losses under different damping do not compare
    if (steps_.group_aware && p.format.groups > 1) {
      auto const order = column_order::group_aware(p, diagonal_);
      sweeper sweep(p, diagonal_, order, found_);
      auto const factor = factorize(order);
      sweep.prepare(factor->data());
      sweep.run();
      keep(sweep, order, true);
      damping = factor->damping();
    }
    auto const order = column_order::by_diagonal(p, diagonal_);
    std::unique_ptr<factorization> factor;
    {
      sweeper sweep(p, diagonal_, order, found_);
      factor = factorize(order);
      sweep.prepare(factor->data());
      sweep.run();
      keep(sweep, order, factor->damping() != damping);
    }
    if (steps_.rounds == 0) factor->release();
    device_array<float> scratch(p.ctx, p.rows * p.ld);
    if (steps_.rounds > 0 || steps_.passes > 0) {
      descender descent(p, diagonal_, kept_, scratch.data(), factor->added_diagonal(), found_);
      for (int round = 1; round <= steps_.rounds; ++round) {
        descent.pass(false, 0, p.rows);
        sweeper sweep(p, diagonal_, order, found_);
        sweep.prepare(factor->data());
        sweep.run_with_grids(result.scales.data(), result.zeros.data(),
                             round == steps_.rounds ? steps_.beam : 1);
        keep(sweep, order, false);
      }
      if (steps_.passes > 0) descend(descent, losses);
    }
    solved.record(p.ctx.stream());
    check_faults(p, found_);
    result.reports = make_reports(p, diagonal_,
                                  {losses, differences.data(), nullptr, factor->damping(),
                                   factor->damping_raised(), factor->added_diagonal(), scratch.data()});
  }

  /// Keeps the rows of a sweep: all, or those that lose less than what is kept.
  void keep(sweeper& sweep, column_order const& order, bool all) {
    problem const& p = problem_;
    launch(keep_rows<>, {.grid = grid_size(p.rows), .block = 256, .stream = p.ctx.stream()},
           sweep_result{sweep.differences(), sweep.codes_by_position(), order.columns_there.data(),
                        sweep.scales().data(), sweep.zeros().data(), sweep.losses().data()},
           kept_, p.columns, p.ld, p.format.groups, all);
  }

  /// Passes over the rows of each layer, until one gains too little there.
  void descend(descender& descent, device_array<double> const& losses) {
    problem const& p = problem_;
    int const passes = steps_.passes;
    std::vector<double> rows(at(p.rows));
    auto const layer_losses = [&] {
      losses.download(rows.data());
      std::vector<double> sums;
      p.visit_weights(
          [&](weight_view const& w, index_t first) { sums.push_back(sum_of_rows(rows, first, w.out)); });
      return sums;
    };
    std::vector<bool> active(p.weights.size(), true);
    std::vector<double> before = layer_losses();
    for (int pass = 0; pass < passes; ++pass) {
      for (std::size_t first = 0; first < active.size();) {  // layers beside each other at once
        std::size_t end = first;
        while (end < active.size() && active[end]) ++end;
        if (end > first) descent.pass(true, p.first_rows[first], p.first_rows[end] - p.first_rows[first]);
        first = end + 1;
      }
      if (pass + 1 == passes) break;
      std::vector<double> const after = layer_losses();
      for (std::size_t layer = 0; layer < active.size(); ++layer) {
        double const gain = before[layer] > 0.0 ? 1.0 - after[layer] / before[layer] : 0.0;
        if (gain < gptq::solver::least_gain_of_a_pass) active[layer] = false;
      }
      before = after;
    }
  }

  problem const& problem_;
  gptq::solver::recipe steps_;
  hessian const* held_out_;
  hessian_diagonal diagonal_;
  device_array<faults> found_;
  kept_result kept_{};
  std::list<factor_times> factorizations_;
};

}  // namespace gptq::cuda::detail
