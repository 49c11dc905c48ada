// A file in memory to read, and one that is replaced as a whole.
#pragma once

#if defined(_WIN32)
#include <gptq/layout/mapped_file_windows.hpp>
#else

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <span>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <sys/stat.h>

#include <gptq/error.hpp>

namespace gptq::detail {

[[noreturn]] inline void throw_system_error(std::string const& path, char const* what) {
  throw error(path + ": " + what + ": " + std::strerror(errno));
}

class mapped_file {
 public:
  explicit mapped_file(std::string const& path) {
    int const file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file == -1) throw_system_error(path, "cannot be opened");
    struct stat status {};
    bool const known = ::fstat(file, &status) == 0;
    if (known) size_ = static_cast<std::size_t>(status.st_size);
    void* const memory =
        known && size_ != 0 ? ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0) : nullptr;
    int const reason = errno;
    ::close(file);
    errno = reason;
    if (!known || memory == MAP_FAILED) throw_system_error(path, "cannot be mapped");
    memory_ = memory;
  }
  ~mapped_file() {
    if (memory_ != nullptr) ::munmap(memory_, size_);
  }
  mapped_file(mapped_file&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    return *this;
  }

  std::span<std::byte const> bytes() const { return {static_cast<std::byte const*>(memory_), size_}; }

 private:
  void* memory_ = nullptr;
  std::size_t size_ = 0;
};

/// The file has these bytes afterwards, or, after an error, what it had before.
inline void replace_file(std::string const& path, std::span<std::byte const> bytes) {
  std::string temporary = path + ".XXXXXX";
  int const file = ::mkstemp(temporary.data());
  if (file == -1) throw_system_error(path, "cannot be written");
  auto const fail = [&](char const* what) {
    int const reason = errno;
    ::close(file);
    ::unlink(temporary.c_str());
    errno = reason;
    throw_system_error(path, what);
  };
  for (std::size_t done = 0; done < bytes.size();) {
    ::ssize_t const n = ::write(file, bytes.data() + done, bytes.size() - done);
    if (n == -1 && errno != EINTR) fail("cannot be written");
    if (n > 0) done += static_cast<std::size_t>(n);
  }
  if (::fchmod(file, 0644) == -1 || ::fsync(file) == -1) fail("cannot be written");
  if (::rename(temporary.c_str(), path.c_str()) == -1) fail("cannot be written");
  ::close(file);
}

}  // namespace gptq::detail

#endif
