// One program for every CPU of its kind: compiled for the plainest of them, with kernels for several, it
// takes the best that the one it wakes up on can run.
//
//   example_04_runtime_dispatch [--isa <name>] [--time]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <string_view>
#include <vector>

#include <gptq/dispatch.hpp>
#include <gptq/packed.hpp>
#include <gptq/reference.hpp>

#include "kernels.hpp"

namespace {

using gptq::index_t;

struct choice {
  std::string_view name;
  kernels run;
};

/// All of the run-time dispatch, once in the life of the program. `isa` is empty, or insists on an ISA.
choice choose(std::string_view isa) {
  auto const table = []<class Isa>() { return choice{Isa::name, kernels_for<Isa>()}; };
  return isa.empty() ? gptq::dispatch(gptq::isa::dispatched{}, table)
                     : gptq::dispatch(gptq::isa::dispatched{}, isa, table);
}

gptq::packed_matrix<q4> some_weights(index_t out, index_t in, std::mt19937& random) {
  gptq::quantized_layer<q4> layer;
  layer.out = out;
  layer.in = in;
  std::uniform_int_distribution<int> code(q4::levels.min_code, q4::levels.max_code);
  for (index_t i = 0; i < out * in; ++i) layer.codes.push_back(static_cast<std::uint8_t>(code(random)));
  layer.scales.assign(static_cast<std::size_t>(out * layer.groups()), 0.125F);
  return gptq::pack(layer);
}

std::vector<float> some_inputs(index_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& value : x) value = normal(random);
  return x;
}

/// Of tokens' outputs: the norm of the error over the norm of what they should be.
double relative_error(std::vector<float> const& y, std::vector<double> const& exact) {
  double error = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    error += (y[i] - exact[i]) * (y[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  return std::sqrt(error / norm);
}

/// Microseconds that one y = W x takes on one thread, the best of many.
double microseconds(kernels const& run, index_t size, std::mt19937& random) {
  auto const matrix = some_weights(size, size, random);
  auto const w = matrix.view();
  auto const x = some_inputs(size, random);
  std::vector<float> y(x.size());
  std::vector<char> workspace(gptq::workspace_bytes(w.layout(), 1));
  double best = 1e9;
  for (int i = 0; i < 1000; ++i) {
    auto const start = std::chrono::steady_clock::now();
    run.gemv(w, run.prepare(w, x.data(), 1, workspace.data()), y.data(), {0, w.out});
    std::chrono::duration<double, std::micro> const took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) try {
  std::string_view isa;
  bool timed = false;
  for (int i = 1; i < argc; ++i) {
    if (argv[i] == std::string_view("--time")) timed = true;
    if (argv[i] == std::string_view("--isa") && i + 1 < argc) isa = argv[++i];
  }

  auto const [name, run] = choose(isa);
  std::printf("kernels for %s\n", name.data());

  std::mt19937 random(4);
  constexpr index_t out = 80, in = 320, tokens = 9;
  auto const matrix = some_weights(out, in, random);
  auto const w = matrix.view();
  auto const x = some_inputs(tokens * in, random);
  std::vector<char> workspace(gptq::workspace_bytes(w.layout(), tokens));
  std::vector<float> one(out), all(tokens * out);
  run.gemv(w, run.prepare(w, x.data(), 1, workspace.data()), one.data(), {0, out});
  run.gemm(w, run.prepare(w, x.data(), tokens, workspace.data()), all.data(), {0, out});

  std::vector<double> exact(tokens * out);
  gptq::reference::gemm(w, x.data(), tokens, exact.data());
  double const error = relative_error(all, exact);
  std::printf("relative error with 8-bit activations: %.4f\n", error);
  bool const same = std::equal(one.begin(), one.end(), all.begin());  // gemv and gemm give the same bits

  if (timed) std::printf("%.1f us per gemv 4096 x 4096\n", microseconds(run, 4096, random));
  return error < 0.01 && same ? 0 : 1;
} catch (gptq::error const& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 77;  // what ctest calls skipped
}
