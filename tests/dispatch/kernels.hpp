// Products in formats that between them reach all code that kernels are made of; a table for each
// architecture.
#pragma once

#include <gptq/packed.hpp>

using q2 = gptq::format<gptq::asymmetric, 2, 32>;
using q3 = gptq::format<gptq::symmetric, 3, 40, float>;
using q4 = gptq::format<gptq::half_step, 4, 128>;
using q8 = gptq::format<gptq::asymmetric, 8, gptq::whole_row>;

/// y[tokens, out] = X W' for x[tokens, in]; `workspace` is large enough for any precision.
template <class Format, class T>
using product = void (*)(gptq::packed_view<Format> const& w, T const* x, gptq::index_t tokens,
                         void* workspace, float* y);

struct kernels {
  product<q2, gptq::float16> int8_gemm;
  product<q3, gptq::bfloat16> int15_gemv;
  product<q4, float> float32_gemm;
  product<q8, float> int23_in_parts;
};

template <class Isa>
kernels kernels_for();
