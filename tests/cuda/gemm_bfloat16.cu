// gptq::cuda::gemm of activations in bfloat16: what each number of tokens leads to.
#include "gemm_check.cuh"

using gptq::format;

TEST_CASE("gemm of bfloat16 agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_gemm<format<gptq::asymmetric, 4, 64>, __nv_bfloat16, __nv_bfloat16>(random);
  test::check_gemm<format<gptq::asymmetric, 8, gptq::whole_row>, __nv_bfloat16, float>(random);
  test::check_gemm<format<gptq::symmetric, 8, 128, float>, __nv_bfloat16, __nv_bfloat16>(random);
}

TEST_CASE("gemm of bfloat16 by cuBLAS agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::blas_handle const blas;
  test::check_gemm_by_blas<format<gptq::asymmetric, 4, 64>, __nv_bfloat16>(blas.handle, random);
  test::check_gemm_by_blas<format<gptq::symmetric, 8, 128, float>, __nv_bfloat16>(blas.handle, random);
}
