// Memory at multiples of 64 bytes.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace gptq::detail {

/// std::allocator with 64-byte alignment: a cache line, and the widest vector.
template <class T>
struct aligned_allocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{64};

  aligned_allocator() = default;
  template <class U>
  constexpr explicit aligned_allocator(aligned_allocator<U> const&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), alignment)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, alignment); }
  bool operator==(aligned_allocator const&) const = default;
};

template <class T>
using aligned_vector = std::vector<T, aligned_allocator<T>>;

}  // namespace gptq::detail
