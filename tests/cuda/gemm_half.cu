// gptq::cuda::gemm of activations in float16: what each number of tokens leads to.
#include "gemm_check.cuh"

using gptq::format;

TEST_CASE("gemm of float16 agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::check_gemm<format<gptq::symmetric, 4, 128>, __half, __half>(random);
  test::check_gemm<format<gptq::half_step, 4, 32>, __half, float>(random);
  test::check_gemm<format<gptq::half_step, 2, 32>, __half, __half>(random);
}

TEST_CASE("gemm of float16 by cuBLAS agrees with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  test::blas_handle const blas;
  test::check_gemm_by_blas<format<gptq::symmetric, 4, 128>, __half>(blas.handle, random);
  test::check_gemm_by_blas<format<gptq::half_step, 2, 32>, __half>(blas.handle, random);
}
