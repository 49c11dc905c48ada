// Reading GGUF files.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gptq/checkpoint/ggml/tensor.hpp>
#include <gptq/checkpoint/ggml/types.hpp>
#include <gptq/checkpoint/gguf/layout.hpp>
#include <gptq/checkpoint/gguf/utf8.hpp>
#include <gptq/checkpoint/gguf/values.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

/// What a file holds; tensors and values point into the mapping, or into memory of the caller's.
struct gguf_contents {
  std::string file;                                        ///< its name, for errors
  std::vector<std::shared_ptr<std::byte const>> mappings;  ///< of its parts
  std::uint32_t version = 0;
  ggml_tensor_map tensors;
  std::map<std::string, gguf_value, std::less<>> metadata;
};

// The least that a metadata entry (key, type, value) and a tensor's description take.
inline constexpr std::size_t least_entry_bytes = 8 + 4 + 1;
inline constexpr std::size_t least_tensor_bytes = 8 + 4 + 4 + 8;

/// Goes through a file's bytes and not beyond them.
class gguf_cursor {
 public:
  gguf_cursor(std::span<std::byte const> contents, std::string const& file)
      : contents_(contents), file_(file) {}

  std::size_t position() const { return position_; }
  std::size_t left() const { return contents_.size() - position_; }

  /// @param what  whose bytes these are, for the error
  std::span<std::byte const> take(std::uint64_t bytes, std::string_view what) {
    if (bytes > left()) {
      throw error(file_ + ": cut short, or damaged: " + std::string(what) + " takes " +
                  std::to_string(bytes) + " bytes, " + std::to_string(left()) + " are left");
    }
    auto const taken = contents_.subspan(position_, static_cast<std::size_t>(bytes));
    position_ += taken.size();
    return taken;
  }
  template <class T>
  T number(std::string_view what) {
    return number_at<T>(take(sizeof(T), what).data());
  }
  std::string_view string(std::string_view what) {
    auto const length = number<std::uint64_t>(what);
    auto const bytes = take(length, what);
    return {reinterpret_cast<char const*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<std::byte const> contents_;
  std::string const& file_;
  std::size_t position_ = 0;
};

inline gguf_type read_type(gguf_cursor& in, std::string const& name) {
  auto const type = in.number<std::uint32_t>("the type of " + name);
  if (type >= gguf_types.size()) throw error(name + " has the unknown type " + std::to_string(type));
  return static_cast<gguf_type>(type);
}

/// A value, passed over.
/// @param name  "FILE: metadata 'KEY'"
inline gguf_value read_value(gguf_cursor& in, std::span<std::byte const> contents, std::string const& name) {
  gguf_value value;
  value.type = read_type(in, name);
  if (value.type == gguf_type::array) {
    value.type = read_type(in, name + ": an element");
    if (value.type == gguf_type::array) throw error(name + " is an array of arrays");
    value.count = in.number<std::uint64_t>("its length");
  }
  std::uint64_t const count = value.count.value_or(1);
  std::size_t const least = entry(value.type).least_bytes;
  if (count > in.left() / least) {
    throw error(name + ": cut short, or damaged: " + std::to_string(count) + " values of " +
                std::string(entry(value.type).name) + ", " + std::to_string(in.left()) + " bytes are left");
  }
  std::size_t const start = in.position();
  if (value.type != gguf_type::string) {
    in.take(count * least, name);
  } else {
    for (std::uint64_t i = 0; i < count; ++i) in.string("a string");
  }
  value.bytes = contents.subspan(start, in.position() - start);
  return value;
}

/// Throws unless no byte belongs to two tensors.
inline void check_overlap(ggml_tensor_map const& tensors, std::string const& file) {
  std::vector<ggml_tensor_map::const_pointer> sorted;
  for (auto const& entry : tensors) {
    if (!entry.second.bytes.empty()) sorted.push_back(&entry);
  }
  std::sort(sorted.begin(), sorted.end(),
            [](auto a, auto b) { return a->second.bytes.data() < b->second.bytes.data(); });
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    auto const before = sorted[i - 1]->second.bytes;
    if (sorted[i]->second.bytes.data() < before.data() + before.size()) {
      throw error(file + ": tensors '" + sorted[i - 1]->first + "' and '" + sorted[i]->first + "' overlap");
    }
  }
}

template <class T>
std::optional<T> find_value(gguf_contents const& contents, std::string_view key) {
  auto const found = contents.metadata.find(key);
  if (found == contents.metadata.end()) return std::nullopt;
  return convert_value<T>(found->second, contents.file + ": metadata '" + found->first + "'");
}

/// The parts of a file in the order in which they lie there; what is read goes into `parsed`.
class gguf_parser {
 public:
  gguf_parser(std::span<std::byte const> contents, gguf_contents& parsed)
      : contents_(contents), parsed_(parsed), file_(parsed.file), in_(contents, file_) {}

  void parse() {
    parse_head();
    parse_metadata();
    parse_descriptions();
    place_tensors();
  }

