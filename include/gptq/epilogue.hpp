// What an engine does to the results of a product next, done to them while they are in the cache: in steps, and into
// float, float16 or bfloat16, with a stride of yours between tokens.
//
//   gptq::gemv(w, a, gptq::output{y}, {0, w.out}, gptq::add_bias{bias});                  // y = W x + bias
//   gptq::gemm(w, a, gptq::output{y}, {0, w.out}, gptq::add_residual{y, w.out});          // Y += X W'
//   gptq::gemm(w, a, gptq::output{y16, stride}, {0, w.out}, gptq::scale_by{0.5F}, gptq::clamp_to{-9.0F, 9.0F});
//   gptq::gemv(w, x, gptq::output{y}, {0, w.out}, gptq::relu{});                          // x as it is, of one token
//   gptq::gated_gemm(gate, up, a, gptq::output{y}, {0, gate.out}, gptq::silu{});          // silu(gate x) * (up x)
//
// Results are, bit for bit, those of gemv() and gemm(), each step done to all of them in float32, in the order of the
// arguments, and at last rounded to the type of y. A step of your own is anything that can be called as
//
//   step(float* values, index_t token, index_t first_row, index_t count)    // values of rows first_row, ...
//
// and changes the values in place; it has to be noexcept. What is not asked for costs nothing: gemv() and gemm()
// without steps are other functions. y may be what a step reads (add_residual{y}), row by row.
#pragma once

#include <cstdint>
#include <type_traits>

#include <gptq/gemm.hpp>
#include <gptq/kernels/slabs.hpp>

namespace gptq {

/// Where results go: y[token, row] at data[token * stride + row]; a stride of 0 stands for the rows of the matrix.
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
  GPTQ_INLINE void operator()(float* v, index_t /*token*/, index_t row, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] += values[row + i];
  }
};

/// v + values[token, row], float, float16 or bfloat16, `stride` apart: 0 for one token, or the same for all.
template <class T>
struct add_residual {
  T const* values;
  index_t stride = 0;
  GPTQ_INLINE void operator()(float* v, index_t token, index_t row, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] += static_cast<float>(values[token * stride + row + i]);
  }
};
template <class T>
add_residual(T*) -> add_residual<std::remove_const_t<T>>;
template <class T>
add_residual(T*, index_t) -> add_residual<std::remove_const_t<T>>;

/// v * factor
struct scale_by {
  float factor;
  GPTQ_INLINE void operator()(float* v, index_t /*token*/, index_t /*row*/, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] *= factor;
  }
};

/// v, but at least `low` and at most `high`; NaN stays NaN.
struct clamp_to {
  float low, high;
  GPTQ_INLINE void operator()(float* v, index_t /*token*/, index_t /*row*/, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = v[i] < low ? low : v[i] > high ? high : v[i];
  }
};

/// v, but at least 0; NaN stays NaN.
struct relu {
  GPTQ_INLINE void operator()(float* v, index_t /*token*/, index_t /*row*/, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = v[i] < 0.0F ? 0.0F : v[i];
  }
};

/// v / (1 + exp(-v)), with the C library's expf.
struct silu {
  GPTQ_INLINE void operator()(float* v, index_t /*token*/, index_t /*row*/, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = v[i] / (1.0F + __builtin_expf(-v[i]));
  }
};

/// v/2 (1 + erf(v / sqrt 2)), with the C library's erff.
struct gelu {
  GPTQ_INLINE void operator()(float* v, index_t /*token*/, index_t /*row*/, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) v[i] = 0.5F * v[i] * (1.0F + __builtin_erff(v[i] * 0.70710678F));
  }
};

/// Y = X W' and then `steps`, for `rows`; other rows of y are left alone.
template <precision Precision, class Isa = isa::native, storage_format Format, class T, class... Steps>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, output<T> y, row_range rows,
          Steps const&... steps) noexcept {
  detail::expect_none(detail::find_argument_fault(w, x, rows, false), "gptq::gemm");
  detail::slab_rows<Isa>(w, x, {0, x.tokens}, y, rows, steps...);
}

/// The same for one token.
template <precision Precision, class Isa = isa::native, storage_format Format, class T, class... Steps>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, output<T> y, row_range rows,
          Steps const&... steps) noexcept {
  detail::expect_none(detail::find_argument_fault(w, x, rows, true), "gptq::gemv");
  detail::slab_rows<Isa>(w, x, {0, 1}, y, rows, steps...);
}

/// The same from x[in] as it is, float, float16 or bfloat16: prepared on the stack, some of it at a time, which is
/// repeated for every 1024 rows.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class X,
          class T, class... Steps>
void gemv(packed_view<Format> const& w, X const* x, output<T> y, row_range rows,
          Steps const&... steps) noexcept {
  detail::expect_none(rows.first < 0 || rows.last > w.out ? fault::rows : fault::none, "gptq::gemv");
  detail::raw_slab_rows<Isa, Precision>(w, x, y, rows, steps...);
}

/// Y = activation(X gate') * (X up') for matrices of the same shape: what the two first layers of a gated MLP do.
/// @param activation  a step: silu{}, gelu{}, ...
/// @param steps       done to the products of the two
template <precision Precision, class Isa = isa::native, storage_format Format, class T, class Activation,
          class... Steps>
void gated_gemm(packed_view<Format> const& gate, packed_view<Format> const& up,
                activations<Precision> const& x, output<T> y, row_range rows, Activation const& activation,
                Steps const&... steps) noexcept {
  detail::expect_none(detail::find_argument_fault(gate, x, rows, false), "gptq::gated_gemm, gate");
  detail::expect_none(detail::find_argument_fault(up, x, rows, false), "gptq::gated_gemm, up");
  detail::gated_slab_rows<Isa>(gate, up, x, {0, x.tokens}, y, rows, activation, steps...);
}

}  // namespace gptq
