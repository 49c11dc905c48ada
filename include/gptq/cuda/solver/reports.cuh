// What quantizing has cost.
#pragma once

#include <algorithm>
#include <cmath>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <numeric>
#include <string>
#include <vector>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/cuda/solver/hessian_diagonal.cuh>
#include <gptq/cuda/solver/measure.cuh>
#include <gptq/cuda/solver/problem.cuh>

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

/// tr(W S W') for S of h; overwrites scratch[rows, ld].
inline double output_energy(problem const& p, hessian const& h, weight_view const& w, float* scratch) {
  float const one = 1.0F;
  float const none = 0.0F;
  check(cublasGemmEx_64(p.ctx.blas(), CUBLAS_OP_N, CUBLAS_OP_N, p.columns, w.out, p.columns, &one, h.sum(),
                        CUDA_R_32F, p.columns, w.data, CUDA_R_32F, p.columns, &none, scratch, CUDA_R_32F,
                        p.ld, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "measuring a layer's output");
  auto const sums = row_totals(p, signal_term{w.data, scratch, p.columns, p.ld}, w.out);
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

inline double sum_of_rows(std::vector<double> const& values, index_t first, index_t count) {
  return std::accumulate(values.begin() + first, values.begin() + first + count, 0.0);
}

/// What the solver has left behind, of all rows.
struct outcome {
  device_array<double> const& losses;  ///< d H d' of each row, with damping
  float const* differences;            ///< W - Q, [rows, ld]
  int const* order;                    ///< reversed, in this order; null: by columns
  double damping;
  int damping_raised;
  double added_diagonal;  ///< by damping
  float* scratch;         ///< [rows, ld] of memory
};

/// Of each layer, but for the times.
inline std::vector<quantize_report> make_reports(problem const& p, hessian_diagonal const& diagonal,
                                                 outcome const& found) {
  if (diagonal.all_dead) {  // whatever the codes, nothing is lost of outputs that are zero
    quantize_report report;
    report.dead_columns = diagonal.dead_columns;
    report.loss = report.loss_per_token = 0.0;
    return std::vector<quantize_report>(p.weights.size(), report);
  }
  std::vector<double> losses(at(p.rows));
  found.losses.download(losses.data());
  std::vector<double> by_damping;
  if (p.options.measure_output_error) {
    by_damping = row_totals(p,
                            damping_term{found.differences, diagonal.there.data(), found.order, p.ld,
                                         found.added_diagonal, diagonal.average},
                            p.rows);
  }
  std::vector<quantize_report> reports;
  p.visit_weights([&](weight_view const& w, index_t first_row) {
    quantize_report& r = reports.emplace_back();
    double const loss = sum_of_rows(losses, first_row, w.out);
    r.loss = 0.5 * loss;
    if (!std::isfinite(r.loss)) {
      throw error("quantize: the column sweep overflowed; the Hessian is too ill-conditioned for damping " +
                  std::to_string(found.damping));
    }
    r.loss_per_token = r.loss * static_cast<double>(p.h.sequences()) / p.h.tokens();
    r.damping = found.damping;
    r.damping_raised = found.damping_raised;
    r.dead_columns = diagonal.dead_columns;
    if (p.options.measure_output_error) {
      double const noise = std::max(0.0, loss - sum_of_rows(by_damping, first_row, w.out)) / p.h.scale();
      r.output_error = noise / output_energy(p, p.h, w, found.scratch);
      r.snr_db = -10.0 * std::log10(r.output_error);
    }
  });
  return reports;
}

/// Adds the errors on held-out tokens to the reports.
inline void measure_held_out(problem const& p, hessian const& held_out, solution& found) {
  device_array<std::int32_t> order(p.ctx, static_cast<index_t>(found.order.size()));
  if (order.size() > 0) order.upload(found.order.data());
  p.visit_weights([&, number = std::size_t{0}](weight_view const& w, index_t first_row) mutable {
    device_array<float> difference(p.ctx, w.out * p.columns), scratch(p.ctx, w.out * p.ld);
    index_t const first_group = first_row * p.format.groups;
    coded_weights const coded{found.codes.data() + first_row * p.columns,
                              found.scales.data() + first_group,
                              found.zeros.size() == 0 ? nullptr : found.zeros.data() + first_group,
                              order.size() == 0 ? nullptr : order.data(),
                              p.format.groups,
                              p.format.group_columns,
                              p.format.levels};
    launch(decoded_difference<>, {.grid = grid_size(w.out), .block = 256, .stream = p.ctx.stream()}, w.data,
           coded, difference.data(), p.columns);
    double const noise = output_energy(p, held_out, {difference.data(), w.out}, scratch.data());
    double const signal = output_energy(p, held_out, w, scratch.data());
    quantize_report& r = found.reports[number++];
    r.held_out_error = signal > 0.0 ? noise / signal : quantize_report::not_measured;
    r.held_out_snr_db = -10.0 * std::log10(r.held_out_error);
  });
}

}  // namespace gptq::cuda::detail
