// What bench_gemv and bench_gemm time, as tables of functions: one table for each architecture, and
// kernels.cpp is all of them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include <gptq/activations.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/layout.hpp>

#include "roofline.hpp"

namespace bench {

using gptq::index_t;
using gptq::precision;

template <gptq::quantization_scheme Scheme, int Bits, int GroupSize, precision Precision = precision::int8>
struct kernel_case {
  using format = gptq::format<Scheme, Bits, GroupSize>;
  static constexpr precision x = Precision;
};

template <class... Cases>
struct case_list {
  using formats = gptq::format_list<typename Cases::format...>;
};

/// Every one of these is a second or two of compiling for each architecture.
using cases = case_list<                                //
    kernel_case<gptq::fixed_zero, 4, 128>,              //
    kernel_case<gptq::asymmetric, 4, 128>,              //
    kernel_case<gptq::half_step, 4, 128>,               //
    kernel_case<gptq::fixed_zero, 2, 128>,              //
    kernel_case<gptq::fixed_zero, 3, 128>,              //
    kernel_case<gptq::fixed_zero, 8, 128>,              //
    kernel_case<gptq::asymmetric, 2, 128>,              //
    kernel_case<gptq::asymmetric, 3, 128>,              //
    kernel_case<gptq::fixed_zero, 4, 32>,               //
    kernel_case<gptq::fixed_zero, 4, 64>,               //
    kernel_case<gptq::fixed_zero, 4, gptq::whole_row>,  //
    kernel_case<gptq::fixed_zero, 4, 128, precision::int15>,
    kernel_case<gptq::fixed_zero, 4, 128, precision::int23>,
    kernel_case<gptq::fixed_zero, 4, 128, precision::float32>>;
/// All that isa::generic is asked.
using generic_cases = case_list<kernel_case<gptq::fixed_zero, 4, 128>>;

/// A packed_view without its type.
struct matrix {
  std::uint8_t const* codes;
  void const* scales;
  std::uint8_t const* zeros;
  index_t out;
  index_t in;
};

struct kernel {
  std::string_view scheme;
  int bits = 0;
  int group_size = 0;
  precision x = precision::int8;
  /// y[first_row..last_row-1] = W x, from x as it is. In bench_gemv.
  void (*gemv)(matrix const& w, float const* x, float* y, index_t first_row, index_t last_row) = nullptr;
  /// x[tokens, in] into a workspace, tokens first_token..last_token-1. This and gemm in bench_gemm.
  void (*prepare)(matrix const& w, float const* x, index_t tokens, void* workspace, index_t first_token,
                  index_t last_token) = nullptr;
  /// y[tokens, out], rows first_row..last_row-1 of W, from such a workspace
  void (*gemm)(matrix const& w, index_t tokens, void* workspace, float* y, index_t first_row,
               index_t last_row) = nullptr;
};

struct kernel_table {
  std::span<kernel const> kernels;
  std::span<roofline::reader const> readers;
};

/// Empty where the compiler's flags do not allow the architecture.
template <class Isa>
kernel_table kernels_for();

}  // namespace bench
