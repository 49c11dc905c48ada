// Writing safetensors files: the header of tensors whose bytes are to follow.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors/reader.hpp>
#include <gptq/checkpoint/safetensors/tensors.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint {

/// What a tensor is to be, before its bytes are there.
struct tensor_info {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::size_t> shape;

  /// Throws gptq::error when the shape overflows.
  std::size_t bytes() const { return detail::tensor_bytes(type, shape, "tensor '" + name + "'"); }
};

namespace detail {

/// Everything before the bytes of the tensors, which follow in this order.
/// @param file  its name, for errors
inline std::string safetensors_header(std::string const& file, std::span<tensor_info const> tensors,
                                      std::map<std::string, std::string> const& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(metadata_key)] = metadata;
  std::set<std::string_view> names;
  std::size_t offset = 0;
  for (tensor_info const& t : tensors) {
    std::string const name = file + ": tensor '" + t.name + "'";
    if (t.name == metadata_key) throw error(name + ": this name is reserved");
    if (!names.insert(t.name).second) throw error(name + " is there twice");
    std::size_t const end = offset + tensor_bytes(t.type, t.shape, name);
    header[t.name] = {{"dtype", entry(t.type).name}, {"shape", t.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (nlohmann::json::exception const& e) {
    throw error(file + ": a name is not UTF-8: " + e.what());
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors start aligned
  std::uint64_t const header_size = text.size();
  if (header_size > max_header_bytes) throw error(file + ": the header would be too large");
  return std::string(reinterpret_cast<char const*>(&header_size), sizeof header_size) + text;
}

/// Throws unless these may be the bytes of the next tensor; then the one after it is next.
inline void check_next_tensor(std::string const& file, std::span<tensor_info const> tensors,
                              std::size_t& next, std::span<std::byte const> bytes) {
  if (next == tensors.size()) throw error(file + ": all tensors are written");
  tensor_info const& t = tensors[next++];
  if (bytes.size() != t.bytes()) {
    throw error(file + ": tensor '" + t.name + "': " + describe(entry(t.type).name, t.shape) + " with " +
                std::to_string(bytes.size()) + " bytes");
  }
}

inline std::vector<tensor_map::const_pointer> largest_elements_first(tensor_map const& tensors) {
  std::vector<tensor_map::const_pointer> order;
  for (auto const& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(),
                   [](auto a, auto b) { return entry(a->second.type).bytes > entry(b->second.type).bytes; });
  return order;
}

}  // namespace detail
}  // namespace gptq::checkpoint
