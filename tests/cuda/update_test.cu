// What quantized columns pass on to later ones, by the kernel of compute capability 9.0, against float64.
#include <algorithm>
#include <cmath>

#include <gptq/cuda/detail/update_sm90.cuh>

#include "catch.hpp"
#include "support.cuh"

using gptq::index_t;
namespace cuda = gptq::cuda;
namespace detail = gptq::cuda::detail;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

void check_update(index_t rows, int columns, int inner, bool add, test::random& random,
                  cuda::device const& gpu) {
  INFO(rows << " rows, " << columns << " columns, " << inner << " that pass on" << (add ? ", added" : ""));
  index_t const ld = (std::max(columns, inner) + 7) / 8 * 8 + 8;
  auto const numbers = [&](index_t count) { return random.normals(at(count * ld)); };
  auto const differences = numbers(rows), factor = numbers(columns), before = numbers(rows);
  test::device_vector<float> const d(differences), r(factor);
  test::device_vector<float> const f(add ? before : std::vector<float>(before.size(), NAN));
  detail::launch_update_sm90({d.data(), r.data(), f.data(), ld, rows, columns, inner, add}, gpu, nullptr);
  auto const result = f.host();
  double farthest = 0.0;  // as a share of what is added up
  std::size_t touched = 0;
  for (index_t row = 0; row < rows; ++row) {
    for (index_t column = 0; column < ld; ++column) {
      float const value = result[at(row * ld + column)];
      float const had = add ? before[at(row * ld + column)] : 0.0F;
      if (column >= columns) {
        touched += add ? value != had : !std::isnan(value);
        continue;
      }
      double sum = had, size = std::abs(had);
      for (int i = 0; i < inner; ++i) {
        double const term = double{differences[at(row * ld + i)]} * double{factor[at(column * ld + i)]};
        sum += term, size += std::abs(term);
      }
      double const distance = std::abs(double{value} - sum) / size;
      if (!(distance <= farthest)) farthest = distance;  // so that NaN is the farthest
    }
  }
  CHECK(farthest < 0x1p-22);
  CHECK(touched == 0);
}

}  // namespace

TEST_CASE("what is passed on to later columns is as close as in float32") {
  if (!test::have_gpu()) return;
  auto const gpu = cuda::device::current();
  if (!detail::update_sm90_runs(gpu)) return;
  auto random = test::fresh_random();
  for (bool const add : {false, true}) {
    check_update(1, 8, 32, add, random, gpu);
    check_update(5, 130, 96, add, random, gpu);
    check_update(128, 128, 128, add, random, gpu);
    check_update(300, 1032, 512, add, random, gpu);
    check_update(1700, 2400, 64, add, random, gpu);  // more tiles than there are multiprocessors
  }
}
