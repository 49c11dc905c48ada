// Files by the interface of Windows, as the POSIX forms beside it need them. Functions return what Windows returns;
// system_message() has its words for why the last call failed.
#pragma once

#if defined(_WIN32)

// Without these <windows.h> makes macros of `min`, `max` and many more words.
#ifndef NOMINMAX
#define NOMINMAX
#endif
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <windows.h>

namespace gptq::detail::windows {

inline std::string system_message() {
  return std::system_category().message(static_cast<int>(::GetLastError()));
}

/// Closed when it goes.
class file {
 public:
  explicit file(::HANDLE handle) : handle_(handle) {}
  ~file() { close(); }
  file(file const&) = delete;
  file& operator=(file const&) = delete;

  /// CreateFile and CreateFileMapping say each in its own way that there is none.
  bool is_open() const { return handle_ != INVALID_HANDLE_VALUE && handle_ != nullptr; }
  ::HANDLE get() const { return handle_; }
  void close() {
    if (is_open()) ::CloseHandle(std::exchange(handle_, INVALID_HANDLE_VALUE));
  }

 private:
  ::HANDLE handle_;
};

/// A file that others may replace by another one meanwhile, as on other systems.
inline ::HANDLE open_to_read(std::filesystem::path const& path) {
  return ::CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                       OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
}
inline ::HANDLE create(std::filesystem::path const& path) {
  return ::CreateFileW(path.c_str(), GENERIC_WRITE, FILE_SHARE_DELETE, nullptr, CREATE_ALWAYS,
                       FILE_ATTRIBUTE_NORMAL, nullptr);
}

/// All of a file that is not empty, read-only, until UnmapViewOfFile(); nullptr when that fails.
inline void const* map(file const& f) {
  file const pages(::CreateFileMappingW(f.get(), nullptr, PAGE_READONLY, 0, 0, nullptr));
  return pages.is_open() ? ::MapViewOfFile(pages.get(), FILE_MAP_READ, 0, 0, 0) : nullptr;
}

inline bool write_all(file const& f, std::span<std::byte const> bytes) {
  constexpr std::size_t most = std::size_t{1} << 30;  // a call takes 32 bits of a size
  while (!bytes.empty()) {
    ::DWORD written = 0;
    auto const count = static_cast<::DWORD>(std::min(bytes.size(), most));
    if (::WriteFile(f.get(), bytes.data(), count, &written, nullptr) == 0) return false;
    bytes = bytes.subspan(written);
  }
  return true;
}

/// The file's bytes are on the disk, and then it has its new name, in place of a file that had it.
inline bool publish(file const& f, std::filesystem::path const& from, std::filesystem::path const& to) {
  return ::FlushFileBuffers(f.get()) != 0 &&
         ::MoveFileExW(from.c_str(), to.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) != 0;
}

}  // namespace gptq::detail::windows

#endif
