// GPTQ and round-to-nearest quantization of one linear layer.
//
//   auto layer = gptq::quantize<q4>(weight, h, {.act_order = true});   // weight[out, in], a gptq::hessian
//   auto packed = gptq::pack(layer);
//
// GPTQ: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
// Pre-trained Transformers", 2022. How it is computed: solver/solver.hpp.
//
// The solver takes half a minute to compile, but may be compiled once for several translation units:
// solver/solver_function.hpp.
#pragma once

#include <algorithm>
#include <concepts>
#include <limits>
#include <string>
#include <utility>

#include <Eigen/Core>

#include <gptq/error.hpp>
#include <gptq/format.hpp>
#include <gptq/hessian.hpp>
#include <gptq/layer.hpp>
#include <gptq/linalg/products.hpp>
#include <gptq/options.hpp>
#include <gptq/solver/solution.hpp>
#include <gptq/solver/solver_function.hpp>
#if !defined(GPTQ_SOLVER_ELSEWHERE)
#include <gptq/solver/published.hpp>
#include <gptq/solver/solver.hpp>
#endif

namespace gptq {

/// Quantizes weight[out, in] by GPTQ. Memory besides the arguments: a copy of the weight (none if it is moved
/// in: it is overwritten), a K x K float matrix, N x 4 block_size floats (N x group size where dynamic groups
/// are larger than that), and the result. Quality fast takes a copy of the weight and of the codes more, best
/// two of the weight, and both another square matrix as wide as a group, where that is more than a block.
/// @param held_out  Hessian of other tokens, to report the error on them; may be null. Quality fast and best
///   give back what quality plain makes of the layer with act-order, best also with the mse search and static
///   groups, if that has the smaller error on them; and best chooses the damping by it, out of the given one,
///   10 and 100 times as much. The error they report is then of tokens that they have chosen by
/// @throws gptq::error when shapes do not agree, a weight or Hessian entry is not finite (naming it), an
///   option is out of range, a scale does not fit its type, or H is not positive definite even with damping 1
template <storage_format Format>
quantized_layer<Format> quantize(Eigen::Ref<matrix const> const& weight, hessian const& h,
                                 quantize_options const& options = {}, hessian const* held_out = nullptr);
/// The same for a `matrix` that is moved in, and for nothing that would first have to become one.
template <storage_format Format, std::same_as<matrix> Weight>
quantized_layer<Format> quantize(Weight&& weight, hessian const& h, quantize_options const& options = {},
                                 hessian const* held_out = nullptr);

/// Quantizes every weight to its nearest level; of the options, only those of the grid matter. The errors
/// under `h`, and under `held_out`, are reported where they are given. Throws as quantize().
template <storage_format Format>
quantized_layer<Format> round_to_nearest(Eigen::Ref<matrix const> const& weight,
                                         quantize_options const& options = {}, hessian const* h = nullptr,
                                         hessian const* held_out = nullptr);

/// The weights that a layer's codes stand for, [out, in] in original column order.
template <storage_format Format>
matrix dequantize(quantized_layer<Format> const& layer);

/// tr(D S D') / tr(W S W') for D = weight - approximation: the relative squared error of the outputs on the
/// tokens of `h`.
double output_error(Eigen::Ref<matrix const> const& weight, Eigen::Ref<matrix const> const& approximation,
                    hessian const& h, int threads = 0);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// Solves as `how` says and adds up the time.
GPTQ_SOLVER_FUNCTION solution solve(matrix&& weight, hessian const& h, format_values const& format,
                                    quantize_options const& options, recipe const& how,
                                    hessian const* held_out);

/// Rounds to nearest and reports the errors under the Hessians that are given.
GPTQ_SOLVER_FUNCTION solution round_all(Eigen::Ref<matrix const> const& weight, format_values const& format,
                                        quantize_options const& options, hessian const* h,
                                        hessian const* held_out);

#if !defined(GPTQ_SOLVER_ELSEWHERE)

/// tr(W S W') on held-out tokens, where there are some.
inline double signal_of(matrix const& weight, hessian const* held_out, int threads) {
  return held_out == nullptr ? quantize_report::not_measured
                             : quadratic_form(weight, held_out->sum(), threads);
}

/// Solves and completes the report. `held_out_signal` is signal_of(weight, held_out).
inline solution solve_once(matrix&& weight, hessian const& h, format_values const& format,
                           quantize_options const& options, recipe const& how, hessian const* held_out,
                           double held_out_signal) {
  double const signal = signal_of(weight, options.measure_output_error ? &h : nullptr, options.threads);
  auto const run = [&](auto&& solver) {
    solution result = solver.solve();
    quantize_report& report = result.report;
    if (!std::isfinite(report.loss)) {
      throw error("quantize: the column sweep overflowed; the Hessian is too ill-conditioned for damping " +
                  std::to_string(report.damping));
    }
    report.loss_per_token = report.loss * static_cast<double>(h.sequences()) / h.tokens();
    if (options.measure_output_error) report.output_error = solver.noise() / signal;
    if (held_out != nullptr) {
      report.held_out_error =
          quadratic_form(solver.difference(), held_out->sum(), options.threads) / held_out_signal;
    }
    report.snr_db = decibels(report.output_error);
    report.held_out_snr_db = decibels(report.held_out_error);
    return result;
  };
  return options.quality == quality::reference ? run(published_solver(std::move(weight), h, format, options))
                                               : run(solver(std::move(weight), h, format, options, how));
}

/// The damping that is best on held-out tokens: the given one, 10 or 100 times as much.
inline double chosen_damping(matrix const& weight, hessian const& h, format_values const& format,
                             quantize_options const& options, recipe const& how, hessian const& held_out,
                             double held_out_signal) {
  double best = options.damping;
  recipe const sketch{.search = how.search, .passes = std::min(how.passes, 1)};
  double least = std::numeric_limits<double>::infinity();
  for (double const times : {1.0, 10.0, 100.0}) {
    quantize_options candidate = options;
    candidate.damping = std::min(1.0, options.damping * times);
    candidate.measure_output_error = false;
    if (times > 1.0 && !(candidate.damping > best)) break;
    double const error = solve_once(matrix(weight), h, format, candidate, sketch, &held_out, held_out_signal)
                             .report.held_out_error;
    if (!(error < least)) break;
    least = error;
    best = candidate.damping;
  }
  return best;
}

/// Solves and lets held-out tokens decide what `how` leaves to them.
inline solution solve_chosen(matrix&& weight, hessian const& h, format_values const& format,
                             quantize_options options, recipe const& how, hessian const& held_out) {
  double const signal = signal_of(weight, &held_out, options.threads);
  auto const chosen = [&] {
    quantize_options its = options;
    if (how.choose_damping) {
      its.damping = chosen_damping(weight, h, format, options, how, held_out, signal);
    }
    return its;
  };
  solution best = solve_once(matrix(weight), h, format, chosen(), how, &held_out, signal);
  // The published default, but for the order of its columns where that must not be stored, and the published
  // best.
  for (int guard = 0; guard < how.guards; ++guard) {
    bool const searched = guard == 1;
    format_values plain = format;
    plain.grids.mse = searched;
    auto const baseline = [&](bool measure) {
      quantize_options its = options;
      its.static_groups = searched || options.static_groups || !options.act_order;
      its.act_order = true;
      its.measure_output_error = measure;
      return solve_once(matrix(weight), h, plain, its, {}, &held_out, signal);
    };
    solution rough = baseline(false);
    if (!(rough.report.held_out_error < best.report.held_out_error)) continue;
    best = options.measure_output_error ? baseline(true) : std::move(rough);
    best.report.fell_back = true;
  }
  return best;
}

GPTQ_SOLVER_FUNCTION solution solve(matrix&& weight, hessian const& h, format_values const& format,
                                    quantize_options const& options, recipe const& how,
                                    hessian const* held_out) {
  stopwatch const total;
  if (held_out == nullptr || !(how.choose_damping || how.guards > 0)) {
    double const signal = signal_of(weight, held_out, options.threads);
    solution result = solve_once(std::move(weight), h, format, options, how, held_out, signal);
    result.report.seconds = total.seconds();
    return result;
  }
  solution result = solve_chosen(std::move(weight), h, format, options, how, *held_out);
  result.report.seconds = total.seconds();
  result.report.seconds_columns = result.report.seconds - result.report.seconds_factorization;
  return result;
}

GPTQ_SOLVER_FUNCTION solution round_all(Eigen::Ref<matrix const> const& weight, format_values const& format,
                                        quantize_options const& options, hessian const* h,
                                        hessian const* held_out) {
  stopwatch const total;
  solution result(weight.rows(), weight.cols(), format);
  quantize_report& report = result.report;
  matrix difference = weight;
  find_all_grids(difference, format, options.threads, result);
  for_strips(weight.rows(), options.threads, [&](index_t first_row, index_t rows) {
    for (index_t row = first_row; row < first_row + rows; ++row) {
      for (index_t column = 0; column < weight.cols(); ++column) {
        grid const g = result.grid_at(row, column / format.group_columns);
        int const code = format.levels.encode(weight(row, column), g);
        result.codes[static_cast<std::size_t>(row * weight.cols() + column)] =
            static_cast<std::uint8_t>(code);
        difference(row, column) -= format.levels.decode(code, g);
      }
    }
  });
  auto const relative_error = [&](hessian const& of, double noise) {
    return noise / quadratic_form(weight, of.sum(), options.threads);
  };
  if (h != nullptr) {
    double const noise = quadratic_form(difference, h->sum(), options.threads);
    report.loss = 0.5 * h->scale() * noise;
    report.loss_per_token = noise / h->tokens();
    report.output_error = relative_error(*h, noise);
  }
  if (held_out != nullptr) {
    report.held_out_error =
        relative_error(*held_out, quadratic_form(difference, held_out->sum(), options.threads));
  }
  report.snr_db = decibels(report.output_error);
  report.held_out_snr_db = decibels(report.held_out_error);
  report.seconds = total.seconds();
  return result;
}

#endif  // the solver

}  // namespace detail

