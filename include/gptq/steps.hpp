// What is done to the results of a product next, on the CPU (epilogue.hpp) and on the GPU
// (cuda/epilogue.cuh), and where they go.
//
//   gptq::gemm(w, a, gptq::output{y, stride}, {0, w.out}, gptq::add_bias{bias}, gptq::relu{});
//
// A step of your own, for both:
//
//   struct double_it {
//     GPTQ_HOST_DEVICE void operator()(float* v, gptq::index_t, gptq::index_t, gptq::index_t n) const noexcept {
//       for (gptq::index_t i = 0; i < n; ++i) v[i] *= 2.0F;
//     }
//   };
//
// A step is anything that can be called as step(float* values, index_t token, index_t first_row, index_t
// count), for the results of rows first_row, ... of a token, and changes them in place; it has to be noexcept
// and, for the GPU, trivially copyable, with pointers to device memory.
#pragma once

#include <type_traits>

#include <gptq/config.hpp>

namespace gptq {

namespace detail {
// Rounded each by itself: on the device a product and a sum would become one fused operation.
GPTQ_INLINE GPTQ_HOST_DEVICE float times(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
GPTQ_INLINE GPTQ_HOST_DEVICE float plus(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
// The C library's, or the device's.
GPTQ_INLINE GPTQ_HOST_DEVICE float exponential(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
  return __builtin_expf(x);
#endif
}
GPTQ_INLINE GPTQ_HOST_DEVICE float error_function(float x) {
#ifdef __CUDA_ARCH__
  return ::erff(x);
#else
  return __builtin_erff(x);
#endif
}
}  // namespace detail

/// Where results go: y[token, row] at data[token * stride + row]; a stride of 0 stands for the rows of the
/// matrix.
/// @tparam T  float, float16 or bfloat16
template <class T>
struct output {
  T* data;
  index_t stride = 0;
};
template <class T>
output(T*) -> output<T>;
template <class T>
output(T*, index_t) -> output<T>;

/// v + values[row]
struct add_bias {
  float const* values;
  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t /*token*/, index_t row,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = detail::plus(v[i], values[row + i]);
  }
};

/// v + values[token, row], float, float16 or bfloat16, `stride` apart: 0 for one token, or the same for all.
template <class T>
struct add_residual {
  T const* values;
  index_t stride = 0;
  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t token, index_t row,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i)
      v[i] = detail::plus(v[i], static_cast<float>(values[token * stride + row + i]));
  }
};
template <class T>
add_residual(T*) -> add_residual<std::remove_const_t<T>>;
template <class T>
add_residual(T*, index_t) -> add_residual<std::remove_const_t<T>>;

/// v * factor
struct scale_by {
  float factor;
  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t /*token*/, index_t /*row*/,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = detail::times(v[i], factor);
  }
};

/// v, but at least `low` and at most `high`; NaN stays NaN.
struct clamp_to {
  float low, high;
  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t /*token*/, index_t /*row*/,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = v[i] < low ? low : v[i] > high ? high : v[i];
  }
};

/// v, but at least 0; NaN stays NaN.
struct relu {
  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t /*token*/, index_t /*row*/,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = v[i] < 0.0F ? 0.0F : v[i];
  }
};

/// v / (1 + exp(-v)), with the expf of the C library or the device.
struct silu {
  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t /*token*/, index_t /*row*/,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = v[i] / (1.0F + detail::exponential(-v[i]));
  }
};

/// v/2 (1 + erf(v / sqrt 2)), with the erff of the C library or the device.
struct gelu {
  GPTQ_INLINE GPTQ_HOST_DEVICE void operator()(float* v, index_t /*token*/, index_t /*row*/,
                                               index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i)
      v[i] = detail::times(0.5F * v[i], 1.0F + detail::error_function(v[i] * 0.70710678F));
  }
};

}  // namespace gptq
