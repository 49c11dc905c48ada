// Memory between two pages that may not be touched: reading or writing a byte too many ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(_WIN32)
#include <gptq/layout/windows_file.hpp>
#else
#include <unistd.h>

#include <sys/mman.h>
#endif

namespace test {

#if defined(_WIN32)
inline std::size_t page_bytes() {
  ::SYSTEM_INFO system{};
  ::GetSystemInfo(&system);
  return system.dwPageSize;
}
/// `bytes` bytes, whole pages, with one before and one after them that may not be touched; nullptr when there are none.
inline std::uint8_t* new_guarded_pages(std::size_t bytes, std::size_t page) {
  auto* const all = static_cast<std::uint8_t*>(
      ::VirtualAlloc(nullptr, bytes + 2 * page, MEM_RESERVE | MEM_COMMIT, PAGE_NOACCESS));
  ::DWORD before = 0;
  return all == nullptr || ::VirtualProtect(all + page, bytes, PAGE_READWRITE, &before) == 0 ? nullptr : all;
}
inline void free_pages(std::uint8_t* all, std::size_t /*bytes*/) { ::VirtualFree(all, 0, MEM_RELEASE); }
#else
inline std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }
/// `bytes` bytes, whole pages, with one before and one after them that may not be touched; nullptr when there are none.
inline std::uint8_t* new_guarded_pages(std::size_t bytes, std::size_t page) {
  void* const all = mmap(nullptr, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  return mprotect(static_cast<std::uint8_t*>(all) + page, bytes, PROT_READ | PROT_WRITE) == 0
             ? static_cast<std::uint8_t*>(all)
             : nullptr;
}
inline void free_pages(std::uint8_t* all, std::size_t bytes) { munmap(all, bytes); }
#endif

class guarded_memory {
 public:
  explicit guarded_memory(std::size_t capacity) : page_(page_bytes()) {
    size_ = (capacity + page_ - 1) / page_ * page_;
    all_ = new_guarded_pages(size_, page_);
    if (all_ == nullptr) throw std::bad_alloc();
  }
  ~guarded_memory() { free_pages(all_, size_ + 2 * page_); }
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
