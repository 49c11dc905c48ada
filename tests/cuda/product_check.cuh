// A product on the device against gptq::reference, in double, on numbers that are new in every run.
#pragma once

#include <cmath>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string>
#include <type_traits>
#include <vector>

#include <gptq/cuda/prepack.cuh>
#include <gptq/reference.hpp>

#include "catch.hpp"
#include "plain_layer.hpp"
#include "support.cuh"

namespace test {

/// A random matrix whose products with normal activations stay far from the limits of float16.
template <class Format>
gptq::packed_matrix<Format> random_matrix(index_t out, index_t in, bool permuted, random& numbers) {
  auto layer = random_layer(gptq::to_spec<Format>(), Format::levels, out, in, permuted, numbers);
  for (float& scale : layer.scales) {
    scale = typename Format::scale((0.5F + numbers.unit()) * (numbers.below(2) == 0 ? 0.0625F : -0.0625F) /
                                   static_cast<float>(1 << Format::bits));
  }
  return gptq::pack(gptq::quantized_layer<Format>{out,
                                                  in,
                                                  std::move(layer.codes),
                                                  std::move(layer.scales),
                                                  std::move(layer.zeros),
                                                  std::move(layer.order),
                                                  {}});
}

/// The host's type of the same bits.
template <class T>
using host_number =
    std::conditional_t<std::is_same_v<T, float>, float,
                       std::conditional_t<std::is_same_v<T, __half>, gptq::float16, gptq::bfloat16>>;

/// Largest ratio of error to expected value, both as norms over all entries; one entry may be off by ten
/// times that share of the root mean square.
template <class Y>
inline constexpr double tolerance = std::is_same_v<Y, float>    ? 1e-5
                                    : std::is_same_v<Y, __half> ? 2e-3
                                                                : 4e-3;

template <class Y>
void check_close(std::vector<Y> const& y, std::vector<double> const& expected) {
  REQUIRE(y.size() == expected.size());
  double error = 0.0, size = 0.0, worst = 0.0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    double const off = std::abs(static_cast<double>(static_cast<float>(y[i])) - expected[i]);
    error += off * off;
    size += expected[i] * expected[i];
    worst = off <= worst ? worst : off;  // a NaN stays
  }
  CHECK(std::sqrt(error) <= tolerance<Y> * std::sqrt(size));
  CHECK(worst <= 10 * tolerance<Y> * std::sqrt(size / static_cast<double>(y.size())));
}

/// Each product(view, x, tokens, y), with `tokens` random tokens, and nothing written behind y.
template <class Format, class X, class Y>
void check_product(index_t out, index_t in, index_t tokens, bool permuted, random& numbers,
                   auto&&... products) {
  INFO(gptq::to_string(gptq::to_spec<Format>())
       << ", " << out << " x " << in << ", " << tokens << " tokens of " << sizeof(X) << " to " << sizeof(Y)
       << " bytes" << (permuted ? ", permuted" : ""));
  auto const packed = random_matrix<Format>(out, in, permuted, numbers);
  gptq::cuda::prepacked_matrix<Format> const w(packed.view());
  std::vector<host_number<X>> x(static_cast<std::size_t>(tokens * in));
  for (auto& value : x) value = host_number<X>(numbers.normal());
  std::vector<double> expected(static_cast<std::size_t>(tokens * out));
  gptq::reference::gemm(packed.view(), x.data(), tokens, expected.data());

  device_vector<host_number<X>> const device_x(x);
  constexpr std::size_t guard = 64;
  device_vector<host_number<Y>> const y(expected.size() + guard);
  int which = 0;
  auto const check = [&](auto&& product) {
    INFO("product " << which++);
    y.poison();
    product(w.view(), reinterpret_cast<X const*>(device_x.data()), tokens, reinterpret_cast<Y*>(y.data()));
    auto result = y.host();
    for (std::size_t i = expected.size(); i < result.size(); ++i)
      CHECK(std::isnan(static_cast<float>(result[i])));
    result.resize(expected.size());
    std::vector<Y> typed(result.size());
    std::memcpy(static_cast<void*>(typed.data()), result.data(), result.size() * sizeof(Y));
    check_close(typed, expected);
  };
  (check(products), ...);
}

}  // namespace test
