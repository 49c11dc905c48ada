// Solving a layer as the options and held-out tokens say, and what it has cost.
#pragma once

#include <cstdint>
#include <span>

#include <gptq/solver/shared_factors.hpp>
#include <gptq/solver/solution.hpp>

#if !defined(GPTQ_SOLVER_ELSEWHERE)
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include <gptq/linalg/products.hpp>
#include <gptq/solver/layer_solver.hpp>
#include <gptq/solver/published.hpp>
#endif

namespace gptq::solver {

/// Checks everything, solves as the quality says and fills the report.
/// @param factors  of layers that share the Hessian, the format and the options; may be null
GPTQ_SOLVER_FUNCTION solution quantize_checked(matrix&& weight, hessian const& h, format_values const& format,
                                               quantize_options const& options, hessian const* held_out,
                                               shared_factors* factors = nullptr);

/// The same as a recipe says, with what has been checked.
GPTQ_SOLVER_FUNCTION solution solve(matrix&& weight, hessian const& h, format_values const& format,
                                    quantize_options const& options, recipe const& steps,
                                    hessian const* held_out, shared_factors* factors = nullptr);

/// Checks everything, rounds to nearest and reports the errors under the Hessians that are given.
GPTQ_SOLVER_FUNCTION solution round_checked(linalg::view weight, format_values const& format,
                                            quantize_options const& options, hessian const* h,
                                            hessian const* held_out);

/// The weights that codes stand for, [out, in] in original column order; quantized_layer says what these are.
GPTQ_SOLVER_FUNCTION matrix decode(std::span<std::uint8_t const> codes, std::span<float const> scales,
                                   std::span<std::uint8_t const> zeros, std::span<std::int32_t const> order,
                                   code_levels const& levels, index_t out, index_t in, index_t group_columns);

/// tr(D S D') / tr(W S W') for D = W - Q; throws gptq::error when shapes do not agree.
GPTQ_SOLVER_FUNCTION double relative_output_error(linalg::view weight, linalg::view approximation,
                                                  hessian const& h, int threads);

#if !defined(GPTQ_SOLVER_ELSEWHERE)

/// tr(W S W') on tokens, where there are some.
inline double signal(linalg::view weight, hessian const* h, int threads) {
  return h == nullptr ? quantize_report::not_measured : linalg::quadratic_form(weight, h->sum(), threads);
}

/// Solves and completes the report.
template <class Solver>
solution run_and_report(Solver& solver, double calibration_signal, hessian const& h,
                        quantize_options const& options, hessian const* held_out, double held_out_signal) {
  solution result = solver.solve();
  quantize_report& report = result.report;
  if (!std::isfinite(report.loss)) {
    throw error("quantize: the column sweep overflowed; the Hessian is too ill-conditioned for damping " +
                std::to_string(report.damping));
  }
  report.loss_per_token = report.loss * static_cast<double>(h.sequences()) / h.tokens();
  if (options.measure_output_error) report.output_error = relative_error(solver.noise(), calibration_signal);
  if (held_out != nullptr) {
    report.held_out_error = relative_error(
        linalg::quadratic_form(solver.difference(), held_out->sum(), options.threads), held_out_signal);
  }
  report.snr_db = decibels(report.output_error);
  report.held_out_snr_db = decibels(report.held_out_error);
  return result;
}

/// @param held_out_signal  signal(weight, held_out)
inline solution solve_once(matrix&& weight, hessian const& h, format_values const& format,
                           quantize_options const& options, recipe const& steps, hessian const* held_out,
                           double held_out_signal, shared_factors* factors) {
  double const calibration_signal =
      signal(weight, options.measure_output_error ? &h : nullptr, options.threads);
  if (options.quality == quality::reference) {
    published_solver solver(std::move(weight), h, format, options);
    return run_and_report(solver, calibration_signal, h, options, held_out, held_out_signal);
  }
  layer_solver solver(std::move(weight), h, format, options, steps, factors);
  return run_and_report(solver, calibration_signal, h, options, held_out, held_out_signal);
}

/// The damping that is best on held-out tokens: the given one, 10 or 100 times as much, and at most 1.
inline double choose_damping(matrix const& weight, hessian const& h, format_values const& format,
                             quantize_options const& options, recipe const& steps, hessian const& held_out,
                             double held_out_signal, shared_factors* factors) {
  double best = options.damping;
  recipe const sketch{.search = steps.search, .passes = std::min(steps.passes, 1)};
  double least = std::numeric_limits<double>::infinity();
  for (double const times : {1.0, 10.0, 100.0}) {
    quantize_options candidate = options;
    candidate.damping = std::min(1.0, options.damping * times);
    candidate.measure_output_error = false;
    if (times > 1.0 && !(candidate.damping > best)) break;
    double const error =
        solve_once(matrix(weight), h, format, candidate, sketch, &held_out, held_out_signal, factors)
            .report.held_out_error;
    if (!(error < least)) break;
    least = error;
    best = candidate.damping;
  }
  return best;
}

/// What quality plain makes of the layer with the published options: the default ones, but for the order of
/// columns where that must not be stored, or the best ones, with the mse search.
inline solution solve_published_options(matrix&& weight, hessian const& h, format_values format,
                                        quantize_options options, bool best_ones, hessian const& held_out,
                                        double held_out_signal, shared_factors* factors) {
  format.grids.mse = best_ones;
  options.static_groups = best_ones || options.static_groups || !options.act_order;
  options.act_order = true;
  return solve_once(std::move(weight), h, format, options, {}, &held_out, held_out_signal, factors);
}

/// Solves and lets held-out tokens decide what the recipe leaves to them.
inline solution solve_chosen(matrix const& weight, hessian const& h, format_values const& format,
                             quantize_options const& options, recipe const& steps, hessian const& held_out,
                             shared_factors* factors) {
  double const held_out_signal = signal(weight, &held_out, options.threads);
  quantize_options chosen = options;
  if (steps.choose_damping) {
    chosen.damping = choose_damping(weight, h, format, options, steps, held_out, held_out_signal, factors);
  }
  solution best = solve_once(matrix(weight), h, format, chosen, steps, &held_out, held_out_signal, factors);
  for (int guard = 0; guard < steps.guards; ++guard) {
    quantize_options unmeasured = options;
    unmeasured.measure_output_error = false;
    auto const with = [&](quantize_options const& with_options) {
      return solve_published_options(matrix(weight), h, format, with_options, guard == 1, held_out,
                                     held_out_signal, factors);
    };
    solution plain = with(unmeasured);
    if (!(plain.report.held_out_error < best.report.held_out_error)) continue;
    best = options.measure_output_error ? with(options) : std::move(plain);
    best.report.fell_back = true;
  }
  return best;
}

inline solution round_all(linalg::view weight, format_values const& format, quantize_options const& options,
                          hessian const* h, hessian const* held_out);

inline bool all_inputs_dead(hessian const& h) { return damped_hessian(h).live_columns() == 0; }

GPTQ_SOLVER_FUNCTION solution solve(matrix&& weight, hessian const& h, format_values const& given,
                                    quantize_options const& options, recipe const& steps,
                                    hessian const* held_out, shared_factors* factors) {
  stopwatch const total;
  format_values const format = with_matrix_scale(given, weight);
  if (all_inputs_dead(h)) {
    solution result = round_all(weight, format, options, &h, held_out);
    result.report.dead_columns = weight.cols();
    return result;
  }
  if (held_out == nullptr || !(steps.choose_damping || steps.guards > 0)) {
    double const held_out_signal = signal(weight, held_out, options.threads);
    solution result =
        solve_once(std::move(weight), h, format, options, steps, held_out, held_out_signal, factors);
    result.report.seconds = total.seconds();
    return result;
  }
  solution result = solve_chosen(weight, h, format, options, steps, *held_out, factors);
  result.report.seconds = total.seconds();
  result.report.seconds_columns = result.report.seconds - result.report.seconds_factorization;
  return result;
}

inline void check_all(linalg::view weight, format_values const& format, quantize_options const& options,
                      hessian const* h, hessian const* held_out) {
  check_options(options, format.levels);
  check_weight(weight, weight.columns);
  if (h != nullptr) check_hessian(*h, weight.columns, "hessian");
  if (held_out != nullptr) check_hessian(*held_out, weight.columns, "held-out hessian");
}

GPTQ_SOLVER_FUNCTION solution quantize_checked(matrix&& weight, hessian const& h, format_values const& format,
                                               quantize_options const& options, hessian const* held_out,
                                               shared_factors* factors) {
  check_all(weight, format, options, &h, held_out);
  return solve(std::move(weight), h, format, options, recipe_for(options.quality), held_out, factors);
}

GPTQ_SOLVER_FUNCTION solution round_checked(linalg::view weight, format_values const& format,
                                            quantize_options const& options, hessian const* h,
                                            hessian const* held_out) {
  check_all(weight, format, options, h, held_out);
  return round_all(weight, with_matrix_scale(format, weight), options, h, held_out);
}

GPTQ_SOLVER_FUNCTION matrix decode(std::span<std::uint8_t const> codes, std::span<float const> scales,
                                   std::span<std::uint8_t const> zeros, std::span<std::int32_t const> order,
                                   code_levels const& levels, index_t out, index_t in,
                                   index_t group_columns) {
  matrix weight(out, in);
  index_t const groups = in == 0 ? 0 : (in + group_columns - 1) / group_columns;
  for (index_t row = 0; row < out; ++row) {
    for (index_t p = 0; p < in; ++p) {
      index_t const column = order.empty() ? p : index_t{order[static_cast<std::size_t>(p)]};
      auto const at = static_cast<std::size_t>(row * groups + p / group_columns);
      weight.data()[row * in + column] = levels.decode(codes[static_cast<std::size_t>(row * in + p)],
                                                       {scales[at], zeros.empty() ? 0 : int{zeros[at]}});
    }
  }
  return weight;
}

/// Rounds to nearest and reports the errors under the Hessians that are given.
inline solution round_all(linalg::view weight, format_values const& format, quantize_options const& options,
                          hessian const* h, hessian const* held_out) {
  stopwatch const total;
  solution result(weight.rows, weight.columns, format);
  quantize_report& report = result.report;
  find_all_grids(weight, format, options.threads, result);
  matrix difference(weight.rows, weight.columns);
  linalg::for_strips(weight.rows, options.threads, [&](index_t first_row, index_t rows) {
    for (index_t row = first_row; row < first_row + rows; ++row) {
      std::uint8_t* const codes = result.codes.data() + row * weight.columns;
      float* const differences = difference.data() + row * weight.columns;
      for (index_t column = 0; column < weight.columns; ++column) {
        grid const g = result.grid_at(row, column / format.group_columns);
        int const code = format.levels.encode(weight(row, column), g);
        codes[column] = static_cast<std::uint8_t>(code);
        differences[column] = weight(row, column) - format.levels.decode(code, g);
      }
    }
  });
  if (h != nullptr) {
    double const noise = linalg::quadratic_form(difference, h->sum(), options.threads);
    report.loss = 0.5 * h->scale() * noise;
    report.loss_per_token = noise / h->tokens();
    report.output_error = relative_error(noise, signal(weight, h, options.threads));
  }
  if (held_out != nullptr) {
    double const noise = linalg::quadratic_form(difference, held_out->sum(), options.threads);
    report.held_out_error = relative_error(noise, signal(weight, held_out, options.threads));
  }
  report.snr_db = decibels(report.output_error);
  report.held_out_snr_db = decibels(report.held_out_error);
  report.seconds = total.seconds();
  return result;
}

GPTQ_SOLVER_FUNCTION double relative_output_error(linalg::view weight, linalg::view approximation,
                                                  hessian const& h, int threads) {
  if (weight.rows != approximation.rows || weight.columns != approximation.columns ||
      weight.columns != h.in_features()) {
    throw error("output_error: weight " + std::to_string(weight.rows) + " x " +
                std::to_string(weight.columns) + ", approximation " + std::to_string(approximation.rows) +
                " x " + std::to_string(approximation.columns) + " and hessian of " +
                std::to_string(h.in_features()) + " inputs do not agree");
  }
  if (!(h.tokens() > 0.0)) throw error("output_error: the hessian has seen no tokens");
  matrix difference(weight.rows, weight.columns);
  for (index_t row = 0; row < weight.rows; ++row) {
    for (index_t i = 0; i < weight.columns; ++i) difference(row, i) = weight(row, i) - approximation(row, i);
  }
  return relative_error(linalg::quadratic_form(difference, h.sum(), threads), signal(weight, &h, threads));
}

#endif

}  // namespace gptq::solver
