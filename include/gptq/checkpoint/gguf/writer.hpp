// Writing GGUF files: everything before the bytes of the tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gptq/checkpoint/ggml/tensor.hpp>
#include <gptq/checkpoint/ggml/types.hpp>
#include <gptq/checkpoint/gguf/layout.hpp>
#include <gptq/checkpoint/gguf/utf8.hpp>
#include <gptq/checkpoint/gguf/values.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint {

/// What is known of a tensor before its bytes are written.
struct gguf_tensor_info {
  std::string name;  ///< 1 to 63 bytes, which is what ggml takes
  ggml_type type = ggml_type::f32;
  std::vector<std::size_t> shape;  ///< 1 to 4 extents, the last being that of a row
};

namespace detail {

/// Metadata entries one after the other, as they lie in a file.
struct encoded_metadata {
  std::set<std::string, std::less<>> keys;
  std::string encoded;
};

inline void add_key(encoded_metadata& metadata, std::string_view key) {
  if (key.empty() || key.size() > max_gguf_key) {
    throw error("GGUF metadata: a key of " + std::to_string(key.size()) + " bytes");
  }
  if (!is_utf8(key)) throw error("GGUF metadata: a key is not UTF-8");
  if (key == gguf_alignment_key) throw error("GGUF metadata: the writer chooses " + std::string(key));
  if (!metadata.keys.emplace(key).second) {
    throw error("GGUF metadata: '" + std::string(key) + "' is there already");
  }
  append(metadata.encoded, key);
}

/// @param file  its name, for errors
inline std::string gguf_header(std::string const& file, encoded_metadata const& metadata,
                               std::span<gguf_tensor_info const> tensors) {
  std::string header(gguf_magic);
  append(header, gguf_version);
  append(header, std::uint64_t{tensors.size()});
  append(header, std::uint64_t{metadata.keys.size()});
  header += metadata.encoded;
  std::set<std::string_view> names;
  std::size_t offset = 0;
  for (gguf_tensor_info const& t : tensors) {
    std::string const name = file + ": tensor '" + t.name + "'";
    if (t.name.empty() || t.name.size() > max_gguf_name || !is_utf8(t.name)) {
      throw error(name + ": a name is UTF-8 of 1 to " + std::to_string(max_gguf_name) + " bytes");
    }
    if (!names.insert(t.name).second) throw error(name + " is there twice");
    if (t.shape.empty() || t.shape.size() > max_gguf_rank)
      throw error(name + ": 1 to 4 extents can be written");
    append(header, t.name);
    append(header, static_cast<std::uint32_t>(t.shape.size()));
    for (std::size_t d = t.shape.size(); d-- > 0;) append(header, std::uint64_t{t.shape[d]});
    append(header, static_cast<std::uint32_t>(t.type));
    append(header, std::uint64_t{offset});
    offset = aligned(offset + tensor_bytes(t.type, t.shape, name), gguf_alignment);
  }
  header.resize(aligned(header.size(), gguf_alignment), '\0');
  return header;
}

/// Throws unless these may be the bytes of the next tensor; then the one after it is next.
inline void check_next_tensor(std::string const& file, std::span<gguf_tensor_info const> tensors,
                              std::size_t& next, std::span<std::byte const> bytes) {
  if (next == tensors.size()) throw error(file + ": all tensors are written");
  gguf_tensor_info const& t = tensors[next++];
  std::string const name = file + ": tensor '" + t.name + "'";
  if (std::size_t const want = tensor_bytes(t.type, t.shape, name); want != bytes.size()) {
    throw error(name + " takes " + std::to_string(want) + " bytes, not " + std::to_string(bytes.size()));
  }
}

}  // namespace detail
}  // namespace gptq::checkpoint
