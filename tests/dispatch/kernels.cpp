// Compiled once for each architecture.
#include "kernels.hpp"

#include <gptq/parallel.hpp>

using gptq::index_t;
using gptq::precision;

template <>
kernels kernels_for<gptq::isa::native>() {
  return {
      .int8_gemm = [](gptq::packed_view<q2> const& w, gptq::float16 const* x, index_t tokens, void* workspace,
                      float* y) { gptq::gemm(w, gptq::prepare(w, x, tokens, workspace), y); },
      .int15_gemv =
          [](gptq::packed_view<q3> const& w, gptq::bfloat16 const* x, index_t tokens, void*, float* y) {
            for (index_t t = 0; t < tokens; ++t) {
              gptq::gemv<precision::int15>(w, x + t * w.in, y + t * w.out);
            }
          },
      .float32_gemm =
          [](gptq::packed_view<q4> const& w, float const* x, index_t tokens, void* workspace, float* y) {
            gptq::gemm(w, gptq::prepare<precision::float32>(w, x, tokens, workspace), y);
          },
      .int23_in_parts =
          [](gptq::packed_view<q8> const& w, float const* x, index_t tokens, void* workspace, float* y) {
            auto const one_after_another = [](int parts, auto const& f) noexcept {
              for (int part = 0; part < parts; ++part) f(part);
            };
            auto const a =
                gptq::parallel_prepare<precision::int23>(w, x, tokens, workspace, one_after_another, 3);
            gptq::parallel_gemm(w, a, y, one_after_another, 3);
          },
  };
}
