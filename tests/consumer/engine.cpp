// A stranger's inference engine: packed weights in memory of its own, and no Eigen anywhere.
// Returns 0 when the result is what it should be.
#include <gptq/gemm.hpp>
#include <gptq/reference.hpp>

#if __has_include(<Eigen/Core>)
#error "Eigen is on the include path: this program proves that it need not be"
#endif

#include <cstdint>
#include <vector>

int main() {
  using q4 = gptq::format<gptq::fixed_zero, 4, 8>;
  constexpr gptq::packed_layout<q4> layout{32, 8};
  static_assert(layout.code_bytes() == 128 && layout.scale_count() == 32);

  // Every code 9, so every weight (9 - 8) * 0.5.
  std::vector<std::uint8_t> const codes(128, 0x99);
  std::vector<gptq::float16> const scales(32, gptq::float16{0.5F});
  gptq::packed_view<q4> const view{.codes = codes.data(), .scales = scales.data(), .out = 32, .in = 8};

  // Two tokens. Multiples of a 127th of the largest are exact in 8 bits.
  std::vector<float> const x{127, 2, 3, 4, 5, 6, 7, 8, -127, 2, 3, 4, 5, 6, 7, 8};
  std::vector<char> workspace(gptq::workspace_bytes(layout, 2));
  std::vector<float> one(32), both(64);
  std::vector<double> exact(64);
  gptq::gemv(view, x.data(), one.data());
  gptq::gemm(view, gptq::prepare(view, x.data(), 2, workspace.data()), both.data());
  gptq::reference::gemm(view, x.data(), 2, exact.data());
  return one == std::vector<float>(32, 81.0F) && std::vector<double>(both.begin(), both.end()) == exact ? 0
                                                                                                        : 1;
}
