// Vectors of the compiler's own, for products of rows with one vector: as short as a matrix's row, calling a
// BLAS for them takes longer than they do.
#pragma once

#include <cstdint>
#include <cstring>

#include <Eigen/Core>

#include <gptq/float16.hpp>

namespace lm {

inline constexpr Eigen::Index lanes = 16;
using vector [[gnu::vector_size(4 * lanes)]] = float;

/// values = the first `count` of `lanes` numbers, and zeros, maybe not aligned. By reference, because how
/// vectors are passed by value depends on the architecture.
inline void load(float const* from, std::size_t count, vector& values) {
  std::memcpy(&values, from, count * sizeof(float));
}
inline void load(gptq::bfloat16 const* from, std::size_t count, vector& values) {
  using words [[gnu::vector_size(2 * lanes)]] = std::uint16_t;
  using wide_words [[gnu::vector_size(4 * lanes)]] = std::uint32_t;
  words bits{};
  std::memcpy(&bits, from, count * sizeof(gptq::bfloat16));
  wide_words const wide = __builtin_convertvector(bits, wide_words) << 16;
  std::memcpy(&values, &wide, sizeof values);
}
inline void load(gptq::float16 const* from, std::size_t count, vector& values) {
  gptq::float16 halves[lanes] = {};
  std::memcpy(halves, from, count * sizeof(gptq::float16));
  for (Eigen::Index i = 0; i < lanes; ++i) values[i] = static_cast<float>(halves[i]);
}

inline float sum_of(vector const& values) {
  float sum[lanes];
  std::memcpy(sum, &values, sizeof sum);
  for (Eigen::Index half = lanes / 2; half > 0; half /= 2) {
    for (Eigen::Index j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return sum[0];
}

/// f(i, lanes) for each i where a vector of `size` numbers begins, and f(i, those left) for the rest: called
/// so that the compiler knows the count of all but the last.
template <class F>
void for_each_vector(Eigen::Index size, F const& f) {
  Eigen::Index i = 0;
  for (; i + lanes <= size; i += lanes) f(i, std::size_t{lanes});
  if (i < size) f(i, static_cast<std::size_t>(size - i));
}

}  // namespace lm
