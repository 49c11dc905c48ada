#include <mutex>
#include <optional>
#include <utility>

#include <gptq/cuda/quantize.cuh>

#include "formats.hpp"
#include "gpu.hpp"

namespace lm {

namespace {

struct device_matrix final : gpu_matrix {
  device_matrix(gptq::cuda::context const& ctx, gptq::index_t rows, gptq::index_t columns)
      : gpu_matrix(rows, columns), data(ctx, rows * columns) {}

  gptq::cuda::device_array<float> data;
};

}  // namespace

struct gpu::state {
  std::mutex in_use;
  gptq::cuda::context ctx;
  std::optional<gptq::cuda::hessian> h;
};

gpu::gpu() : state_(std::make_unique<state>()) {}
gpu::~gpu() = default;

std::shared_ptr<gpu_matrix const> gpu::upload(float const* weight, gptq::index_t out, gptq::index_t in) {
  std::scoped_lock const lock(state_->in_use);
  auto matrix = std::make_shared<device_matrix>(state_->ctx, out, in);
  matrix->data.upload(weight);
  state_->ctx.synchronize();  // the caller may change what it has given
  return matrix;
}

void gpu::multiply(gpu_matrix const& weight, float const* x, gptq::index_t tokens, float* y) {
  std::scoped_lock const lock(state_->in_use);
  gptq::cuda::context const& ctx = state_->ctx;
  gptq::cuda::device_array<float> inputs(ctx, tokens * weight.in);
  gptq::cuda::device_array<float> outputs(ctx, tokens * weight.out);
  inputs.upload(x);
  // By columns, as cuBLAS has them, y' = weight x'.
  float const one = 1.0F;
  float const zero = 0.0F;
  gptq::cuda::check(cublasSgemm_64(ctx.blas(), CUBLAS_OP_T, CUBLAS_OP_N, weight.out, tokens, weight.in, &one,
                                   static_cast<device_matrix const&>(weight).data.data(), weight.in,
                                   inputs.data(), weight.in, &zero, outputs.data(), weight.out),
                    "multiplying activations");
  outputs.download(y);
}

void gpu::add_to_hessian(float const* x, gptq::index_t tokens, gptq::index_t in) {
  if (!state_->h) state_->h.emplace(state_->ctx, in);
  gptq::cuda::device_array<float> on_device(state_->ctx, tokens * in);
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
                        gptq::index_t in, gpu_sums const& h, gptq::quantize_options const& options,
                        gpu_sums const* held_out) {
  gptq::cuda::context& ctx = state_->ctx;
  auto const to_gpu = [&](gpu_sums const& sums) {
    return gptq::cuda::hessian::from_sum(ctx, sums.sum, in, sums.tokens, sums.sequences);
  };
  auto const calibration = to_gpu(h);
  std::optional<gptq::cuda::hessian> others;
  if (held_out != nullptr) others.emplace(to_gpu(*held_out));
  auto const on_gpu = gptq::cuda::quantize_options::from(options);
  gptq::cuda::device_array<float> on_device(ctx, out * in);
  on_device.upload(weight);
  return gptq::with_format<formats>(format, [&]<class Format>() -> gpu_layer {
    auto layer = gptq::cuda::quantize<Format>({{on_device.data(), out}}, calibration, on_gpu,
                                              others ? &*others : nullptr)
                     .host(0);
    return {std::move(layer.codes), std::move(layer.scales), std::move(layer.zeros), std::move(layer.order),
            layer.report};
  });
}

}  // namespace lm
