// What quantized columns pass on to later ones, by the kernel of compute capability 9.0, against float64.
#include <algorithm>
#include <cmath>

#include <gptq/cuda/solver/update_sm90.cuh>

#include "catch.hpp"
#include "support.cuh"

using gptq::index_t;
namespace cuda = gptq::cuda;
namespace detail = gptq::cuda::detail;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Of matrices that are parts of larger ones, as those of a panel are.
void check_update(index_t rows, int columns, int inner, bool add, test::random& random,
                  cuda::device const& gpu) {
  INFO(rows << " rows, " << columns << " columns, " << inner << " that pass on" << (add ? ", added" : ""));
  constexpr index_t first = 8;
  index_t const ld = first + (std::max(columns, inner) + 7) / 8 * 8 + 8;
  auto const numbers = [&](index_t count) { return random.normals(at(count * ld)); };
  auto const differences = numbers(rows), factor = numbers(columns), before = numbers(rows);
  test::device_vector<float> const d(differences), r(factor);
  test::device_vector<float> const f(add ? before : std::vector<float>(before.size(), NAN));
  detail::launch_update_sm90(
      {d.data() + first, r.data() + first, f.data() + first, ld, rows, columns, inner, add},
      gpu.multiprocessors, nullptr);
  auto const result = f.host();
  double farthest = 0.0;               // as a share of what is added up
  double error = 0.0, error_32 = 0.0;  // sums of squares; of one sum in float32
  std::size_t touched = 0;
  for (index_t row = 0; row < rows; ++row) {
    for (index_t i = 0; i < ld; ++i) {
      float const value = result[at(row * ld + i)];
      float const had = add ? before[at(row * ld + i)] : 0.0F;
      index_t const column = i - first;
      if (column < 0 || column >= columns) {
        touched += add ? value != had : !std::isnan(value);
        continue;
      }
      double sum = had, size = std::abs(had);
      float sum_32 = had;
      for (int k = 0; k < inner; ++k) {
        float const a = differences[at(row * ld + first + k)], b = factor[at(column * ld + first + k)];
        double const term = double{a} * double{b};
        sum += term, size += std::abs(term);
        sum_32 = std::fma(a, b, sum_32);
      }
      double const distance = double{value} - sum, distance_32 = double{sum_32} - sum;
      error += distance * distance, error_32 += distance_32 * distance_32;
      if (!(std::abs(distance) / size <= farthest))
        farthest = std::abs(distance) / size;  // NaN is the farthest
    }
  }
  // At worst two numbers are off by 2^-23 each, a product by 2^-22 that is left out, and what is cut off adds
  // to that where a few products are most of the sum.
  CHECK(farthest < 0x1p-20);
  // Fewer columns round a sum less often in float32 than their numbers are rounded to TF32.
  if (inner >= 96 && rows * columns > 1000) CHECK(error < error_32);
  CHECK(touched == 0);
}

}  // namespace

TEST_CASE("what is passed on to later columns is as close as in float32") {
  if (!test::have_gpu()) return;
  auto const gpu = cuda::device::current();
  if (!detail::update_sm90_runs(gpu)) {
    std::puts("the kernel does not run here");
    return;
  }
  auto random = test::fresh_random();
  for (bool const add : {false, true}) {
    check_update(1, 8, 32, add, random, gpu);
    check_update(5, 130, 96, add, random, gpu);
    check_update(128, 128, 128, add, random, gpu);
    check_update(300, 1032, 512, add, random, gpu);
    // More tiles than there are multiprocessors.
    check_update(1700, 1250, 32, add, random, gpu);
    check_update(1700, 1250, 160, add, random, gpu);
  }
}
