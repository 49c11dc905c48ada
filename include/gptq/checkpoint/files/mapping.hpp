// Whole files, mapped read-only.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include <gptq/checkpoint/files/system_calls.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

/// Unmapped when the last copy of the pointer goes.
struct mapping {
  std::shared_ptr<std::byte const> data;
  std::size_t size = 0;
};

/// @param error  as errno has it
inline std::string why_not_opened(std::filesystem::path const& path, int error) {
  std::error_code failure;
  if (error != ENOENT || !std::filesystem::is_symlink(path, failure)) return std::strerror(error);
  return "it is a link, and the file it points to is not there: " +
         std::filesystem::read_symlink(path, failure).string();
}

inline mapping map_file(std::filesystem::path const& path) {
  auto const fail = [&](std::string const& reason) { throw error(path.string() + ": " + reason); };
  descriptor const file(open_again(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail("cannot be opened: " + why_not_opened(path, errno));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail(std::string("cannot be read: ") + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("is not a regular file");
  if (status.st_size == 0) fail("is empty");
  auto const size = static_cast<std::size_t>(status.st_size);
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) fail(std::string("cannot be mapped: ") + std::strerror(errno));
  return {{static_cast<std::byte const*>(address),
           [size](std::byte const* p) { ::munmap(const_cast<std::byte*>(p), size); }},
          size};
}

}  // namespace gptq::checkpoint::detail
