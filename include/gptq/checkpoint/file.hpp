// Files as every checkpoint format uses them: mapped into memory to be read, and written under a temporary
// name.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

/// The whole file read-only; unmapped when the last copy of the pointer goes.
struct mapped_file {
  std::shared_ptr<std::byte const> data;
  std::size_t size = 0;
};

inline mapped_file map_file(std::filesystem::path const& path) {
  auto const fail = [&](std::string const& what) { throw error(path.string() + ": " + what); };
  int const descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(std::string("cannot be opened: ") + std::strerror(errno));
  std::unique_ptr<int const, void (*)(int const*)> const closer(&descriptor,
                                                                [](int const* d) { ::close(*d); });

  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail(std::string("cannot be read: ") + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("is not a regular file");
  if (status.st_size == 0) fail("is empty");
  auto const size = static_cast<std::size_t>(status.st_size);
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (address == MAP_FAILED) fail(std::string("cannot be mapped: ") + std::strerror(errno));
  return {{static_cast<std::byte const*>(address),
           [size](std::byte const* p) { ::munmap(const_cast<std::byte*>(p), size); }},
          size};
}

/// A file on its way: under a temporary name in the directory of its own until finish(), and gone if that is
/// not reached. Everything throws gptq::error when the disk does not take it.
class new_file {
 public:
  explicit new_file(std::filesystem::path const& path) : path_(path), temporary_(path) {
    temporary_ += ".part-" + std::to_string(::getpid());
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail();
  }
  ~new_file() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }
  new_file(new_file const&) = delete;
  new_file& operator=(new_file const&) = delete;

  void write(std::span<std::byte const> bytes) {
    constexpr std::size_t most = std::size_t{1} << 30;  // the kernel takes no more than 2 GiB at once
    while (!bytes.empty()) {
      ssize_t const written = ::write(descriptor_, bytes.data(), std::min(bytes.size(), most));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail();
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  /// All of it is on the disk, and then under its name: after a crash there is the whole file or none.
  void finish() {
    if (::fsync(descriptor_) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
    ::close(descriptor_);
    descriptor_ = -1;
    auto const parent = path_.parent_path();
    int const directory = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return;  // may be written to but not read: the name is as safe as it gets
    ::fsync(directory);
    ::close(directory);
  }

 private:
  [[noreturn]] void fail() const {
    throw error(path_.string() + ": cannot be written: " + std::strerror(errno));
  }

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

}  // namespace gptq::checkpoint::detail
