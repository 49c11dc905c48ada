// Small files that are read or written whole; under their names only when they are complete and on the disk.
#pragma once

#include <filesystem>
#include <fstream>
#include <span>
#include <string>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/files.hpp>
#include <gptq/error.hpp>

namespace lm {

inline void write_text(std::filesystem::path const& path, std::string const& text) {
  gptq::checkpoint::new_file out(path);
  out.write(text);
  out.finish();
}

/// A text as JSON and GGUF can hold it: bytes that are no UTF-8, as paths may have them, become U+FFFD.
inline std::string valid_utf8(std::string const& text) {
  using nlohmann::json;
  return json::parse(json(text).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>();
}

inline void make_directory(std::filesystem::path const& path) {
  std::error_code failure;
  std::filesystem::create_directories(path, failure);
  if (failure) throw gptq::error(path.string() + ": cannot be made: " + failure.message());
}

inline nlohmann::ordered_json read_json(std::filesystem::path const& path) {
  try {
    return nlohmann::ordered_json::parse(std::ifstream(path, std::ios::binary));
  } catch (nlohmann::json::exception const& e) {
    throw gptq::error(path.string() + ": not valid JSON: " + e.what());
  }
}

inline void copy_file(std::filesystem::path const& from, std::filesystem::path const& to) {
  gptq::checkpoint::new_file out(to);
  if (!std::filesystem::is_empty(from)) {
    out.write(gptq::checkpoint::mapped_file(from).bytes());
  }
  out.finish();
}

}  // namespace lm
