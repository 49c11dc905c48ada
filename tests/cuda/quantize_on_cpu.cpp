#include "quantize_on_cpu.hpp"

#include <tuple>

#include <gptq/quantize.hpp>

namespace test {
namespace {

gptq::hessian hessian_of(layer_input const& input) {
  gptq::hessian h(input.in);
  h.add(input.activations.data(), static_cast<index_t>(input.activations.size()) / input.in);
  return h;
}

}  // namespace

std::vector<float> sum_on_cpu(layer_input const& input) {
  auto const h = hessian_of(input);
  return {h.sum().data(), h.sum().data() + h.sum().size()};
}

template <class Format>
gptq::quantized_layer<Format> quantize_on_cpu(layer_input const& input,
                                              gptq::quantize_options const& options) {
  return gptq::quantize<Format>(Eigen::Map<gptq::matrix const>(input.weight.data(), input.out, input.in),
                                hessian_of(input), options);
}

namespace {
template <class... Formats>
auto addresses(gptq::format_list<Formats...>) {
  return std::tuple(&quantize_on_cpu<Formats>...);
}
}  // namespace

// Whose address is taken is there to link with.
auto quantize_functions = addresses(cuda_formats{});

}  // namespace test
