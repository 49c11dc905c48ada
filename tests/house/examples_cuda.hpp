// What the examples in the heads of the headers for GPUs, and those in README.md, take for granted.
#pragma once

#include <cstddef>

#include <gptq/cuda/dequantize.cuh>
#include <gptq/cuda/epilogue.cuh>
#include <gptq/cuda/experts.cuh>
#include <gptq/cuda/gemm.cuh>
#include <gptq/cuda/prepare.cuh>
#include <gptq/cuda/quantize.cuh>

using q4 = gptq::format<gptq::symmetric, 4, 128>;
extern gptq::index_t in, out, in_features, tokens;
extern cudaStream_t stream;
extern __half const* x;
extern __half* y;
extern void* memory;
extern std::size_t bytes;
extern gptq::cuda::prepacked_view<q4> w;

namespace cuda_error_cuh {
extern float* p;
extern unsigned blocks;
__global__ void kernel(float*) {}
}  // namespace cuda_error_cuh

namespace cuda_device_cuh {
using cuda_error_cuh::blocks;
using cuda_error_cuh::kernel;
using cuda_error_cuh::p;
}  // namespace cuda_device_cuh

namespace cuda_memory_cuh {
extern float const* host;
}

namespace cuda_dequantize_cuh {
extern __half* weights;
}

namespace cuda_gemm_cuh {
extern void* space;
extern std::size_t space_bytes;
}  // namespace cuda_gemm_cuh

namespace cuda_epilogue_cuh {
extern gptq::cuda::prepacked_view<q4> gate, up;
extern float const* bias;
extern gptq::index_t stride, y_stride;
}  // namespace cuda_epilogue_cuh

namespace cuda_experts_cuh {
extern gptq::cuda::prepacked_view<q4> stack;
extern std::int32_t const* expert_ids;
extern int experts, top_k;
}  // namespace cuda_experts_cuh

namespace cuda_hessian_cuh {
extern gptq::cuda::context ctx;
extern gptq::bfloat16 const* x;
extern float const* sum;
extern gptq::index_t sequences;
}  // namespace cuda_hessian_cuh

namespace cuda_prepack_cuh {
extern gptq::packed_matrix<q4> packed;
extern gptq::packed_view<q4> there;
}  // namespace cuda_prepack_cuh

namespace cuda_quantize_cuh {
extern float const *q, *k, *v;
}

namespace README_md {
extern gptq::packed_view<q4> w;
extern float const *q, *k, *v;
extern gptq::bfloat16 const* inputs;
extern gptq::index_t n;
}  // namespace README_md
