// Reading and writing safetensors files (https://github.com/huggingface/safetensors).
//
//   gptq::checkpoint::safetensors_directory model("path/to/model");      // sharded or not
//   auto const& weight = model.at("model.norm.weight");                  // dtype, shape, bytes: not copied
//   std::vector<float> values = gptq::checkpoint::to_float(weight);      // F32, F16 or BF16
//
// A file is 8 bytes with the length of a header (little endian), the header (JSON: name -> dtype, shape, offsets
// of its first byte and of the byte after its last), and the tensors' bytes without holes. Files are mapped into
// memory, not read, and nothing in them is trusted: every error is a gptq::error that names the file, the tensor
// and what is wrong. A file that another process shortens while it is mapped ends the program (SIGBUS).
//
// A tensor of a type that is not known keeps no file from being opened; whoever wants its numbers is refused.
// dtype, tensor_view { type, shape, bytes } and tensor_map (names with their tensors) are in
// safetensors/tensors.hpp, tensor_info { name, type, shape } in safetensors/writer.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gptq/checkpoint/files.hpp>
#include <gptq/checkpoint/safetensors/reader.hpp>
#include <gptq/checkpoint/safetensors/tensors.hpp>
#include <gptq/checkpoint/safetensors/writer.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint {

/// As written in files: "F32", "BF16", ...
inline std::string_view type_name(dtype type) { return detail::entry(type).name; }
/// Bytes of an element; 0 when the type is not known.
inline std::size_t element_bytes(dtype type) { return detail::entry(type).bytes; }
/// Whether to_float() converts it.
inline bool is_float(dtype type) { return detail::holds_floats(type); }

/// "F32 [32000, 288]"
inline std::string to_string(tensor_view const& tensor) { return detail::describe(tensor); }

/// Converts elements [first, first + out.size()) of an F32, F16 or BF16 tensor, exactly.
/// @throws gptq::error for other element types and for elements that the tensor does not have
inline void to_float(tensor_view const& tensor, std::size_t first, std::span<float> out) {
  detail::convert_to_float(tensor, first, out);
}
/// All elements.
inline std::vector<float> to_float(tensor_view const& tensor) {
  std::vector<float> values(detail::float_count(tensor));
  to_float(tensor, 0, values);
  return values;
}

/// One file, mapped read-only as long as this object lives.
class safetensors_file {
 public:
  /// @throws gptq::error unless the whole file is well-formed: a header of at most 100 MB, no key twice, shapes
  ///   that agree with the offsets, tensors that cover the rest of the file without overlap or hole
  explicit safetensors_file(std::filesystem::path const& path) : contents_(detail::read_safetensors(path)) {}
  /// The same for contents that somebody else owns, called `name` in errors.
  safetensors_file(std::span<std::byte const> contents, std::string const& name)
      : contents_(detail::parse_safetensors(contents, name)) {}

  tensor_map const& tensors() const { return contents_.tensors; }
  /// The strings under "__metadata__".
  std::map<std::string, std::string> const& metadata() const { return contents_.metadata; }
  /// Null when there is no such tensor.
  tensor_view const* find(std::string_view name) const { return detail::find_tensor(tensors(), name); }

 private:
  detail::safetensors_contents contents_;
};

/// The tensors of a model directory: model.safetensors, or, when that is not there, the shards that
/// model.safetensors.index.json names.
class safetensors_directory {
 public:
  /// @throws gptq::error when neither file is there or one of them is wrong
  explicit safetensors_directory(std::filesystem::path const& directory)
      : directory_(directory), model_(detail::read_safetensors_directory(directory)) {}

  tensor_map const& tensors() const { return model_.tensors; }
  /// Null when there is no such tensor.
  tensor_view const* find(std::string_view name) const { return detail::find_tensor(tensors(), name); }
  /// @throws gptq::error when there is no such tensor
  tensor_view const& at(std::string_view name) const {
    if (auto const* const tensor = find(name)) return *tensor;
    throw error(directory_.string() + ": has no tensor '" + std::string(name) + "'");
  }

 private:
  std::filesystem::path directory_;
  detail::safetensors_model model_;
};

/// Writes a file tensor by tensor, in the order given, so that they need not be in memory together. The file
/// appears under its name when finish() returns, complete and on the disk, and is gone without it.
class safetensors_writer {
 public:
  /// @throws gptq::error when a name is reserved, not UTF-8 or there twice, a shape overflows, or the disk does
  ///   not take the file
  safetensors_writer(std::filesystem::path const& path, std::vector<tensor_info> tensors,
                     std::map<std::string, std::string> const& metadata = {})
      : file_(path.string()), tensors_(std::move(tensors)), out_(path) {
    out_.write(detail::safetensors_header(file_, tensors_, metadata));
  }

  /// The bytes of the next tensor. @throws gptq::error when it has another number of them
  void write(std::span<std::byte const> bytes) {
    detail::check_next_tensor(file_, tensors_, next_, bytes);
    out_.write(bytes);
  }
  /// @throws gptq::error when tensors are missing
  void finish() {
    if (next_ != tensors_.size())
      throw error(file_ + ": tensor '" + tensors_[next_].name + "' is not written");
    out_.finish();
  }

 private:
  std::string file_;
  std::vector<tensor_info> tensors_;
  std::size_t next_ = 0;
  new_file out_;
};

/// Writes a file, larger element types first so that all tensors are aligned. The file appears under its name
/// only when it is complete and on the disk.
/// @throws gptq::error when a shape and its bytes disagree or the disk does not take the file
inline void write_safetensors(std::filesystem::path const& path, tensor_map const& tensors,
                              std::map<std::string, std::string> const& metadata = {}) {
  auto const order = detail::largest_elements_first(tensors);
  std::vector<tensor_info> infos;
  infos.reserve(order.size());
  for (auto const* entry : order) infos.push_back({entry->first, entry->second.type, entry->second.shape});
  safetensors_writer out(path, std::move(infos), metadata);
  for (auto const* entry : order) out.write(entry->second.bytes);
  out.finish();
}

}  // namespace gptq::checkpoint
