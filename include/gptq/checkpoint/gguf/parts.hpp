// Models in several files, as llama.cpp splits them: NAME-00001-of-00003.gguf and so on, each a file of its own that
// says in split.no and split.count which part it is. The first one has the metadata.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <gptq/checkpoint/files/platform.hpp>
#include <gptq/checkpoint/gguf/reader.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

inline constexpr std::string_view part_number_key = "split.no";  ///< from 0 on
inline constexpr std::string_view part_count_key = "split.count";
inline constexpr std::string_view tensor_count_key = "split.tensors.count";
inline constexpr std::int64_t most_parts = 99999;  ///< that names of five digits can tell apart

/// "-00001-of-00003.gguf"
inline std::string part_suffix(std::int64_t number, std::int64_t count) {
  char text[64];
  std::snprintf(text, sizeof text, "-%05lld-of-%05lld.gguf", static_cast<long long>(number) + 1,
                static_cast<long long>(count));
  return text;
}

/// Parts of the model that a file belongs to: 1 when it is not split.
inline std::int64_t part_count(gguf_contents const& file) {
  auto const count = find_value<std::int64_t>(file, part_count_key).value_or(0);
  if (count < 0 || count > most_parts) {
    throw error(file.file + ": " + std::string(part_count_key) + " is " + std::to_string(count) +
                ", not between 0 and " + std::to_string(most_parts));
  }
  return count == 0 ? 1 : count;
}

inline gguf_contents read_part(std::filesystem::path const& path) {
  auto const [data, size] = map_file(path);
  auto part = parse_gguf({data.get(), size}, path.string());
  part.mappings.push_back(data);
  return part;
}

/// Adds part `number` to a model whose parts before it are there.
inline void append_part(gguf_contents& model, gguf_contents part, std::int64_t number, std::int64_t count) {
  auto const is_number = find_value<std::int64_t>(part, part_number_key);
  if (is_number != number || part_count(part) != count) {
    throw error(part.file + ": does not say that it is part " + std::to_string(number + 1) + " of " +
                std::to_string(count));
  }
  for (auto& [name, tensor] : part.tensors) {
    if (!model.tensors.emplace(name, std::move(tensor)).second) {
      throw error(part.file + ": tensor '" + name + "' is in a part before it, too");
    }
  }
  model.mappings.insert(model.mappings.end(), part.mappings.begin(), part.mappings.end());
}

/// A file, with the other parts of its model when it is the first of several.
inline gguf_contents read_gguf(std::filesystem::path const& path) {
  auto model = read_part(path);
  auto const count = part_count(model);
  if (count == 1) return model;
  auto const number = find_value<std::int64_t>(model, part_number_key).value_or(0);
  if (number != 0) {
    throw error(model.file + ": is part " + std::to_string(number + 1) + " of " + std::to_string(count) +
                "; open the first one");
  }
  std::string const suffix = part_suffix(0, count);
  if (!model.file.ends_with(suffix)) {
    throw error(model.file + ": is the first of " + std::to_string(count) +
                " parts, but its name does not end in " + suffix + ", by which the others are found");
  }
  std::string const stem = model.file.substr(0, model.file.size() - suffix.size());
  for (std::int64_t i = 1; i < count; ++i)
    append_part(model, read_part(stem + part_suffix(i, count)), i, count);
  auto const tensors = find_value<std::int64_t>(model, tensor_count_key);
  if (tensors && *tensors != static_cast<std::int64_t>(model.tensors.size())) {
    throw error(model.file + ": " + std::string(tensor_count_key) + " is " + std::to_string(*tensors) +
                ", but its parts have " + std::to_string(model.tensors.size()) + " tensors");
  }
  return model;
}

/// Contents in memory, which cannot have others beside them.
inline gguf_contents parse_whole_gguf(std::span<std::byte const> contents, std::string name) {
  auto model = parse_gguf(contents, std::move(name));
  if (auto const count = part_count(model); count != 1) {
    throw error(model.file + ": is one of " + std::to_string(count) +
                " parts of a model, which can only be opened as files");
  }
  return model;
}

}  // namespace gptq::checkpoint::detail
