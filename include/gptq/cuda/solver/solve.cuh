// From a problem to its solution: order, factor, sweep, report.
#pragma once

#include <algorithm>
#include <cmath>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/column_order.cuh>
#include <gptq/cuda/solver/event.cuh>
#include <gptq/cuda/solver/factor.cuh>
#include <gptq/cuda/solver/find_faults.cuh>
#include <gptq/cuda/solver/measure.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/cuda/solver/sweeper.cuh>

namespace gptq::cuda::detail {

/// term(row, column) summed over the columns.
template <class Term>
std::vector<double> row_totals(problem const& p, Term const& term, index_t rows) {
  device_array<double> sums(p.ctx, rows);
  launch(row_sums<256, Term>, {.grid = grid_size(rows), .block = 256, .stream = p.ctx.stream()}, term,
         sums.data(), p.columns);
  std::vector<double> host(at(rows));
  sums.download(host.data());
  return host;
}

/// tr(W S W'); overwrites scratch[rows, ld].
inline double output_energy(problem const& p, weight_view const& w, float* scratch) {
  float const one = 1.0F;
  float const none = 0.0F;
  check(cublasGemmEx_64(p.ctx.blas(), CUBLAS_OP_N, CUBLAS_OP_N, p.columns, w.out, p.columns, &one, p.h.sum(),
                        CUDA_R_32F, p.columns, w.data, CUDA_R_32F, p.columns, &none, scratch, CUDA_R_32F,
                        p.ld, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "measuring a layer's output");
  auto const sums = row_totals(p, signal_term{w.data, scratch, p.columns, p.ld}, w.out);
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

/// Of each layer, but for the times.
inline std::vector<quantize_report> make_reports(problem const& p, column_order const& order,
                                                 factorization const& factor, sweeper& sweep) {
  if (order.all_dead) {  // whatever the codes, nothing is lost of outputs that are zero
    quantize_report report;
    report.dead_columns = order.dead_columns;
    report.loss = report.loss_per_token = 0.0;
    return std::vector<quantize_report>(p.weights.size(), report);
  }
  std::vector<double> losses(at(p.rows));
  sweep.losses().download(losses.data());
  std::vector<double> by_damping;
  if (p.options.measure_output_error) {
    by_damping =
        row_totals(p,
                   damping_term{sweep.differences(), order.diagonal.data(), order.columns_there.data(), p.ld,
                                factor.added_diagonal(), order.dead_diagonal},
                   p.rows);
  }
  auto const total = [](std::vector<double> const& values, index_t first, index_t count) {
    return std::accumulate(values.begin() + first, values.begin() + first + count, 0.0);
  };
  std::vector<quantize_report> reports;
  p.visit_weights([&](weight_view const& w, index_t first_row) {
    quantize_report& r = reports.emplace_back();
    double const loss = total(losses, first_row, w.out);
    r.loss = 0.5 * loss;
    if (!std::isfinite(r.loss)) {
      throw error("quantize: the column sweep overflowed; the Hessian is too ill-conditioned for damping " +
                  std::to_string(factor.damping()));
    }
    r.loss_per_token = r.loss * static_cast<double>(p.h.sequences()) / p.h.tokens();
    r.damping = factor.damping();
    r.damping_raised = factor.damping_raised();
    r.dead_columns = order.dead_columns;
    if (p.options.measure_output_error) {
      double const noise = std::max(0.0, loss - total(by_damping, first_row, w.out)) / p.h.scale();
      r.output_error = noise / output_energy(p, w, sweep.scratch());
      r.snr_db = -10.0 * std::log10(r.output_error);
    }
  });
  return reports;
}

/// Throws as cuda::quantize does.
inline solution solve(problem const& p) {
  event start(cudaEventDefault), factorized(cudaEventDefault), swept(cudaEventDefault),
      done(cudaEventDefault);
  solution result;
  cudaStream_t const stream = p.ctx.stream();
  start.record(stream);
  column_order const order(p);
  if (p.keeps_order() && !order.all_dead) result.order = order.columns;
  device_array<faults> found(p.ctx, 1);
  found.fill_bytes(0xff);
  sweeper sweep(p, order, found);
  factorization const factor(p, order, found);
  sweep.prepare(factor.data(), result);
  factorized.record(stream);
  sweep.run(result);
  swept.record(stream);
  check_faults(p, found);
  result.reports = make_reports(p, order, factor, sweep);
  done.record(stream);
  p.ctx.synchronize();
  for (quantize_report& r : result.reports) {
    r.seconds_factorization = factorized.seconds_since(start);
    r.seconds_columns = swept.seconds_since(factorized);
    r.seconds = done.seconds_since(start);
  }
  return result;
}

}  // namespace gptq::cuda::detail
