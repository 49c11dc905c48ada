// What tests that write files need.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>

namespace test {

/// A directory of one test's own, removed in the end.
struct scratch {
  std::filesystem::path path;
  explicit scratch(std::string const& name = "gptq_test")
      : path(std::filesystem::temp_directory_path() / (name + "_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path);
  }
  ~scratch() { std::filesystem::remove_all(path); }
  scratch(scratch const&) = delete;
  scratch& operator=(scratch const&) = delete;
};

inline void write_file(std::filesystem::path const& path, std::string const& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

}  // namespace test
