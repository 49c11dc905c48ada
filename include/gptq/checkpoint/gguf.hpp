// Reading and writing GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
//
//   gptq::checkpoint::gguf_file file("model.gguf");                       // mapped, not read
//   auto layers = file.at<std::int64_t>("llama.block_count");             // metadata
//   auto tokens = file.at<std::vector<std::string_view>>("tokenizer.ggml.tokens");
//   auto const& weight = file.tensors().at("blk.0.attn_q.weight");        // type, shape, bytes: not copied
//   std::vector<float> values = gptq::checkpoint::to_float(weight);       // ggml.hpp
//
// A file is "GGUF", its version (2 or 3), how many tensors and metadata entries it has, the entries (key, type,
// value), the tensors' descriptions (name, extents, type, offset) and, from the next multiple of
// general.alignment (32 when it is not there) on, their bytes, each tensor at such a multiple. Nothing in a file is
// trusted: every error is a gptq::error that names the file, the entry or tensor, and what is wrong. A file that
// another process shortens while it is mapped ends the program (SIGBUS).
//
// ggml_tensor { type, shape, bytes } is in ggml/tensor.hpp, gguf_type and gguf_value { type, count, bytes } in
// gguf/values.hpp, gguf_tensor_info { name, type, shape } in gguf/writer.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gptq/checkpoint/files.hpp>
#include <gptq/checkpoint/ggml.hpp>
#include <gptq/checkpoint/gguf/layout.hpp>
#include <gptq/checkpoint/gguf/parts.hpp>
#include <gptq/checkpoint/gguf/reader.hpp>
#include <gptq/checkpoint/gguf/values.hpp>
#include <gptq/checkpoint/gguf/writer.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint {

/// "UINT32", "STRING", ...
inline std::string_view type_name(gguf_type type) { return detail::entry(type).name; }
/// "STRING", "array of 32000 FLOAT32"
inline std::string to_string(gguf_value const& value) { return detail::describe(value); }

/// One file, mapped read-only as long as this object lives; the first file of a split model stands for all of them,
/// which lie beside it: its tensors are those of all, its metadata are its own.
class gguf_file {
 public:
  /// @throws gptq::error unless the whole file is well-formed: keys and names in UTF-8 and not twice, strings and
  ///   arrays within the file, tensors within its data, without overlap. Arrays of arrays, which nobody writes, are
  ///   refused. A tensor of a type that is not known is there, with no bytes, and cannot be decoded.
  explicit gguf_file(std::filesystem::path const& path) : contents_(detail::read_gguf(path)) {}
  /// The same for contents that somebody else owns, called `name` in errors.
  gguf_file(std::span<std::byte const> contents, std::string name)
      : contents_(detail::parse_whole_gguf(contents, std::move(name))) {}

  std::uint32_t version() const { return contents_.version; }
  ggml_tensor_map const& tensors() const { return contents_.tensors; }
  /// Null when there is no such tensor.
  ggml_tensor const* find_tensor(std::string_view name) const {
    auto const found = tensors().find(name);
    return found == tensors().end() ? nullptr : &found->second;
  }

  std::map<std::string, gguf_value, std::less<>> const& metadata() const { return contents_.metadata; }
  /// The value of a key: nothing when it is not there. T is bool, std::int64_t (any integer type), double (any
  /// number), std::string_view (into the file), or a std::vector of one of the latter three.
  /// @throws gptq::error when the value is of another type, or an integer beyond int64
  template <class T>
  std::optional<T> get(std::string_view key) const {
    return detail::find_value<T>(contents_, key);
  }
  /// @throws gptq::error as well when it is not there
  template <class T>
  T at(std::string_view key) const {
    if (auto value = get<T>(key)) return std::move(*value);
    throw error(contents_.file + ": has no metadata '" + std::string(key) + "'");
  }

 private:
  detail::gguf_contents contents_;
};

/// Metadata to be written, in the order in which it is added.
class gguf_metadata {
 public:
  /// T is one of the integer types of 8 to 64 bits, float, double, bool, something that converts to
  /// std::string_view, a std::vector of one of them but bool, or a gguf_value of another file.
  /// @throws gptq::error for a key that is empty, longer than 65535 bytes, not UTF-8, there already, or the
  ///   writer's own: general.alignment
  template <class T>
  void add(std::string_view key, T const& value) {
    detail::add_key(entries_, key);
    detail::append_value(entries_.encoded, value);
  }

  std::uint64_t size() const { return entries_.keys.size(); }
  /// As it lies in a file.
  detail::encoded_metadata const& entries() const { return entries_; }

 private:
  detail::encoded_metadata entries_;
};

/// Writes a file piece by piece, so that no more than a tensor has to be in memory. The file appears under its name
/// only when it is complete and on the disk.
class gguf_writer {
 public:
  /// @throws gptq::error when a name or shape is not one, a name is there twice, or the disk does not take the file
  gguf_writer(std::filesystem::path const& path, gguf_metadata const& metadata,
              std::vector<gguf_tensor_info> tensors)
      : file_(path.string()), tensors_(std::move(tensors)), out_(path) {
    out_.write(detail::gguf_header(file_, metadata.entries(), tensors_));
  }

  /// The bytes of the next tensor. @throws gptq::error when it has another number of them
  void write(std::span<std::byte const> bytes) {
    detail::check_next_tensor(file_, tensors_, next_, bytes);
    out_.write(bytes);
    out_.write(detail::padding_after(bytes.size()));
  }
  /// @throws gptq::error when tensors are missing
  void finish() {
    if (next_ != tensors_.size())
      throw error(file_ + ": tensor '" + tensors_[next_].name + "' is not written");
    out_.finish();
  }

 private:
  std::string file_;
  std::vector<gguf_tensor_info> tensors_;
  std::size_t next_ = 0;
  new_file out_;
};

/// Writes a file whose tensors are all there.
inline void write_gguf(std::filesystem::path const& path, gguf_metadata const& metadata,
                       ggml_tensor_map const& tensors) {
  std::vector<gguf_tensor_info> infos;
  for (auto const& [name, tensor] : tensors) infos.push_back({name, tensor.type, tensor.shape});
  gguf_writer out(path, metadata, std::move(infos));
  for (auto const& [name, tensor] : tensors) out.write(tensor.bytes);
  out.finish();
}

}  // namespace gptq::checkpoint
