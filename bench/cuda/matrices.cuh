// Numbers to multiply: matrices that go round through more bytes than a cache holds, and activations.
#pragma once

#include <cstdint>

#include <gptq/cuda/prepack.cuh>

#include "floor.cuh"

namespace bench {

using gptq::index_t;

template <class T>
T* allocate(std::size_t count) {
  void* p = nullptr;
  check(cudaMalloc(&p, count * sizeof(T)), "allocating");
  return static_cast<T*>(p);
}

/// Bytes that matrices are rotated through, or one matrix more.
inline constexpr std::size_t rotated = std::size_t{600} << 20;
inline int copy_count(std::size_t bytes) { return static_cast<int>(rotated / bytes) + 1; }

/// Between 1/2 and 1, of either sign; a multiple of 4 of them.
inline void fill_activations(cudaStream_t stream, __half* x, std::size_t count) {
  fill<<<1024, 256, 0, stream>>>(reinterpret_cast<std::uint64_t*>(x), count / 4, 0x83ff83ff83ff83ffull,
                                 0x3800380038003800ull);
}

/// Prepacked matrices of any codes and zeros, with float16 scales between 2^-8 and 2^-7, in memory for the
/// bytes above and one matrix.
template <class Format>
class matrices {
 public:
  matrices(cudaStream_t stream, char* memory, index_t out, index_t in) : memory_(memory), layout_{out, in} {
    fill<<<1024, 256, 0, stream>>>(reinterpret_cast<std::uint64_t*>(memory), count() * bytes() / 8, ~0ull, 0);
    for (int i = 0; i < count(); ++i) {
      fill<<<64, 256, 0, stream>>>(
          reinterpret_cast<std::uint64_t*>(memory + i * bytes() + layout_.scale_offset()),
          static_cast<std::size_t>(layout_.zero_offset() - layout_.scale_offset()) / 8, 0x03ff03ff03ff03ffull,
          0x1c001c001c001c00ull);
    }
  }

  std::size_t bytes() const { return static_cast<std::size_t>(layout_.bytes(false)); }
  int count() const { return copy_count(bytes()); }
  /// The i-th, and after the last the first.
  gptq::cuda::prepacked_view<Format> operator[](int i) const {
    return gptq::cuda::prepacked_at(memory_ + i % count() * bytes(), layout_, false);
  }

 private:
  char* memory_;
  gptq::cuda::prepacked_layout<Format> layout_;
};

}  // namespace bench
