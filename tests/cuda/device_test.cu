// device.cuh and error.cuh: errors have their type and say what failed; a launch that cannot be is an error at the call.
#include "catch.hpp"
#include "support.cuh"

namespace cuda = gptq::cuda;

namespace {
__global__ void store(int* where, int value) { *where = value; }
}  // namespace

TEST_CASE("a failed call throws what it was doing and its code") {
  try {
    cuda::check(cudaErrorMemoryAllocation, "allocating a workspace");
    FAIL("no exception");
  } catch (cuda::runtime_error const& e) {
    CHECK(e.code == cudaErrorMemoryAllocation);
    CHECK(std::string(e.what()).find("allocating a workspace") != std::string::npos);
  }
  CHECK_NOTHROW(cuda::check(cudaSuccess, ""));
  CHECK_THROWS_AS(cuda::check(CUBLAS_STATUS_INVALID_VALUE, "a product"), cuda::library_error);
  CHECK_THROWS_AS(cuda::check(CUSOLVER_STATUS_INTERNAL_ERROR, "a factorization"), gptq::error);
}

TEST_CASE("a kernel is launched") {
  if (!test::have_gpu()) return;
  test::device_vector<int> where(1);
  cuda::launch(store, {.grid = 1, .block = 1}, where.data(), 7);
  CHECK(where.host()[0] == 7);
  CHECK(cuda::device::current().multiprocessors > 0);
}

// compute-sanitizer counts a call that fails as an error of the program.
TEST_CASE("a launch that CUDA refuses throws", "[refused]") {
  if (!test::have_gpu()) return;
  test::device_vector<int> where(1);
  CHECK_THROWS_AS(cuda::launch(store, {.grid = 1, .block = 4096}, where.data(), 8), cuda::runtime_error);
  CHECK(cudaGetLastError() == cudaSuccess);
}
