// The steps in which a file is written: created under a temporary name, filled, put under its own.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <span>
#include <string>
#include <unistd.h>

#include <gptq/checkpoint/files/system_calls.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

[[noreturn]] inline void throw_not_written(std::filesystem::path const& path) {
  throw error(path.string() + ": cannot be written: " + std::strerror(errno));
}

/// In the same directory, so that it can be renamed; of this process, so that two of them do not share it.
inline std::filesystem::path temporary_name(std::filesystem::path path) {
  return path += ".part-" + std::to_string(::getpid());
}

/// @param path  the file's name in the end, for errors
inline int create(std::filesystem::path const& temporary, std::filesystem::path const& path) {
  int const file = open_again(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) throw_not_written(path);
  return file;
}

inline void write_all(descriptor const& file, std::span<std::byte const> bytes,
                      std::filesystem::path const& path) {
  constexpr std::size_t most = std::size_t{1} << 30;  // the kernel takes no more than 2 GiB at once
  while (!bytes.empty()) {
    auto const written =
        again_if_interrupted([&] { return ::write(file.get(), bytes.data(), std::min(bytes.size(), most)); });
    if (written == 0) errno = EIO;
    if (written <= 0) throw_not_written(path);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

inline bool sync(int file) {
  return again_if_interrupted([&] { return ::fsync(file); }) == 0;
}

/// All of the file is on the disk, and then under its name: after a crash there is the whole file or none.
inline void publish(descriptor const& file, std::filesystem::path const& temporary,
                    std::filesystem::path const& path) {
  if (!sync(file.get()) || ::rename(temporary.c_str(), path.c_str()) != 0) throw_not_written(path);
  auto const parent = path.parent_path();
  descriptor const directory(open_again(parent.empty() ? "." : parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0 && errno == EACCES) return;  // may be written to but not read: as safe as it gets
  if (directory.get() < 0) throw_not_written(path);
  if (!sync(directory.get()) && errno != EINVAL) throw_not_written(path);  // EINVAL: it has no such thing
}

/// Unless it has been published and closed.
inline void discard(descriptor const& file, std::filesystem::path const& temporary) {
  if (file.get() >= 0) ::unlink(temporary.c_str());
}

}  // namespace gptq::checkpoint::detail
