#include "quantize_on_cpu.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <tuple>

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <gptq/quantize.hpp>

namespace test {
namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

Eigen::Map<gptq::matrix const> weight_matrix(layer_input const& input) {
  return {input.weight.data(), input.out, input.in};
}
gptq::hessian hessian_from(layer_input const& input, std::vector<float> const& sum) {
  // H of one sequence is 2 S, which is exact.
  return gptq::hessian::from_sum(Eigen::Map<Eigen::MatrixXf const>(sum.data(), input.in, input.in),
                                 static_cast<double>(input.tokens), 1);
}
float sum_at(layer_input const& input, index_t i, index_t j) {
  return input.sum[at(std::min(i, j) * input.in + std::max(i, j))];
}
bool is_dead(layer_input const& input, index_t column) { return sum_at(input, column, column) == 0.0F; }

/// Sum over the rows d of d M d'.
double quadratic(Eigen::MatrixXd const& rows, Eigen::MatrixXd const& m) {
  return (rows * m).cwiseProduct(rows).sum();
}

/// Whether g is what the group's weights give, or what they would if rounding had moved them a little: by
/// some of their own size, or by `rounding` where that is more, as they are sums that may have cancelled.
bool grid_fits(std::vector<float> const& weights, float rounding, gptq::grid g,
               gptq::code_levels const& levels, gptq::grid_options const& options) {
  constexpr float little = 1e-4F;
  gptq::grid const exact = gptq::find_grid(weights, levels, options);
  if (options.mse) {
    auto const error_of = [&](gptq::grid const& its) {
      return gptq::detail::grid_error(weights, its, levels);
    };
    // The scale that was best may have been rounded to the other side: then another one is, by a little.
    return error_of(g) <= error_of(exact) * 1.01F;
  }
  auto const with = [&](float below, float above) {  // what negative ones and the others are farther from 0
    std::vector<float> moved = weights;
    for (float& w : moved) {
      float const size = std::abs(w), by = std::max(little * size, rounding);
      if (w != 0.0F) w = std::copysign(std::max(0.0F, size + (w < 0.0F ? below : above) * by), w);
    }
    return gptq::find_grid(moved, levels, options);
  };
  float least = INFINITY, most = -INFINITY;
  for (float const below : {-1.0F, 1.0F}) {
    for (float const above : {-1.0F, 1.0F}) {
      float const scale = with(below, above).scale;
      least = std::min(least, scale), most = std::max(most, scale);
    }
  }
  if (g.scale < least || g.scale > most) return false;
  if (!levels.has_zero_point || g.scale == 0.0F) return g.zero == exact.zero;
  // The steps from the least weight up to zero, in the scale that it is.
  float const low = std::min(0.0F, *std::min_element(weights.begin(), weights.end()));
  float const high = std::max(0.0F, *std::max_element(weights.begin(), weights.end()));
  if (low == high) return g.zero == exact.zero;
  float const steps = -low / g.scale;
  float const zero = static_cast<float>(g.zero - levels.min_code);
  return std::abs(steps - zero) <= 0.5F + std::max(little * steps, rounding / g.scale) ||
         (g.zero == levels.max_code && steps > zero);
}

}  // namespace

std::vector<float> sum_on_cpu(std::vector<float> const& activations, index_t in) {
  gptq::hessian h(in);
  h.add(activations.data(), static_cast<index_t>(activations.size()) / in);
  return {h.sum().data(), h.sum().data() + h.sum().size()};
}

template <class Format>
gptq::quantized_layer<Format> quantize_on_cpu(layer_input const& input,
                                              gptq::quantize_options const& options) {
  gptq::hessian const h = hessian_from(input, input.sum);
  if (input.held_out.empty()) return gptq::quantize<Format>(weight_matrix(input), h, options);
  gptq::hessian const held_out = hessian_from(input, input.held_out);
  return gptq::quantize<Format>(weight_matrix(input), h, options, &held_out);
}

template <class Format>
gptq::quantized_layer<Format> round_on_cpu(layer_input const& input, gptq::quantize_options const& options) {
  return gptq::round_to_nearest<Format>(weight_matrix(input), options);
}

exact_hessian::exact_hessian(layer_input const& input, gptq::quantize_options const& options) {
  index_t const n = input.in;
  order.resize(at(n));
  std::iota(order.begin(), order.end(), 0);
  if (options.act_order) {
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return sum_at(input, a, a) > sum_at(input, b, b);
    });
  }
  index_t live = 0;
  for (index_t i = 0; i < n; ++i) {
    dead_diagonal += 2.0 * double{sum_at(input, i, i)};
    live += is_dead(input, i) ? 0 : 1;
  }
  dead_diagonal /= static_cast<double>(live);
  added_diagonal = options.damping * dead_diagonal;
  damped.resize(at(n * n));
  for (index_t b = 0; b < n; ++b) {
    index_t const j = order[at(n - 1 - b)];
    for (index_t a = b; a < n; ++a) {
      double value = 2.0 * double{sum_at(input, order[at(n - 1 - a)], j)};
      if (a == b) value = static_cast<float>((is_dead(input, j) ? dead_diagonal : value) + added_diagonal);
      damped[at(a * n + b)] = damped[at(b * n + a)] = value;
    }
  }
  Eigen::Map<Eigen::MatrixXd const> const matrix(damped.data(), n, n);
  Eigen::MatrixXd const l = matrix.llt().matrixL();
  factor.assign(l.data(), l.data() + l.size());
}

