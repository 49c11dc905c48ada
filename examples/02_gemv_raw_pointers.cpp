// An inference engine's view: the weights lie in its own memory, say a mapped file, and the threads are its
// own. Kernels take pointers and a shape; they allocate nothing and own nothing.
//
// Two matrices share their inputs here, as the gate and up projections of a LLaMA layer do, so these are
// prepared once.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>

#include <gptq/gemv.hpp>
#include <gptq/parallel.hpp>
#include <gptq/reference.hpp>

namespace {

using q4 = gptq::format<gptq::fixed_zero, 4, 128>;
using weights = gptq::packed_view<q4>;

constexpr gptq::index_t in = 512;
constexpr gptq::index_t out = 200;

// Every size is known beforehand. Alignment to 64 bytes is best, but any will do.
constexpr gptq::packed_layout<q4> layout{out, in};
alignas(64) std::uint8_t codes[2][layout.code_bytes()];
gptq::float16 scales[2][layout.scale_count()];
alignas(64) char workspace[gptq::workspace_bytes(layout)];
float x[in], y[2][out];

/// What a file would hold. Any byte is two codes, as fixed_zero uses all 16.
void invent_weights(std::mt19937& random) {
  for (auto& matrix : codes) {
    for (auto& byte : matrix) byte = static_cast<std::uint8_t>(random());
  }
  for (auto& matrix : scales) {
    for (auto& scale : matrix) scale = gptq::float16(0.01F);
  }
}

/// |y - Wx| / |Wx|
double relative_error(weights const& w, float const* result) {
  double exact[out], error = 0.0, norm = 0.0;
  gptq::reference::gemv(w, x, exact);
  for (gptq::index_t row = 0; row < out; ++row) {
    error += (result[row] - exact[row]) * (result[row] - exact[row]);
    norm += exact[row] * exact[row];
  }
  return std::sqrt(error / norm);
}

}  // namespace

int main() {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  invent_weights(random);
  for (float& value : x) value = normal(random);

  // 1. A matrix is a view of where it lies.
  weights const gate{.codes = codes[0], .scales = scales[0], .out = out, .in = in};
  weights const up{.codes = codes[1], .scales = scales[1], .out = out, .in = in};

  // 2. Inputs are prepared once for all matrices with the same columns and groups.
  auto const inputs = gptq::prepare(gate, x, 1, workspace);

  // 3. Each thread takes a share of the rows.
  auto const work = [&](int part) {
    auto const rows = gptq::row_share(out, part, 2);
    gptq::gemv(gate, inputs, y[0], rows);
    gptq::gemv(up, inputs, y[1], rows);
  };
  std::thread helper(work, 1);
  work(0);
  helper.join();
  double const gate_error = relative_error(gate, y[0]), up_error = relative_error(up, y[1]);
  std::printf("relative error with 8-bit activations:  gate %.4f, up %.4f\n", gate_error, up_error);

  // 4. As exact as float32, where that matters: the same call with more digits.
  gptq::gemv<gptq::precision::int23>(gate, x, y[0]);
  double const fine_error = relative_error(gate, y[0]);
  std::printf("relative error with 23-bit activations: gate %.1e\n", fine_error);

  return gate_error < 0.01 && up_error < 0.01 && fine_error < 1e-6 ? 0 : 1;
}