 private:
  void parse_head() {
    constexpr auto magic = gguf_magic;
    auto const first = contents_.first(std::min(contents_.size(), magic.size()));
    if (!first.empty() && std::memcmp(first.data(), magic.data(), first.size()) != 0) {
      throw error(file_ + ": not a GGUF file");
    }
    in_.take(magic.size(), "the magic number");
    auto const version = parsed_.version = in_.number<std::uint32_t>("the version");
    if (version != 0 && (version & 0xffff) == 0) throw error(file_ + ": big-endian GGUF is not read");
    if (version != 2 && version != 3) {
      throw error(file_ + ": GGUF version " + std::to_string(version) + " is not read, only 2 and 3 are");
    }
    tensor_count_ = in_.number<std::uint64_t>("the number of tensors");
    entry_count_ = in_.number<std::uint64_t>("the number of metadata entries");
    check_count(entry_count_, least_entry_bytes, "metadata entries");
    check_count(tensor_count_, least_tensor_bytes, "tensors");
  }

  void parse_metadata() {
    for (std::uint64_t i = 0; i < entry_count_; ++i) {
      std::string const key = parse_name("the key of metadata entry " + std::to_string(i));
      std::string const name = file_ + ": metadata '" + key + "'";
      if (!parsed_.metadata.emplace(key, read_value(in_, contents_, name)).second) {
        throw error(name + " appears twice");
      }
    }
    auto const alignment = find_value<std::int64_t>(parsed_, gguf_alignment_key);
    if (!alignment) return;
    if (*alignment < 1 || *alignment > std::int64_t{1} << 31 || (*alignment & (*alignment - 1)) != 0) {
      throw error(file_ + ": " + std::string(gguf_alignment_key) + " is " + std::to_string(*alignment) +
                  ", not a power of two");
    }
    alignment_ = static_cast<std::size_t>(*alignment);
  }

  void parse_descriptions() {
    check_count(tensor_count_, least_tensor_bytes, "tensors");
    for (std::uint64_t i = 0; i < tensor_count_; ++i) {
      std::string const key = parse_name("the name of tensor " + std::to_string(i));
      std::string const tensor = "tensor '" + key + "'";
      std::string const name = file_ + ": " + tensor;
      auto const rank = in_.number<std::uint32_t>(tensor + ": its rank");
      if (rank > max_gguf_rank)
        throw error(name + " has " + std::to_string(rank) + " extents, 4 is the most");
      ggml_tensor described;
      for (std::uint32_t d = 0; d < rank; ++d) {
        auto const extent = in_.number<std::uint64_t>(tensor + ": an extent");
        described.shape.insert(described.shape.begin(), static_cast<std::size_t>(extent));
      }
      described.type = static_cast<ggml_type>(in_.number<std::uint32_t>(tensor + ": its type"));
      auto const offset = in_.number<std::uint64_t>(tensor + ": its offset");
      if (offset % alignment_ != 0) {
        throw error(name + ": offset " + std::to_string(offset) + " is no multiple of " +
                    std::to_string(alignment_));
      }
      if (!parsed_.tensors.emplace(key, std::move(described)).second) throw error(name + " appears twice");
      offsets_.emplace(key, offset);
    }
  }

  void place_tensors() {
    auto const data = contents_.subspan(std::min(aligned(in_.position(), alignment_), contents_.size()));
    for (auto& [key, tensor] : parsed_.tensors) {
      std::string const name = file_ + ": tensor '" + key + "'";
      bool const is_known = find_type(tensor.type) != nullptr;
      std::size_t const bytes = is_known ? tensor_bytes(tensor.type, tensor.shape, name) : 0;
      std::uint64_t const offset = offsets_.find(key)->second;
      if (offset > data.size() || bytes > data.size() - offset) {
        throw error(name + ": " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                    " do not lie in the file's " + std::to_string(data.size()) + " bytes of data");
      }
      tensor.bytes = data.subspan(static_cast<std::size_t>(offset), bytes);
    }
    check_overlap(parsed_.tensors, file_);
  }

  void check_count(std::uint64_t count, std::size_t least_bytes, char const* things) const {
    if (count > in_.left() / least_bytes) {
      throw error(file_ + ": cut short, or damaged: " + std::to_string(count) + " " + things + ", " +
                  std::to_string(in_.left()) + " bytes are left");
    }
  }

  /// @param what  is named, for errors
  std::string parse_name(std::string const& what) {
    std::string name(in_.string(what));
    if (name.empty()) throw error(file_ + ": " + what + " is empty");
    if (!is_utf8(name)) throw error(file_ + ": " + what + " is not UTF-8");
    return name;
  }

  std::span<std::byte const> contents_;
  gguf_contents& parsed_;
  std::string const& file_;
  gguf_cursor in_;
  std::uint64_t tensor_count_ = 0;
  std::uint64_t entry_count_ = 0;
  std::size_t alignment_ = gguf_alignment;
  std::map<std::string, std::uint64_t, std::less<>> offsets_;  ///< of the tensors, in the data
};

inline gguf_contents parse_gguf(std::span<std::byte const> contents, std::string file) {
  gguf_contents parsed;
  parsed.file = std::move(file);
  gguf_parser(contents, parsed).parse();
  return parsed;
}

}  // namespace gptq::checkpoint::detail