template <class Format>
exact_findings examine(layer_input const& input, exact_hessian const& h,
                       gptq::quantize_options const& options, gptq::quantized_layer<Format> const& layer) {
  constexpr gptq::code_levels levels = Format::levels;
  index_t const rows = input.out, n = input.in, group_columns = Format::group_columns(n);
  bool const dynamic = !options.static_groups && Format::groups(n) > 1;
  gptq::grid_options const grids{options.grid, options.mse, false, Format::scales};
  Eigen::Map<Eigen::MatrixXd const> const damped(h.damped.data(), n, n), factor(h.factor.data(), n, n);
  // Position p is column n - 1 - p of these.
  auto const original = [&](index_t a) { return index_t{h.order[at(n - 1 - a)]}; };
  auto const stored = [&](index_t a) { return dynamic ? n - 1 - a : original(a); };
  Eigen::MatrixXd weight(rows, n), difference(rows, n);
  for (index_t a = 0; a < n; ++a) {
    index_t const column = original(a), s = stored(a);
    for (index_t row = 0; row < rows; ++row) {
      gptq::grid const g = layer.grid(row, layer.group(s));
      weight(row, a) = is_dead(input, column) ? 0.0 : double{weight_matrix(input)(row, column)};
      double const level = static_cast<double>(layer.code(row, s)) - double{levels.zero_point(g)};
      difference(row, a) = weight(row, a) - double{g.scale} * level;
    }
  }
  exact_findings found{};
  double noise = quadratic(difference, damped);
  found.loss = 0.5 * noise;
  for (index_t a = 0; a < n; ++a) {
    double const added = h.added_diagonal + (is_dead(input, original(a)) ? h.dead_diagonal : 0.0);
    noise -= added * difference.col(a).squaredNorm();
  }
  double signal = quadratic(weight, damped);
  for (index_t a = 0; a < n; ++a) signal -= h.added_diagonal * weight.col(a).squaredNorm();
  found.output_error = noise / signal;

  // All codes are known, so all of w_now - w, which are f[j] / L_jj, can be had at once.
  Eigen::MatrixXd now = difference * factor.triangularView<Eigen::StrictlyLower>();
  for (index_t a = 0; a < n; ++a) now.col(a) /= factor(a, a);
  now += weight;
  for (index_t a = 0; a < n; ++a) {
    index_t const s = stored(a);
    for (index_t row = 0; row < rows; ++row) {
      gptq::grid const g = layer.grid(row, layer.group(s));
      if (g.scale == 0.0F) continue;
      double const place = now(row, a) / double{g.scale} + double{levels.zero_point(g)};
      double const nearest =
          std::clamp(std::nearbyint(place), double{levels.min_code}, double{levels.max_code});
      double const code = layer.code(row, s);
      if (code == nearest) continue;
      ++found.other_codes;
      found.farthest = std::max(found.farthest, std::abs(place - code) - std::abs(place - nearest));
    }
  }

  // A group's weights when the sweep reaches it: w + d with d L = f over the group, f of what is before it.
  for (index_t first = 0; first < n; first += group_columns) {
    index_t const count = std::min(group_columns, n - first);
    Eigen::MatrixXd expected(rows, count), size(rows, count);  // of what is added up
    if (dynamic) {
      index_t const a = n - first - count, before = first;
      expected = difference.rightCols(before) *
                 factor.block(a + count, a, before, count);  // f; nothing for the first
      factor.block(a, a, count, count)
          .triangularView<Eigen::Lower>()
          .solveInPlace<Eigen::OnTheRight>(expected);
      size = difference.rightCols(before).cwiseAbs() * factor.block(a + count, a, before, count).cwiseAbs();
      for (index_t i = 0; i < count; ++i) size.col(i) /= factor(a + i, a + i);
      size += weight.middleCols(a, count).cwiseAbs();
      expected += weight.middleCols(a, count);
    } else {
      for (index_t i = 0; i < count; ++i) {
        for (index_t row = 0; row < rows; ++row) {
          bool const dead = is_dead(input, first + i);
          expected(row, i) = dead ? 0.0 : double{weight_matrix(input)(row, first + i)};
        }
      }
      size.setZero();  // given as they are
    }
    std::vector<float> group(at(count));
    for (index_t row = 0; row < rows; ++row) {
      for (index_t i = 0; i < count; ++i) group[at(i)] = static_cast<float>(expected(row, i));
      auto const rounding = static_cast<float>(1e-6 * size.row(row).maxCoeff());
      if (!grid_fits(group, rounding, layer.grid(row, first / group_columns), levels, grids)) {
        ++found.wrong_grids;
      }
    }
  }
  return found;
}

namespace {
template <class... Formats>
auto addresses(gptq::format_list<Formats...>) {
  return std::tuple(&quantize_on_cpu<Formats>..., &round_on_cpu<Formats>..., &examine<Formats>...);
}
}  // namespace

// Whose address is taken is there to link with.
auto quantize_functions = addresses(cuda_formats{});

}  // namespace test