template <storage_format Format, std::same_as<matrix> Weight>
quantized_layer<Format> quantize(Weight&& weight, hessian const& h, quantize_options const& options,
                                 hessian const* held_out) {
  index_t const out = weight.rows();
  index_t const in = weight.cols();
  detail::check_options(options, Format::levels);
  detail::check_weight(weight);
  detail::check_hessian(h, in, "hessian");
  if (held_out != nullptr) detail::check_hessian(*held_out, in, "held-out hessian");
  detail::format_values const format = detail::values_of<Format>(in, options);
  return detail::layer_of<Format>(detail::solve(std::forward<Weight>(weight), h, format, options,
                                                detail::recipe_of(options.quality), held_out),
                                  out, in);
}

template <storage_format Format>
quantized_layer<Format> quantize(Eigen::Ref<matrix const> const& weight, hessian const& h,
                                 quantize_options const& options, hessian const* held_out) {
  return quantize<Format>(matrix(weight), h, options, held_out);
}

template <storage_format Format>
quantized_layer<Format> round_to_nearest(Eigen::Ref<matrix const> const& weight,
                                         quantize_options const& options, hessian const* h,
                                         hessian const* held_out) {
  detail::check_options(options, Format::levels);
  detail::check_weight(weight);
  if (h != nullptr) detail::check_hessian(*h, weight.cols(), "hessian");
  if (held_out != nullptr) detail::check_hessian(*held_out, weight.cols(), "held-out hessian");
  detail::format_values const format = detail::values_of<Format>(weight.cols(), options);
  return detail::layer_of<Format>(detail::round_all(weight, format, options, h, held_out), weight.rows(),
                                  weight.cols());
}

template <storage_format Format>
matrix dequantize(quantized_layer<Format> const& layer) {
  matrix weight(layer.out, layer.in);
  for (index_t p = 0; p < layer.in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[static_cast<std::size_t>(p)]};
    for (index_t row = 0; row < layer.out; ++row) {
      weight(row, column) = Format::levels.decode(layer.code(row, p), layer.grid(row, layer.group(p)));
    }
  }
  return weight;
}

inline double output_error(Eigen::Ref<matrix const> const& weight,
                           Eigen::Ref<matrix const> const& approximation, hessian const& h, int threads) {
  if (weight.rows() != approximation.rows() || weight.cols() != approximation.cols() ||
      weight.cols() != h.in_features()) {
    throw error("output_error: weight " + std::to_string(weight.rows()) + " x " +
                std::to_string(weight.cols()) + ", approximation " + std::to_string(approximation.rows()) +
                " x " + std::to_string(approximation.cols()) + " and hessian of " +
                std::to_string(h.in_features()) + " inputs do not agree");
  }
  matrix const difference = weight - approximation;
  return detail::quadratic_form(difference, h.sum(), threads) /
         detail::quadratic_form(weight, h.sum(), threads);
}

}  // namespace gptq
