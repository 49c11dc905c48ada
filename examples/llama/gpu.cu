#include <optional>
#include <utility>

#include <gptq/cuda/quantize.cuh>

#include "formats.hpp"
#include "gpu.hpp"

namespace llama {

struct gpu::state {
  gptq::cuda::context ctx;
  std::optional<gptq::cuda::hessian> h;
};

gpu::gpu() : state_(std::make_unique<state>()) {}
gpu::~gpu() = default;

void gpu::add_to_hessian(float const* x, gptq::index_t tokens, gptq::index_t in) {
  if (!state_->h) state_->h.emplace(state_->ctx, in);
  gptq::cuda::detail::device_array<float> on_device(state_->ctx, tokens * in);
  on_device.upload(x);
  state_->h->add(on_device.data(), tokens);
}

std::vector<float> gpu::take_hessian() {
  auto const in = static_cast<std::size_t>(state_->h->in_features());
  std::vector<float> sum(in * in);
  state_->h->download(sum.data());
  state_->h.reset();
  return sum;
}

gpu_layer gpu::quantize(gptq::format_spec const& format, float const* weight, gptq::index_t out,
                        gptq::index_t in, float const* sum, double tokens, gptq::index_t sequences,
                        gptq::quantize_options const& options) {
  gptq::cuda::context& ctx = state_->ctx;
  gptq::cuda::hessian h(ctx, in);
  h.assign(sum, tokens, sequences);
  gptq::cuda::detail::device_array<float> on_device(ctx, out * in);
  on_device.upload(weight);
  return gptq::with_format<formats>(format, [&]<class Format>() -> gpu_layer {
    auto layer = gptq::cuda::quantize<Format>(ctx, {{on_device.data(), out}}, h, options).host(0);
    return {std::move(layer.codes), std::move(layer.scales), std::move(layer.zeros), std::move(layer.order),
            layer.report};
  });
}

}  // namespace llama
