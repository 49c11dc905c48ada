// gptq::cuda::gemm of activations in float32: what each number of tokens leads to.
#include "gemm_check.cuh"

using gptq::format;

TEST_CASE("gemm of float32 agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_gemm<format<gptq::asymmetric, 3, 128, float>, float, float>(random);
}
