// gptq::cuda::dequantize against the reference: rounded once.
#include <cmath>
#include <vector>

#include <gptq/cuda/dequantize.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

template <class Format, class T>
void check_dequantize(index_t out, index_t in, bool permuted, test::random& random) {
  INFO(gptq::to_string(gptq::to_spec<Format>())
       << ", " << out << " x " << in << (permuted ? ", permuted" : ""));
  auto const packed = test::random_matrix<Format>(out, in, permuted, random);
  cuda::prepacked_matrix<Format> const w(packed.view());
  std::vector<double> expected(static_cast<std::size_t>(out * in));
  gptq::reference::dequantize(packed.view(), expected.data());
  test::device_vector<test::host_number<T>> const weights(expected.size() + 8);
  cuda::dequantize(w.view(), reinterpret_cast<T*>(weights.data()));
  auto const result = weights.host();
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    wrong += static_cast<float>(result[i]) !=
             static_cast<float>(test::host_number<T>(static_cast<float>(expected[i])));
  }
  CHECK(wrong == 0);
  for (std::size_t i = expected.size(); i < result.size(); ++i)
    CHECK(std::isnan(static_cast<float>(result[i])));
}

}  // namespace

TEST_CASE("dequantize gives the reference's weights, rounded once") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  for (bool const permuted : {false, true}) {
    check_dequantize<format<gptq::symmetric, 4, 128>, __half>(50, 264, permuted, random);
    check_dequantize<format<gptq::asymmetric, 4, 64>, __nv_bfloat16>(33, 1003, permuted, random);
    check_dequantize<format<gptq::asymmetric, 3, 128, float>, float>(16, 520, permuted, random);
    check_dequantize<format<gptq::asymmetric, 8, gptq::whole_row>, float>(50, 300, permuted, random);
  }
}
