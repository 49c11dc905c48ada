// Peak memory of quantizing a layer: the weight, two K x K matrices (the Hessian and its factor), one outer block
// of N x 4 block_size floats, the codes, with quality fast a second weight and codes, and little else. A
// program of its own, because the system keeps one peak a process.
#include <cstdio>

#include <sys/resource.h>

#include <gptq/quantize.hpp>

namespace {

double peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

}  // namespace

int main() {
  using q4 = gptq::format<gptq::fixed_zero, 4, 128>;
  constexpr gptq::index_t size = 3072;
  constexpr double mib = 1024.0 * 1024.0;
  constexpr double matrix_mib = size * size * sizeof(float) / mib;

  gptq::matrix weight = gptq::matrix::Random(size, size);
  gptq::hessian h(size);
  for (int i = 0; i < 8; ++i) h.add(gptq::matrix::Random(512, size).eval());
  double const before = peak_mib();
  auto const layer = gptq::quantize<q4>(std::move(weight), h, {.act_order = true});
  double const used = peak_mib() - before;

  double const factor = matrix_mib;
  double const outer_block = size * 512 * sizeof(float) / mib;
  double const result = matrix_mib / 4.0;
  double const second = matrix_mib + result;
  double const allowed =
      factor + outer_block + result + second + 16.0;  // 16: scales, strips, buffers of matrix products
  std::printf(
      "quantizing %d x %d in place: %.0f MiB beside the weight and the Hessian (%.0f each); factor %.0f, "
      "outer block %.0f, codes %.0f, the other order's weight and codes %.0f\n",
      static_cast<int>(size), static_cast<int>(size), used, matrix_mib, factor, outer_block, result, second);
  if (layer.codes.empty() || used > allowed) {
    std::printf("more than the %.0f MiB allowed\n", allowed);
    return 1;
  }
  return 0;
}
