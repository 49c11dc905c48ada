// What the kernel tests of one architecture and the tests themselves share: kernels_isa.cpp is compiled for
// the architecture and holds nothing but calls, kernels_test.cpp is compiled once, for any CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <gptq/activations.hpp>
#include <gptq/code_books.hpp>
#include <gptq/packed.hpp>

#include "support.hpp"

namespace test {

/// A packed_view without its type.
struct plain_view {
  std::uint8_t const* codes;
  void const* scales;
  std::uint8_t const* zeros;
  std::int32_t const* order;
  index_t out;
  index_t in;
  float matrix_scale = 1.0F;
};

template <class Format>
gptq::packed_view<Format> typed(plain_view const& w) {
  gptq::packed_view<Format> view{
      w.codes, static_cast<typename Format::scale const*>(w.scales), w.zeros, w.order, w.out, w.in};
  if constexpr (Format::has_matrix_scale) view.matrix_scale = w.matrix_scale;
  return view;
}

/// Types of x.
enum class x_type { float32, float16, bfloat16 };

/// Rows first..last-1 of y, from prepared activations or from x.
using prepared_product = void (*)(plain_view const&, void const* workspace, index_t tokens, float* y,
                                  index_t first, index_t last);
using raw_product = void (*)(plain_view const&, x_type, void const* x, float* y, index_t first, index_t last);

/// The kernels of one format and precision.
struct kernel {
  gptq::precision precision;
  prepared_product gemv;
  prepared_product gemm;  ///< or null: not compiled
  raw_product raw_gemv;   ///< or null
};

/// prepare() for tokens first..last-1.
struct preparation {
  gptq::precision precision;
  int group_size;
  std::size_t (*bytes)(index_t in, index_t tokens);
  void (*run)(plain_view const&, x_type, void const* x, index_t tokens, void* workspace, index_t first,
              index_t last);
};

/// An architecture, compiled. Constants only: nothing of it runs before the CPU is known to have it.
struct architecture {
  std::string_view name;
  std::string_view native;          ///< what isa::native is with its flags
  bool fused;                       ///< whether multiply-add is one rounding
  std::span<kernel const> kernels;  ///< one for each of `cases`
  std::span<preparation const> preparations;
};

extern architecture const architecture_under_test;

/// What is compiled for a format and precision beside gemv from prepared activations.
enum parts { only_gemv = 0, with_gemm = 1, with_raw = 2 };

template <class Format, gptq::precision Precision, int Parts>
struct kernel_case {
  using format = Format;
  static constexpr gptq::precision precision = Precision;
  static constexpr int parts = Parts;
};

template <class... Cases>
struct case_list {};

template <class... A, class... B>
case_list<A..., B...> joined(case_list<A...>, case_list<B...>);

// The code of a kernel depends on the width, on where the zero point is (at 2^(bits-1), at another constant,
// stored, none: levels in a table, small ones or any), on the precision, on the type of the scales, and on whether chunks have 32, 64, 128 or any number
// of columns.

template <class Scheme, int Bits, int GroupSize, gptq::precision P, int Parts = only_gemv,
          class Scale = gptq::float16>
using one = kernel_case<gptq::format<Scheme, Bits, GroupSize, Scale>, P, Parts>;

using gptq::asymmetric;
using gptq::fixed_zero;
using gptq::half_step;
using gptq::symmetric;
using gptq::whole_row;
using enum gptq::precision;

#if defined(GPTQ_TEST_EVERY_KERNEL)
inline constexpr int gemm_if_every = with_gemm;
#else
inline constexpr int gemm_if_every = only_gemv;
#endif

/// Each width with each zero point, each with each precision, and each width with each of these; gemm of each
/// width and each precision.
using covering_cases = case_list<                                    //
    one<fixed_zero, 4, 128, int8, with_gemm | with_raw>,             //
    one<half_step, 4, 72, int15, with_gemm>,                         //
    one<asymmetric, 4, 120, int23, with_gemm | with_raw, float>,     //
    one<symmetric, 4, 200, float32, with_gemm | with_raw>,           //
    one<asymmetric, 3, 128, int8, gemm_if_every>,                    //
    one<fixed_zero, 3, 24, int15, with_gemm>,                        //
    one<five_levels, 3, 32, int23, gemm_if_every>,                   //
    one<half_step, 3, 8, float32, with_gemm>,                        //
    one<mean_ternary, 2, 64, int8, gemm_if_every>,                   //
    one<asymmetric, 2, 128, int15, gemm_if_every>,                   //
    one<half_step, 2, 24, int23, with_gemm, float>,                  //
    one<even_zero, 2, 24, float32, with_gemm>,                       //
    one<half_step, 8, 32, int8, gemm_if_every>,                      //
    one<asymmetric, 8, whole_row, int15, gemm_if_every | with_raw>,  //
    one<symmetric, 8, 72, int23, with_gemm>,                         //
    one<fixed_zero, 8, 24, float32, with_gemm, float>,               //
    one<gptq::iq4_nl_levels, 4, 128, int8, with_gemm | with_raw>,    //
    one<gptq::e2m1_levels, 4, 32, int8, with_gemm, gptq::e8m0>,      //
    one<gptq::e2m1_levels, 4, 16, int15, with_gemm, gptq::e4m3>,     //
    one<gptq::e2m1_levels, 4, whole_row, int23>,                     //
    one<seven_levels, 3, 24, int15, only_gemv, float>,               //
    one<four_levels, 2, 40, float32, gemm_if_every>>;

/// What is left of every width with every zero point and every precision.
using other_cases = case_list<  //
    one<half_step, 4, 24, int8, only_gemv, float>, one<asymmetric, 4, 64, int8>,
    one<symmetric, 4, whole_row, int15, with_raw>, one<asymmetric, 4, 32, int15, only_gemv, float>,
    one<fixed_zero, 4, 8, int23>, one<half_step, 4, 264, int23>, one<half_step, 4, 64, float32>,
    one<even_zero, 4, 32, float32>,  //
    one<symmetric, 3, 24, int8, only_gemv, float>, one<five_levels, 3, 64, int8>,
    one<half_step, 3, whole_row, int15>, one<even_zero, 3, 8, int15>, one<symmetric, 3, 120, int23>,
    one<asymmetric, 3, 264, int23, with_raw, float>, one<fixed_zero, 3, 128, float32, only_gemv, float>,
    one<asymmetric, 3, 72, float32>,  //
    one<half_step, 2, 72, int8, with_raw>, one<asymmetric, 2, 8, int8, only_gemv, float>,
    one<symmetric, 2, 32, int15>, one<half_step, 2, 24, int15>, one<fixed_zero, 2, whole_row, int23>,
    one<asymmetric, 2, 40, int23>, one<mean_ternary, 2, 120, float32>,
    one<half_step, 2, 256, float32, with_raw>,  //
    one<symmetric, 8, 200, int8, with_raw>, one<asymmetric, 8, 24, int8>,
    one<fixed_zero, 8, 40, int15, only_gemv, float>, one<five_levels, 8, 24, int15, only_gemv, float>,
    one<half_step, 8, 8, int23>, one<asymmetric, 8, 32, int23, only_gemv, float>,
    one<half_step, 8, whole_row, float32>, one<asymmetric, 8, 128, float32, only_gemv, float>>;

/// For compilers that take their time, as with sanitizers.
using few_cases = case_list<  //
    one<asymmetric, 4, 24, int8, with_gemm>, one<half_step, 3, 24, int15>, one<fixed_zero, 8, 8, float32>,
    one<asymmetric, 2, 24, int23, with_raw>, one<gptq::e2m1_levels, 4, 16, int8, only_gemv, gptq::e4m3>,
    one<gptq::iq4_nl_levels, 4, 32, int15, with_gemm>>;

#if defined(GPTQ_TEST_EVERY_KERNEL)
using cases = decltype(joined(covering_cases{}, other_cases{}));
#elif defined(GPTQ_TEST_FEW_KERNELS)
using cases = few_cases;
#else
using cases = covering_cases;
#endif

}  // namespace test
