// A stranger quantizes a layer. Returns 0 when the result is what it should be.
#include <cstdio>

#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/gptq.hpp>

int main() {
  constexpr gptq::index_t out = 8, in = 96;
  using q4 = gptq::format<gptq::symmetric, 4, 32>;

  gptq::matrix const weight = gptq::matrix::Random(out, in);
  gptq::matrix const activations = gptq::matrix::Random(256, in);
  gptq::hessian hessian(in);
  hessian.add(activations);

  auto const layer = gptq::quantize<q4>(weight, hessian, {.act_order = true});
  auto const packed = gptq::pack(layer);
  gptq::matrix back(out, in);
  gptq::dequantize(packed.view(), back.data());

  // Random weights in [-1, 1] on a 15-level grid: 1/14 at most without compensation, a little more with it.
  float const error = (back - weight).norm() / weight.norm();
  std::printf("loss %g, relative error of the weights %g\n", static_cast<double>(layer.report.loss),
              static_cast<double>(error));
  return layer.report.loss > 0 && error < 0.2f ? 0 : 1;
}
