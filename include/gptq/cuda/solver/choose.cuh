// Solving layers as the options and held-out tokens say: the twin of solver/choose.hpp, for several layers,
// each of which chooses for itself.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gptq/cuda/solver/event.cuh>
#include <gptq/cuda/solver/problem.cuh>
#include <gptq/cuda/solver/solve.cuh>

namespace gptq::cuda::detail {

/// Where a layer is among the solutions of several.
struct solved_layer {
  std::shared_ptr<solution const> found;
  index_t first_row = 0;
  index_t out = 0;
  quantize_report report;
};

/// Throws for one that does not fit, or whose entries are not all finite.
inline void check_held_out(problem const& p, hessian const& held_out) {
  if (held_out.in_features() != p.columns) {
    throw invalid_argument("quantize: the held-out hessian has " + std::to_string(held_out.in_features()) +
                           " inputs, the hessian " + std::to_string(p.columns));
  }
  if (held_out.sequences() == 0)
    throw invalid_argument("quantize: the held-out hessian has seen no activations");
  device_array<faults> found(p.ctx, 1);
  found.fill_bytes(0xff);
  launch(find_not_finite<>, {.grid = grid_size(p.columns), .block = 256, .stream = p.ctx.stream()},
         held_out.sum(), p.columns, found.data());
  faults host{};
  found.download(&host);
  if (host.hessian == faults::none) return;
  auto const i = static_cast<index_t>(host.hessian);
  float value = 0.0F;
  check(cudaMemcpy(&value, held_out.sum() + i, sizeof value, cudaMemcpyDeviceToHost),
        "copying from the device");
  throw error("quantize: entry (" + std::to_string(i % p.columns) + ", " + std::to_string(i / p.columns) +
              ") of the held-out hessian is " + std::to_string(value));
}

class layers_chooser {
 public:
  layers_chooser(problem const& p, gptq::solver::recipe const& steps, hessian const* held_out)
      : problem_(p), steps_(steps), held_out_(held_out), layers_(p.weights.size()) {}

  std::vector<solved_layer> choose() {
    problem const& p = problem_;
    event start(cudaEventDefault), done(cudaEventDefault);
    start.record(p.ctx.stream());
    bool const choices =
        held_out_ != nullptr && (steps_.choose_damping || steps_.guards > 0) && !hessian_diagonal(p).all_dead;
    std::vector<std::size_t> const all = numbers();
    if (!choices) {
      solve(all, p.options, p.format, steps_, [](std::size_t, quantize_report const&) { return true; });
      return std::move(layers_);
    }
    for (auto const& [damping, chosen] : by_damping()) {
      quantize_options options = p.options;
      options.damping = damping;
      solve(chosen, options, p.format, steps_, [](std::size_t, quantize_report const&) { return true; });
    }
    for (int guard = 0; guard < steps_.guards; ++guard) guard_by_published(all, guard == 1);
    done.record(p.ctx.stream());
    p.ctx.synchronize();
    for (solved_layer& layer : layers_) {
      layer.report.seconds = done.seconds_since(start);
      layer.report.seconds_factorization = factorizing_;
      layer.report.seconds_columns = layer.report.seconds - factorizing_;
    }
    return std::move(layers_);
  }

 private:
  std::vector<std::size_t> numbers() const {
    std::vector<std::size_t> all(layers_.size());
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
    return all;
  }

  /// Solves these layers together and takes what accept(layer, report) says.
  template <class Accept>
  void solve(std::vector<std::size_t> const& chosen, quantize_options const& options,
             sweep_format const& format, gptq::solver::recipe const& steps, Accept const& accept) {
    std::vector<weight_view> weights;
    for (std::size_t const layer : chosen) weights.push_back(problem_.weights[layer]);
    problem const part(weights, problem_.h, format, options);
    auto const found = std::make_shared<solution const>(layers_solver(part, steps, held_out_).solve());
    factorizing_ += found->reports.front().seconds_factorization;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      if (!accept(chosen[i], found->reports[i])) continue;
      layers_[chosen[i]] = {found, part.first_rows[i], weights[i].out, found->reports[i]};
    }
  }

  /// The damping that is best for each layer on held-out tokens: the given one, 10 or 100 times as much, and
  /// at most 1; with the layers that have it.
  std::vector<std::pair<double, std::vector<std::size_t>>> by_damping() {
    quantize_options options = problem_.options;
    std::vector<double> best(layers_.size(), options.damping);
    std::vector<double> least(layers_.size(), std::numeric_limits<double>::infinity());
    std::vector<std::size_t> active = steps_.choose_damping ? numbers() : std::vector<std::size_t>();
    gptq::solver::recipe const sketch{.search = steps_.search, .passes = std::min(steps_.passes, 1)};
    options.measure_output_error = false;
    double before = -1.0;
    for (double const times : {1.0, 10.0, 100.0}) {
      options.damping = std::min(1.0, problem_.options.damping * times);
      if (active.empty() || !(options.damping > before)) break;
      before = options.damping;
      std::vector<std::size_t> better;
      solve(active, options, problem_.format, sketch, [&](std::size_t layer, quantize_report const& report) {
        if (report.held_out_error < least[layer]) {
          least[layer] = report.held_out_error;
          best[layer] = options.damping;
          better.push_back(layer);
        }
        return false;
      });
      active = std::move(better);
    }
    std::vector<std::pair<double, std::vector<std::size_t>>> groups;
    for (std::size_t layer = 0; layer < best.size(); ++layer) {
      auto at =
          std::find_if(groups.begin(), groups.end(), [&](auto const& g) { return g.first == best[layer]; });
      if (at == groups.end()) at = groups.insert(groups.end(), {best[layer], {}});
      at->second.push_back(layer);
    }
    return groups;
  }

  /// What quality plain makes of the layers with the published options: the default ones, but for the order
  /// of columns where that must not be stored, or the best ones, with the mse search. Taken where it is
  /// better.
  void guard_by_published(std::vector<std::size_t> const& all, bool best_ones) {
    quantize_options options = problem_.options;
    sweep_format format = problem_.format;
    format.grids.mse = best_ones;
    options.static_groups = best_ones || options.static_groups || !options.act_order;
    options.act_order = true;
    std::vector<std::size_t> better;
    solve(all, options, format, {}, [&](std::size_t layer, quantize_report const& report) {
      if (!(report.held_out_error < layers_[layer].report.held_out_error)) return false;
      better.push_back(layer);
      return true;
    });
    for (std::size_t const layer : better) layers_[layer].report.fell_back = true;
  }

  problem const& problem_;
  gptq::solver::recipe steps_;
  hessian const* held_out_;
  std::vector<solved_layer> layers_;
  double factorizing_ = 0.0;
};

/// Throws as cuda::quantize does.
inline std::vector<solved_layer> solve_chosen(problem const& p, hessian const* held_out) {
  if (held_out != nullptr) check_held_out(p, *held_out);
  return layers_chooser(p, gptq::solver::recipe_for(p.options.quality), held_out).choose();
}

}  // namespace gptq::cuda::detail
