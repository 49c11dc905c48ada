// With b.cpp: the headers may be included in any number of translation units of a program.
#include <gptq/gptq.hpp>

#include "quantize_in_b.hpp"

// NOLINTNEXTLINE(bugprone-exception-escape): an exception fails the test, too
int main() {
  gptq::matrix const weight = gptq::matrix::Random(16, 64);
  gptq::matrix const activations = gptq::matrix::Random(128, 64);
  gptq::hessian hessian(64);
  hessian.add(activations);

  using format = gptq::format<gptq::asymmetric, 4, 32>;
  auto const here = gptq::pack(gptq::quantize<format>(weight, hessian));
  auto const there = quantize_in_b(weight, hessian);

  gptq::matrix from_a(16, 64), from_b(16, 64);
  gptq::dequantize(here.view(), from_a.data());
  gptq::dequantize(there.view(), from_b.data());
  return from_a == from_b ? 0 : 1;
}
