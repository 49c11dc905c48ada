// Where kernels store what they have summed up, and what is done to it before.
#pragma once

#include <cstdint>

#include <gptq/cuda/kernels/numbers.cuh>
#include <gptq/steps.hpp>

namespace gptq::cuda::detail {

/// Steps (steps.hpp), one after the other.
template <class... Steps>
struct step_list {
  __device__ __forceinline__ void operator()(float&, index_t, index_t) const {}
};
template <class First, class... Rest>
struct step_list<First, Rest...> {
  First first;
  step_list<Rest...> rest;

  __device__ __forceinline__ void operator()(float& value, index_t token, index_t row) const {
    first(&value, token, row, index_t{1});
    rest(value, token, row);
  }
};

template <class First, class... Rest>
step_list<First, Rest...> list_steps(First const& first, Rest const&... rest);
inline step_list<> list_steps() { return {}; }
template <class First, class... Rest>
step_list<First, Rest...> list_steps(First const& first, Rest const&... rest) {
  return {first, list_steps(rest...)};
}

/// y[token, row] at data[token * stride + row], of type Y, after `Steps`.
template <class Y, class... Steps>
struct results {
  using number = Y;
  using rounded_to = Y;  ///< what the result is in the end, and has the precision of
  static constexpr bool plain = sizeof...(Steps) == 0;
  Y* data;
  index_t stride;
  step_list<Steps...> steps;
  index_t first_token = 0;  ///< what kernels call token 0

  __device__ __forceinline__ Y finished(index_t token, index_t row, float value) const {
    if constexpr (!plain) steps(value, first_token + token, row);
    return to<Y>(value);
  }
  __device__ __forceinline__ void store(index_t token, index_t row, float value) const {
    data[token * stride + row] = finished(token, row, value);
  }
  /// Whether four 16-bit results of a token, of rows from a multiple of 4 on, may be stored at once.
  __device__ __forceinline__ bool in_fours() const {
    return stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(data) % 8 == 0;
  }
};

/// Sums that somebody reads in float32 and who rounds what comes of them to Y.
template <class Y>
struct intermediate_results : results<float> {
  using rounded_to = Y;
};

/// y[tokens, out] without gaps and as it is.
template <class Y>
results<Y> plain_results(Y* y, index_t out) {
  return {y, out, {}, 0};
}

}  // namespace gptq::cuda::detail
