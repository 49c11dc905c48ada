// gpu.hpp for programs that were built without CUDA.
#include <gptq/error.hpp>

#include "gpu.hpp"

namespace lm {

struct gpu::state {};

gpu::gpu() { throw gptq::error("this program was built without CUDA: nvcc 13 was not found"); }
gpu::~gpu() = default;
std::shared_ptr<gpu_matrix const> gpu::upload(float const*, gptq::index_t, gptq::index_t) { return nullptr; }
void gpu::multiply(gpu_matrix const&, float const*, gptq::index_t, float*) {}
void gpu::add_to_hessian(float const*, gptq::index_t, gptq::index_t) {}
std::vector<float> gpu::take_hessian() { return {}; }
gpu_layer gpu::quantize(gptq::format_spec const&, float const*, gptq::index_t, gptq::index_t, gpu_sums const&,
                        gptq::quantize_options const&, gpu_sums const*) {
  return {};
}

}  // namespace lm
