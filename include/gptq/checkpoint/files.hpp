// Files as every checkpoint format uses them: mapped into memory to be read, and complete when they are written.
//
//   gptq::checkpoint::mapped_file const file("model.gguf");       // not read before its bytes are asked for
//   gptq::checkpoint::new_file out("copy.gguf");
//   out.write(file.bytes());
//   out.finish();                                                 // now it is there, whole and on the disk
//
// Every error is a gptq::error that names the file and says what the system said.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

#include <gptq/checkpoint/files/platform.hpp>

namespace gptq::checkpoint {

/// A regular file's bytes, read-only. Copies share them; they are there as long as one copy is. A file that
/// another process shortens in the meantime ends the program (SIGBUS) where its missing part is read.
class mapped_file {
 public:
  /// @throws gptq::error when it cannot be opened, is no regular file, or has no bytes
  explicit mapped_file(std::filesystem::path const& path) : mapping_(detail::map_file(path)) {}

  std::span<std::byte const> bytes() const { return {mapping_.data.get(), mapping_.size}; }
  /// The same as characters.
  std::string_view text() const {
    return {reinterpret_cast<char const*>(mapping_.data.get()), mapping_.size};
  }

 private:
  detail::mapping mapping_;
};

/// A file on its way: under a temporary name in its own directory until finish(), and gone if that is not
/// reached. Whatever fails, and even if the machine does, its name leads to what was there before or to the
/// whole new file.
class new_file {
 public:
  /// @throws gptq::error when the directory does not take it
  explicit new_file(std::filesystem::path const& path)
      : path_(path), temporary_(detail::temporary_name(path)), file_(detail::create(temporary_, path)) {}
  ~new_file() { detail::discard(file_, temporary_); }

  /// Appends bytes. @throws gptq::error when the disk does not take them
  void write(std::span<std::byte const> bytes) { detail::write_all(file_, bytes, path_); }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  /// Returns when the file is on the disk under its name. @throws gptq::error when it does not get there
  void finish() {
    detail::publish(file_, temporary_, path_);
    file_.close();
  }

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  detail::descriptor file_;
};

}  // namespace gptq::checkpoint
