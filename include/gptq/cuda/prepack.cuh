// From a packed matrix to the layout of the device, and back without a change.
//
//   gptq::cuda::prepacked_matrix<q4> copy(packed.view());        // on the device, made once
//   gptq::cuda::prepacked_view<q4> view = copy.view();           // what gemv and gemm take
//
// Or in memory of your own, from a packed matrix that is on the device already, of which there is a view:
//
//   gptq::cuda::prepacked_layout<q4> layout{there.out, there.in};          // prepacked.cuh
//   cudaMalloc(&memory, layout.bytes(there.order != nullptr));
//   auto view = gptq::cuda::prepack(there, memory, stream);
#pragma once

#include <cstdint>
#include <cuda_runtime.h>
#include <utility>
#include <vector>

#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/prepacking.cuh>
#include <gptq/cuda/prepacked.cuh>
#include <gptq/packed.hpp>

namespace gptq::cuda {

/// The view of a prepacked matrix in memory of layout.bytes(permuted) bytes, aligned to 256 bytes. Throws
/// invalid_argument on a shape that cannot be: up to 2^22 rows and 2^24 columns are possible.
template <device_format Format>
prepacked_view<Format> prepacked_at(void const* memory, prepacked_layout<Format> layout, bool permuted) {
  return detail::view_at(memory, layout, permuted);
}

/// Prepacks on the host: `packed` and `memory`, as prepacked_at() takes it, are host memory.
template <device_format Format>
prepacked_view<Format> prepack(packed_view<Format> const& packed, void* memory) {
  return detail::prepack_on_host(packed, memory);
}

/// Prepacks on the device, in stream order: `packed` points to device memory, and so does `memory`. Throws
/// invalid_argument, unsupported_device or runtime_error.
template <device_format Format>
prepacked_view<Format> prepack(packed_view<Format> const& packed, void* memory, cudaStream_t stream) {
  return detail::prepack_on_device(packed, memory, stream);
}

/// The packed matrix again, exactly: the view is of host memory.
template <device_format Format>
packed_matrix<Format> unprepack(prepacked_view<Format> const& view) {
  return detail::unprepack_on_host(view);
}

/// A prepacked matrix that owns device memory. Copying and prepacking are done when the constructor returns.
template <device_format Format>
class prepacked_matrix {
 public:
  /// From a matrix in host memory. Throws invalid_argument, unsupported_device or runtime_error.
  explicit prepacked_matrix(packed_view<Format> const& packed)
      : layout_{packed.out, packed.in},
        permuted_(packed.order != nullptr),
        memory_(detail::prepacked_copy(packed)) {}
  prepacked_matrix(prepacked_matrix&& other) noexcept
      : layout_(other.layout_), permuted_(other.permuted_), memory_(std::exchange(other.memory_, nullptr)) {}
  prepacked_matrix& operator=(prepacked_matrix other) noexcept {
    std::swap(layout_, other.layout_);
    std::swap(permuted_, other.permuted_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~prepacked_matrix() { cudaFree(memory_); }

  prepacked_view<Format> view() const { return prepacked_at(memory_, layout_, permuted_); }
  index_t bytes() const { return layout_.bytes(permuted_); }
  /// Back to the host.
  packed_matrix<Format> unprepack() const {
    std::vector<std::uint8_t> host(static_cast<std::size_t>(bytes()));
    check(cudaMemcpy(host.data(), memory_, host.size(), cudaMemcpyDeviceToHost),
          "copying a prepacked matrix from the device");
    return cuda::unprepack(prepacked_at(host.data(), layout_, permuted_));
  }

 private:
  prepacked_layout<Format> layout_;
  bool permuted_;
  void* memory_;
};

}  // namespace gptq::cuda
