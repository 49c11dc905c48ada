// Everything but CUDA and checkpoints: quantize, pack, multiply.
//
//   gptq::hessian h(in_features);
//   for (auto const& x : calibration) h.add(x);                      // [tokens, in], one sequence at a time
//   using q4 = gptq::format<gptq::symmetric, 4, 128>;
//   auto const packed = gptq::pack(gptq::quantize<q4>(weight, h));
//   std::vector<float> x(static_cast<std::size_t>(packed.in())), y(static_cast<std::size_t>(packed.out()));
//   gptq::gemv(packed.view(), x.data(), y.data());                   // y = W x
//
// An engine that only runs packed weights includes gemv.hpp or gemm.hpp, which need no Eigen.
#pragma once

#include <gptq/activations.hpp>
#include <gptq/checks.hpp>
#include <gptq/code_books.hpp>
#include <gptq/config.hpp>
#include <gptq/dispatch.hpp>
#include <gptq/epilogue.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/float8.hpp>
#include <gptq/format.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/gemm.hpp>
#include <gptq/gemv.hpp>
#include <gptq/grid.hpp>
#include <gptq/grouped_gemm.hpp>
#include <gptq/hessian.hpp>
#include <gptq/input_error.hpp>
#include <gptq/isa.hpp>
#include <gptq/layer.hpp>
#include <gptq/layout.hpp>
#include <gptq/observer.hpp>
#include <gptq/options.hpp>
#include <gptq/packed.hpp>
#include <gptq/packed_file.hpp>
#include <gptq/parallel.hpp>
#include <gptq/prepare.hpp>
#include <gptq/quantize.hpp>
#include <gptq/reference.hpp>
#include <gptq/scheme.hpp>
#include <gptq/steps.hpp>
#include <gptq/thread_pool.hpp>
