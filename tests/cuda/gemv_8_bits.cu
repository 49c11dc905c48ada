// gptq::cuda::gemv of 8-bit codes: every scheme, type, group size, odd shapes.
#include "gemv_check.cuh"

using gptq::format;

TEST_CASE("gemv of 8 bits agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_gemv<format<gptq::fixed_zero, 8, 128, float>, float, float>(random);
  test::check_gemv<format<gptq::asymmetric, 8, 32>, __half, __half>(random);
}

TEST_CASE("gemv of 8 bits on compute capability 9.0, however its work is shared out") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_shares<format<gptq::asymmetric, 8, 32, float>, __half, __half>(random);
}
