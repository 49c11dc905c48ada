// What the examples in the heads of the kernels' headers take for granted.
#pragma once

#include <cstddef>
#include <cstdio>
#include <vector>

#include <gptq/grouped_gemm.hpp>
#include <gptq/packed.hpp>
#include <gptq/packed_file.hpp>
#include <gptq/parallel.hpp>
#include <gptq/thread_pool.hpp>

using q4 = gptq::format<gptq::asymmetric, 4, 128>;
extern gptq::packed_view<q4> w, w2;
extern std::uint8_t const* codes;
extern gptq::float16 const* scales;
extern std::vector<std::uint8_t> code_bytes;
extern std::vector<gptq::float16> scale_values;
extern float const* x;
extern float *y, *y2;
extern void* workspace;
extern gptq::index_t out, in, tokens, first_row, last_row;
extern gptq::quantized_layer<q4> layer;

namespace format_spec_hpp {
template <class Format>
void run();
}

namespace epilogue_hpp {
extern gptq::packed_view<q4> gate, up;
extern gptq::activations<gptq::precision::int8> a;
extern float const* bias;
extern gptq::bfloat16* y16;
extern gptq::index_t stride;
}  // namespace epilogue_hpp

namespace steps_hpp {
using epilogue_hpp::a;
using epilogue_hpp::bias;
using epilogue_hpp::stride;
}  // namespace steps_hpp

namespace grouped_gemm_hpp {
extern gptq::packed_view<q4> q, k, v;
extern float *y_q, *y_k, *y_v;
extern gptq::activations<gptq::precision::int8> a;
extern int thread, threads, experts;
extern gptq::packed_view<q4> const* expert;
extern gptq::grouped_product<q4>* list;
extern gptq::index_t top_k;
extern std::int32_t *expert_ids, *entries, *first, *token_ids;
}  // namespace grouped_gemm_hpp

namespace thread_pool_hpp {
void run(int part);
}

namespace parallel_hpp {
struct {
  void run(int parts, auto const& f) {
    for (int part = 0; part < parts; ++part) f(part);
  }
} pool;
int const parts = 2;
auto const executor = [](int parts, auto const& f) noexcept { pool.run(parts, f); };
}  // namespace parallel_hpp
