// What mapped_file.hpp is, on Windows.
#pragma once

#if defined(_WIN32)

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include <gptq/error.hpp>
#include <gptq/layout/windows_file.hpp>

namespace gptq::detail {

[[noreturn]] inline void throw_system_error(std::string const& path, char const* what) {
  throw error(path + ": " + what + ": " + windows::system_message());
}

class mapped_file {
 public:
  explicit mapped_file(std::string const& path) {
    windows::file const file(windows::open_to_read(path));
    if (!file.is_open()) throw_system_error(path, "cannot be opened");
    ::LARGE_INTEGER size{};
    if (::GetFileSizeEx(file.get(), &size) == 0) throw_system_error(path, "cannot be mapped");
    size_ = static_cast<std::size_t>(size.QuadPart);
    if (size_ == 0) return;
    memory_ = windows::map(file);
    if (memory_ == nullptr) throw_system_error(path, "cannot be mapped");
  }
  ~mapped_file() {
    if (memory_ != nullptr) ::UnmapViewOfFile(memory_);
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
  void const* memory_ = nullptr;
  std::size_t size_ = 0;
};

/// The file has these bytes afterwards, or, after an error, what it had before. Fails while it is mapped.
inline void replace_file(std::string const& path, std::span<std::byte const> bytes) {
  std::string const temporary = path + ".part-" + std::to_string(::GetCurrentProcessId());
  windows::file file(windows::create(temporary));
  if (!file.is_open()) throw_system_error(path, "cannot be written");
  if (windows::write_all(file, bytes) && windows::publish(file, temporary, path)) return;
  ::DWORD const reason = ::GetLastError();
  file.close();
  ::DeleteFileW(std::filesystem::path(temporary).c_str());
  ::SetLastError(reason);
  throw_system_error(path, "cannot be written");
}

}  // namespace gptq::detail

#endif
