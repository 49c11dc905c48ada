// A quantization scheme of your own: one struct, nothing to register. This one is ternary: every weight
// becomes -s, 0 or s.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <gptq/gptq.hpp>

/// A stored code q decodes to scale * (q - zero_point): codes 0, 1, 2 around a zero point of 1 are -1, 0, 1.
struct ternary {
  static constexpr char const* name = "ternary";
  static constexpr bool has_zero_point = false;  // none stored: it is the same for every group
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int /*bits*/) { return 2; }
  static constexpr float zero_point(int /*bits*/) { return 1.0F; }

  /// Optional: the scheme's own way to find a group's scale. This one makes the squared error of the group
  /// least. If the k largest magnitudes become +-s and the others 0, the best s is the mean of the k, and the
  /// error is the sum of all squares less (sum of the k)^2 / k: try every k.
  static gptq::grid find_grid(std::span<float const> weights, int /*bits*/) {
    std::vector<float> magnitudes;
    for (float const w : weights) magnitudes.push_back(std::abs(w));
    std::sort(magnitudes.begin(), magnitudes.end(), std::greater<>());
    float sum = 0.0F, most_saved = 0.0F, scale = 0.0F;
    for (std::size_t k = 0; k < magnitudes.size(); ++k) {
      sum += magnitudes[k];
      float const saved = sum * sum / static_cast<float>(k + 1);
      if (saved <= most_saved) continue;
      most_saved = saved;
      scale = sum / static_cast<float>(k + 1);
    }
    return {scale, 0};
  }
};

int main() {
  // A layer with correlated inputs, as in 01_quantize_layer.
  constexpr gptq::index_t inputs = 256, outputs = 64;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  gptq::matrix const weight = gptq::matrix::NullaryExpr(outputs, inputs, [&] { return normal(random); });
  gptq::hessian calibration(inputs);
  for (int sequence = 0; sequence < 8; ++sequence) {
    gptq::matrix x(128, inputs);
    for (gptq::index_t t = 0; t < x.rows(); ++t) {
      float value = 0.0F;
      for (gptq::index_t i = 0; i < inputs; ++i) x(t, i) = value = 0.9F * value + normal(random);
    }
    calibration.add(x);
  }

  // Chosen at run time, as from a configuration file: list the new scheme among the formats to compile.
  using formats =
      gptq::combinations<gptq::schemes<ternary, gptq::symmetric>, gptq::bit_widths<2>, gptq::group_sizes<64>>;
  auto const loss_of = [&](std::string const& scheme) {
    return gptq::with_format<formats>({.scheme = scheme, .bits = 2, .group_size = 64}, [&]<class Format>() {
      // With the scales that the scheme finds: by default the search would go on from them.
      auto const layer =
          gptq::quantize<Format>(weight, calibration, {.quality = gptq::quality::plain, .act_order = true});
      std::printf("%-10s loss %9.1f, relative output error %.4f\n", scheme.c_str(), layer.report.loss,
                  layer.report.output_error);
      return layer.report.loss;
    });
  };
  // The built-in symmetric scheme has the levels -1, 0, 1 at 2 bits as well, but scales them to the largest
  // weight.
  double const ours = loss_of("ternary");
  double const built_in = loss_of("symmetric");

  // Everything else knows the scheme, too: it packs and unpacks like any other.
  using format = gptq::format<ternary, 2, 64>;
  auto const layer = gptq::quantize<format>(weight, calibration, {.act_order = true});
  auto const packed = gptq::pack(layer);
  bool const same = gptq::unpack(packed.view()).codes == layer.codes;
  return same && ours < 0.7 * built_in ? 0 : 1;
}
