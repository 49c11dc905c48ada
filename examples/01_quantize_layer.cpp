// Quantizing one linear layer: collect what its inputs look like, quantize, pack, use.
//
// A linear layer computes y = W x. GPTQ chooses 4-bit codes for W such that y changes as little as possible
// on inputs like those it was shown, which are called calibration.
#include <cstdio>
#include <random>

#include <gptq/gptq.hpp>

namespace {

constexpr gptq::index_t inputs = 256;
constexpr gptq::index_t outputs = 64;

/// Inputs as a trained network has them: neighbours look alike. (With independent ones there is nothing to
/// gain: rounding every weight to its nearest level would be the best choice.)
gptq::matrix some_inputs(gptq::index_t tokens, std::mt19937& random) {
  std::normal_distribution<float> normal;
  gptq::matrix x(tokens, inputs);
  for (gptq::index_t t = 0; t < tokens; ++t) {
    float value = 0.0F;
    for (gptq::index_t i = 0; i < inputs; ++i) x(t, i) = value = 0.9F * value + normal(random);
  }
  return x;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  gptq::matrix const weight = gptq::matrix::NullaryExpr(outputs, inputs, [&] { return normal(random); });

  // 1. Show the layer's inputs to a Hessian, one sequence [tokens, inputs] at a time.
  gptq::hessian calibration(inputs);
  for (int sequence = 0; sequence < 8; ++sequence) calibration.add(some_inputs(128, random));
  gptq::hessian held_out(inputs);  // other inputs, to see what the error is on those
  held_out.add(some_inputs(256, random));

  // 2. Quantize: 4-bit codes -7..7, one scale for 64 inputs of an output.
  using q4 = gptq::format<gptq::symmetric, 4, 64>;
  auto const layer = gptq::quantize<q4>(weight, calibration, {.act_order = true}, &held_out);
  auto const rounded = gptq::round_to_nearest<q4>(weight, {}, &calibration, &held_out);
  std::printf("error of the outputs, relative   GPTQ       round to nearest\n");
  std::printf("  on the calibration             %.5f    %.5f\n", layer.report.output_error,
              rounded.report.output_error);
  std::printf("  on inputs not seen before      %.5f    %.5f\n", layer.report.held_out_error,
              rounded.report.held_out_error);

  // 3. Pack: the bytes that kernels read and files hold.
  auto const packed = gptq::pack(layer);
  std::printf("%lld bytes, %.3f bits a weight\n", static_cast<long long>(packed.bytes()),
              packed.bits_per_weight());

  // 4. Use it. The reference is exact and slow; x and y are plain pointers.
  gptq::matrix const x = some_inputs(1, random);
  Eigen::VectorXd y(outputs);
  gptq::reference::gemv(packed.view(), x.data(), y.data());
  Eigen::VectorXd const exact = (weight.cast<double>() * x.transpose().cast<double>());
  double const error = (y - exact).squaredNorm() / exact.squaredNorm();
  std::printf("relative squared error of one product: %.5f\n", error);

  bool const fine = layer.report.held_out_error < 0.5 * rounded.report.held_out_error && error < 0.02 &&
                    packed.bits_per_weight() < 5.0;
  return fine ? 0 : 1;
}
