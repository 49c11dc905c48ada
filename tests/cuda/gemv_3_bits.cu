// gptq::cuda::gemv of 3-bit codes: every scheme, type, group size, odd shapes.
#include "gemv_check.cuh"

using gptq::format;

TEST_CASE("gemv of 3 bits agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_gemv<format<gptq::half_step, 3, 128>, __half, float>(random);
  test::check_gemv<format<gptq::asymmetric, 3, 64>, __nv_bfloat16, float>(random);
}

TEST_CASE("gemv of 3 bits on compute capability 9.0, however its work is shared out") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_shares<format<gptq::half_step, 3, 64>, __half, __half>(random);
}
