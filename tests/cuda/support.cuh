// What the tests on the GPU share.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <gptq/cuda/device.cuh>

#include "support.hpp"

namespace test {

/// Other numbers in every run; GPTQ_TEST_SEED repeats those of one.
inline random fresh_random() {
  char const* const given = std::getenv("GPTQ_TEST_SEED");
  auto const seed = given != nullptr ? static_cast<std::uint32_t>(std::strtoul(given, nullptr, 10))
                                     : static_cast<std::uint32_t>(std::random_device{}());
  std::printf("GPTQ_TEST_SEED=%u\n", seed);
  return random(seed);
}

/// Whether there is a GPU; says so where there is none, by which ctest knows that the test was skipped.
inline bool have_gpu() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  (void)cudaGetLastError();
  std::puts("no GPU here");
  return false;
}

/// Device memory that owns itself. Filled with bytes 0xff, which are a NaN in every floating-point type.
template <class T>
class device_vector {
 public:
  explicit device_vector(std::size_t size) : size_(size) {
    gptq::cuda::check(cudaMalloc(&data_, bytes() + 1), "allocating");
    poison();
  }
  explicit device_vector(std::vector<T> const& host) : device_vector(host.size()) {
    gptq::cuda::check(cudaMemcpy(data_, host.data(), bytes(), cudaMemcpyHostToDevice), "copying");
  }
  device_vector(device_vector const&) = delete;
  ~device_vector() { cudaFree(data_); }

  void poison() const { gptq::cuda::check(cudaMemset(data_, 0xff, bytes()), "poisoning"); }
  T* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    gptq::cuda::check(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), "copying");
    return values;
  }

 private:
  std::size_t size_;
  T* data_ = nullptr;
};

}  // namespace test
