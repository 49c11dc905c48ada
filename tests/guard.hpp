// Memory between two pages that may not be touched: reading or writing a byte too many ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <unistd.h>

#include <sys/mman.h>

namespace test {

class guarded_memory {
 public:
  explicit guarded_memory(std::size_t capacity) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    size_ = (capacity + page_ - 1) / page_ * page_;
    void* const all = mmap(nullptr, size_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    all_ = static_cast<std::uint8_t*>(all);
    if (mprotect(all_ + page_, size_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
  ~guarded_memory() { munmap(all_, size_ + 2 * page_); }
  guarded_memory(guarded_memory const&) = delete;
  guarded_memory& operator=(guarded_memory const&) = delete;

  /// `offset` bytes behind the guard page in front.
  void* at_start(std::size_t bytes, std::size_t offset = 0) {
    if (bytes + offset > size_) throw std::bad_alloc();
    return all_ + page_ + offset;
  }
  /// Up to the guard page behind.
  void* at_end(std::size_t bytes) {
    if (bytes > size_) throw std::bad_alloc();
    return all_ + page_ + size_ - bytes;
  }

 private:
  std::size_t page_;
  std::size_t size_ = 0;
  std::uint8_t* all_ = nullptr;
};

/// Where in its memory the next buffer lies.
enum class place { end, start, unaligned };

/// A buffer of `bytes` bytes there; `odd` is how far from an aligned address an unaligned one is.
inline std::uint8_t* put(guarded_memory& memory, place where, std::size_t bytes, std::size_t odd = 1) {
  return static_cast<std::uint8_t*>(
      where == place::end ? memory.at_end(bytes) : memory.at_start(bytes, where == place::start ? 0 : odd));
}

/// A copy of `count` values there.
template <class T>
T* put(guarded_memory& memory, place where, T const* values, std::size_t count, std::size_t odd = 1) {
  std::uint8_t* const copy = put(memory, where, count * sizeof(T), odd);
  if (count != 0) std::memcpy(copy, static_cast<void const*>(values), count * sizeof(T));
  return reinterpret_cast<T*>(copy);
}

}  // namespace test
