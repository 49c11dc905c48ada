// What the code in README.md and docs/ takes for granted.
#pragma once

#include <iostream>
#include <vector>

#include <gptq/gptq.hpp>
#include <gptq/parallel.hpp>

// A layer that is quantized.
extern gptq::index_t in_features;
extern std::vector<gptq::matrix> calibration;
extern gptq::matrix weight;

// An engine's matrices, activations and memory.
extern std::uint8_t const* codes;
extern gptq::float16 const* scales;
extern gptq::index_t in, out, tokens, first_row, last_row;
extern float const* x;
extern float *y, *y2;
extern void* workspace;
extern gptq::packed_view<gptq::format<gptq::fixed_zero, 4, 128>> w2;

namespace first_layer_md {
using q4 = gptq::format<gptq::fixed_zero, 4, 128>;
extern gptq::hessian h;
extern gptq::quantized_layer<q4> layer;
}  // namespace first_layer_md

namespace port_your_engine_md {
using q4 = gptq::format<gptq::fixed_zero, 4, 128>;
extern gptq::packed_view<q4> w, q, k, v;
extern float *y_q, *y_k, *y_v;
extern gptq::activations<gptq::precision::int8> a;
extern int thread, threads;
}  // namespace port_your_engine_md
