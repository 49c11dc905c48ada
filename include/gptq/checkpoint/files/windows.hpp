// What mapping.hpp, new_file.hpp and system_calls.hpp are, on Windows.
#pragma once

#if defined(_WIN32)

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <system_error>

#include <gptq/error.hpp>
#include <gptq/layout/windows_file.hpp>

namespace gptq::checkpoint::detail {

namespace windows = gptq::detail::windows;

/// Unmapped when the last copy of the pointer goes. A mapped file can be renamed and removed, but not replaced.
struct mapping {
  std::shared_ptr<std::byte const> data;
  std::size_t size = 0;
};

inline mapping map_file(std::filesystem::path const& path) {
  auto const fail = [&](std::string const& reason) { throw error(path.string() + ": " + reason); };
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) fail("is not a regular file");
  windows::file const file(windows::open_to_read(path));
  if (!file.is_open()) fail("cannot be opened: " + windows::system_message());
  if (::GetFileType(file.get()) != FILE_TYPE_DISK) fail("is not a regular file");
  ::LARGE_INTEGER size{};
  if (::GetFileSizeEx(file.get(), &size) == 0) fail("cannot be read: " + windows::system_message());
  if (size.QuadPart == 0) fail("is empty");
  void const* const address = windows::map(file);
  if (address == nullptr) fail("cannot be mapped: " + windows::system_message());
  return {{static_cast<std::byte const*>(address), [](std::byte const* p) { ::UnmapViewOfFile(p); }},
          static_cast<std::size_t>(size.QuadPart)};
}

[[noreturn]] inline void throw_not_written(std::filesystem::path const& path) {
  throw error(path.string() + ": cannot be written: " + windows::system_message());
}

/// In the same directory, so that it can be renamed; of this process, so that two of them do not share it.
inline std::filesystem::path temporary_name(std::filesystem::path path) {
  return path += ".part-" + std::to_string(::GetCurrentProcessId());
}

/// A file that is being written, closed when it goes.
class descriptor : public windows::file {
 public:
  using file::file;
};

/// @param path  the file's name in the end, for errors
inline ::HANDLE create(std::filesystem::path const& temporary, std::filesystem::path const& path) {
  ::HANDLE const file = windows::create(temporary);
  if (file == INVALID_HANDLE_VALUE) throw_not_written(path);
  return file;
}

inline void write_all(descriptor const& file, std::span<std::byte const> bytes,
                      std::filesystem::path const& path) {
  if (!windows::write_all(file, bytes)) throw_not_written(path);
}

/// All of the file is on the disk, and then under its name: after a crash there is the whole file or none.
inline void publish(descriptor const& file, std::filesystem::path const& temporary,
                    std::filesystem::path const& path) {
  if (!windows::publish(file, temporary, path)) throw_not_written(path);
}

inline void discard(descriptor& file, std::filesystem::path const& temporary) {
  if (!file.is_open()) return;
  file.close();
  ::DeleteFileW(temporary.c_str());
}

}  // namespace gptq::checkpoint::detail

#endif
