// Reading safetensors files: the header, checked against the bytes that follow it, and the index of shards.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/files/platform.hpp>
#include <gptq/checkpoint/safetensors/json.hpp>
#include <gptq/checkpoint/safetensors/tensors.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

inline constexpr std::string_view metadata_key = "__metadata__";
inline constexpr std::size_t length_bytes = 8;
inline constexpr std::size_t max_header_bytes = 100'000'000;
inline constexpr std::size_t max_index_bytes = 100'000'000;

/// What a file holds; tensors point into the mapping, or into memory of the caller's.
struct safetensors_contents {
  std::shared_ptr<std::byte const> mapping;
  tensor_map tensors;
  std::map<std::string, std::string> metadata;
};

/// The entry of `dtype::unknown` for a name that is none of the format's.
inline dtype_entry const& find_dtype(std::string_view name) {
  auto const last = dtypes.end() - 1;
  return *std::find_if(dtypes.begin(), last, [&](dtype_entry const& d) { return d.name == name; });
}

/// An entry of the header, checked against the bytes that follow the header.
inline tensor_view parse_tensor(nlohmann::json const& header, std::span<std::byte const> buffer,
                                std::string const& name) {
  if (!header.is_object()) throw error(name + ": its header entry is not an object");
  auto const type_name = header.find("dtype");
  if (type_name == header.end() || !type_name->is_string()) throw error(name + ": has no string 'dtype'");
  dtype_entry const& known = find_dtype(type_name->get_ref<std::string const&>());

  std::vector<std::size_t> shape = integers(header, "shape", name);
  std::vector<std::size_t> const offsets = integers(header, "data_offsets", name);
  if (offsets.size() != 2) throw error(name + ": 'data_offsets' must hold two numbers");
  auto const [begin, end] = std::pair(offsets[0], offsets[1]);
  if (begin > end || end > buffer.size()) {
    throw error(name + ": data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
                "] do not lie in the file's " + std::to_string(buffer.size()) + " bytes of data");
  }
  auto const bytes = buffer.subspan(begin, end - begin);
  if (known.type == dtype::unknown)
    return {known.type, std::move(shape), bytes, type_name->get<std::string>()};
  if (std::size_t const want = tensor_bytes(known.type, shape, name); want != bytes.size()) {
    throw error(name + ": its shape takes " + std::to_string(want) + " bytes, its data_offsets give " +
                std::to_string(bytes.size()));
  }
  return {known.type, std::move(shape), bytes};
}

/// Throws unless the tensors fill the buffer from its first to its last byte, each byte once.
inline void check_coverage(tensor_map const& tensors, std::span<std::byte const> buffer,
                           std::string const& file) {
  std::vector<tensor_map::const_pointer> sorted;
  for (auto const& entry : tensors) sorted.push_back(&entry);
  auto const end_byte = [](tensor_map::const_pointer e) {
    return e->second.bytes.data() + e->second.bytes.size();
  };
  std::sort(sorted.begin(), sorted.end(), [&](auto a, auto b) {
    return std::pair(a->second.bytes.data(), end_byte(a)) < std::pair(b->second.bytes.data(), end_byte(b));
  });
  std::byte const* covered = buffer.data();
  for (auto const* entry : sorted) {
    if (entry->second.bytes.data() != covered) {
      throw error(file + ": tensor '" + entry->first +
                  "': " + (entry->second.bytes.data() < covered ? "overlaps" : "leaves a hole after") +
                  " the tensor before it");
    }
    covered = end_byte(entry);
  }
  if (covered != buffer.data() + buffer.size()) {
    throw error(file + ": " + std::to_string(buffer.data() + buffer.size() - covered) +
                " bytes after the last tensor belong to none");
  }
}

inline safetensors_contents parse_safetensors(std::span<std::byte const> contents, std::string const& file) {
  safetensors_contents parsed;
  std::size_t const size = contents.size();
  std::uint64_t header_size = 0;
  if (size < length_bytes) throw error(file + ": too short for a safetensors file");
  std::memcpy(&header_size, contents.data(), length_bytes);
  if (header_size > size - length_bytes || header_size > max_header_bytes) {
    throw error(file + ": not a safetensors file, or cut short: a header of " + std::to_string(header_size) +
                " bytes in a file of " + std::to_string(size));
  }
  auto const header = contents.subspan(length_bytes, header_size);
  auto const buffer = contents.subspan(length_bytes + header_size);

  // The deepest a header gets is the shape of a tensor: object, object, array.
  auto const json =
      parse_json({reinterpret_cast<char const*>(header.data()), header.size()}, file + ": header", 3);
  if (!json.is_object()) throw error(file + ": header: not a JSON object");
  for (auto const& [name, entry] : json.items()) {
    if (name == metadata_key) {
      if (!entry.is_object()) throw error(file + ": header: metadata is not an object");
      for (auto const& [key, value] : entry.items()) {
        if (!value.is_string()) throw error(file + ": header: metadata '" + key + "' is not a string");
        parsed.metadata.emplace(key, value.get<std::string>());
      }
    } else {
      parsed.tensors.emplace(name, parse_tensor(entry, buffer, file + ": tensor '" + name + "'"));
    }
  }
  check_coverage(parsed.tensors, buffer, file);
  return parsed;
}

inline safetensors_contents read_safetensors(std::filesystem::path const& path) {
  auto const [data, size] = map_file(path);
  auto parsed = parse_safetensors({data.get(), size}, path.string());
  parsed.mapping = data;
  return parsed;
}

/// The files of a model, and the tensors in them that are the model's.
struct safetensors_model {
  std::vector<safetensors_contents> files;
  tensor_map tensors;
};

inline safetensors_model read_safetensors_directory(std::filesystem::path const& directory) {
  safetensors_model model;
  if (!std::filesystem::is_directory(directory)) throw error(directory.string() + ": is not a directory");
  auto const single = directory / "model.safetensors";
  auto const index = directory / "model.safetensors.index.json";
  // Links that lead nowhere count: to be opened, and to say so.
  auto const is_there = [](std::filesystem::path const& path) {
    return std::filesystem::exists(std::filesystem::symlink_status(path));
  };
  if (is_there(single)) {
    model.files.push_back(read_safetensors(single));
    model.tensors = model.files.back().tensors;
    return model;
  }
  if (!is_there(index)) {
    throw error(directory.string() + ": has neither model.safetensors nor model.safetensors.index.json");
  }

  std::string const source = index.string();
  auto const [data, size] = map_file(index);
  if (size > max_index_bytes) throw error(source + ": larger than an index can be");
  auto const json = parse_json({reinterpret_cast<char const*>(data.get()), size}, source, 3);
  auto const weights = json.find("weight_map");
  if (weights == json.end() || !weights->is_object()) throw error(source + ": has no object 'weight_map'");

  std::map<std::string, std::size_t> opened;  // file name -> position in model.files
  for (auto const& [name, value] : weights->items()) {
    std::string const entry = source + ": tensor '" + name + "'";
    if (!value.is_string()) throw error(entry + ": its file is not a string");
    auto const& file = value.get_ref<std::string const&>();
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      throw error(entry + ": its file " + value.dump() + " is not a name in this directory");
    }
    auto const [position, is_new] = opened.emplace(file, model.files.size());
    if (is_new) model.files.push_back(read_safetensors(directory / file));
    auto const* const tensor = find_tensor(model.files[position->second].tensors, name);
    if (tensor == nullptr) throw error(entry + ": is not in " + file);
    model.tensors.emplace(name, *tensor);
  }
  return model;
}

}  // namespace gptq::checkpoint::detail
