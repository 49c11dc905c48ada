// The Hessian's sums against sums in double, for every type of activations.
#include <cmath>
#include <limits>

#include <gptq/cuda/hessian.cuh>

#include "catch.hpp"
#include "support.cuh"

using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

template <class T>
std::vector<T> activations(index_t tokens, index_t in, test::random& random) {
  std::vector<T> x(static_cast<std::size_t>(tokens * in));
  for (T& v : x) v = T(random.normal());
  return x;
}

/// Adds x x' in double.
template <class T>
void add_exactly(std::vector<double>& sum, std::vector<T> const& x, index_t in) {
  auto const n = static_cast<std::size_t>(in);
  for (std::size_t t = 0; t < x.size() / n; ++t) {
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        sum[i * n + j] += static_cast<double>(static_cast<float>(x[t * n + i])) *
                          static_cast<double>(static_cast<float>(x[t * n + j]));
      }
    }
  }
}

double relative_difference(std::vector<float> const& a, std::vector<double> const& b) {
  double difference = 0.0, size = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2.0);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

std::vector<float> downloaded(cuda::hessian const& h) {
  std::vector<float> sum(static_cast<std::size_t>(h.in_features() * h.in_features()));
  h.download(sum.data());
  return sum;
}

template <class T>
void check_sums(double tolerance, test::random& random) {
  cuda::context ctx;
  for (index_t const in : {8, 130, 333}) {
    INFO(in);
    cuda::hessian h(ctx, in);
    std::vector<double> expected(static_cast<std::size_t>(in * in));
    for (index_t const tokens : {1, 300, 77}) {
      auto const x = activations<T>(tokens, in, random);
      test::device_vector<T> const on_device(x);
      h.add(on_device.data(), tokens);
      add_exactly(expected, x, in);
    }
    auto const sum = downloaded(h);
    CHECK(relative_difference(sum, expected) < tolerance);
    bool symmetric = true;
    for (index_t i = 0; i < in; ++i) {
      for (index_t j = 0; j < i; ++j) {
        symmetric = symmetric &&
                    sum[static_cast<std::size_t>(i * in + j)] == sum[static_cast<std::size_t>(j * in + i)];
      }
    }
    CHECK(symmetric);
    CHECK(h.sequences() == 3);
    CHECK(h.tokens() == 378.0);
    CHECK(h.scale() == 2.0 / 3.0);
  }
}

}  // namespace

TEST_CASE("products of 16-bit activations are exact, and their sums are float32") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  check_sums<gptq::bfloat16>(3e-6, random);
  check_sums<gptq::float16>(3e-6, random);
}

TEST_CASE("float32 activations lose nothing") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  check_sums<float>(5e-7, random);
}

TEST_CASE("parts merge, and sums from elsewhere are taken over") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  index_t const in = 40;
  auto const x = activations<float>(64, in, random);
  test::device_vector<float> const on_device(x);
  cuda::hessian first(ctx, in), second(ctx, in);
  first.add(on_device.data(), 24);
  second.add(on_device.data() + 24 * in, 40);
  cuda::hessian at_once(ctx, in);
  at_once.add(on_device.data(), 64, 2);
  CHECK(at_once.tokens() == 64.0);
  CHECK(at_once.sequences() == 2);
  first.merge(second);
  std::vector<double> expected(static_cast<std::size_t>(in * in));
  add_exactly(expected, x, in);
  auto const merged = downloaded(first);
  CHECK(relative_difference(merged, expected) < 5e-7);
  CHECK(relative_difference(downloaded(at_once), expected) < 5e-7);
  auto lower = merged;
  for (std::size_t j = 0; j < 40; ++j) {
    for (std::size_t i = 0; i < j; ++i) lower[j * 40 + i] = std::numeric_limits<float>::quiet_NaN();
  }
  auto const all = cuda::hessian::from_sum(ctx, lower.data(), in, first.tokens(), first.sequences());
  CHECK(downloaded(all) == merged);
  CHECK(all.tokens() == 64.0);
  CHECK(all.sequences() == 2);
}

TEST_CASE("no tokens add nothing") {
  if (!test::have_gpu()) return;
  cuda::context ctx;
  cuda::hessian h(ctx, 8);
  h.add(static_cast<float const*>(nullptr), 0);
  h.add(static_cast<gptq::float16 const*>(nullptr), 0);
  CHECK(h.tokens() == 0.0);
  CHECK(h.sequences() == 0);
  CHECK(downloaded(h) == std::vector<float>(64, 0.0F));
}

TEST_CASE("wrong shapes are errors") {
  if (!test::have_gpu()) return;
  cuda::context ctx;
  cuda::hessian h(ctx, 8), other(ctx, 16);
  CHECK_THROWS_AS(cuda::hessian(ctx, 0), cuda::invalid_argument);
  CHECK_THROWS_AS(h.add(static_cast<float const*>(nullptr), -1), cuda::invalid_argument);
  CHECK_THROWS_AS(h.add(other.sum(), 1, 0), cuda::invalid_argument);
  CHECK_THROWS_AS(h.merge(other), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::hessian::from_sum(ctx, other.sum(), 16, 1.0, 0), cuda::invalid_argument);
}
