// gptq::cuda::gemv of 2-bit codes: every scheme, type, group size, odd shapes.
#include "gemv_check.cuh"

using gptq::format;

TEST_CASE("gemv of 2 bits agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_gemv<format<gptq::asymmetric, 2, 256>, float, __nv_bfloat16>(random);
  test::check_gemv<format<gptq::half_step, 2, 32>, __half, float>(random);
}

TEST_CASE("gemv of 2 bits on compute capability 9.0, however its work is shared out") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_shares<format<gptq::asymmetric, 2, 256>, __nv_bfloat16, float>(random);
}
