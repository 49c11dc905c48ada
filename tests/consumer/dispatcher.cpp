// A stranger's engine with kernels for whatever CPU it meets; dispatcher_kernels.cpp has them.
// Returns 0 when the result is what it should be.
#include "dispatcher.hpp"

#include <cstdint>
#include <cstdio>
#include <vector>

#include <gptq/dispatch.hpp>

int main() {
  auto const gemv = gptq::dispatch(gptq::isa::dispatched{}, []<class Isa>() {
    std::printf("%s\n", Isa::name.data());
    return gemv_for<Isa>();
  });

  // Every code 9, so every weight (9 - 8) * 0.5.
  std::vector<std::uint8_t> const codes(64, 0x99);
  std::vector<gptq::float16> const scales(16, gptq::float16{0.5F});
  std::vector<float> const x{127, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> y(16);
  gemv({.codes = codes.data(), .scales = scales.data(), .out = 16, .in = 8}, x.data(), y.data());
  return y == std::vector<float>(16, 81.0F) ? 0 : 1;
}
