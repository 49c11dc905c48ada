// Reading and writing safetensors files (https://github.com/huggingface/safetensors).
//
//   gptq::checkpoint::safetensors_directory model("path/to/model");      // sharded or not
//   auto const& weight = model.at("model.norm.weight");                  // dtype, shape, bytes: not copied
//   std::vector<float> values = gptq::checkpoint::to_float(weight);      // F32, F16 or BF16
//
// A file is 8 bytes with the length of a header (little endian), the header (JSON: name -> dtype, shape,
// offsets of its first byte and of the byte after its last), and the tensors' bytes without holes. Files are
// mapped into memory, not read, and nothing in them is trusted: every error is a gptq::error that names the
// file, the tensor and what is wrong. A file that another process shortens while it is mapped ends the
// program (SIGBUS).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/file.hpp>
#include <gptq/error.hpp>
#include <gptq/float16.hpp>

namespace gptq::checkpoint {

static_assert(std::endian::native == std::endian::little, "safetensors are read without swapping bytes");

/// The element types of the format.
enum class dtype { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean, f8_e4m3, f8_e5m2 };

/// As written in files: "F32", "BF16", ...
std::string_view name_of(dtype type);
/// Bytes of an element.
std::size_t size_of(dtype type);
/// Whether to_float() converts it: F32, F16 and BF16.
bool is_float(dtype type);

/// A tensor whose bytes somebody else owns: row-major, little endian, possibly not aligned to its element
/// type.
struct tensor_view {
  dtype type = dtype::f32;
  std::vector<std::size_t> shape;
  std::span<std::byte const> bytes;  ///< product of shape elements
};

/// Names with their tensors, in alphabetical order.
using tensor_map = std::map<std::string, tensor_view, std::less<>>;

/// "F32 [32000, 288]"
std::string to_string(tensor_view const& tensor);

/// Converts elements [first, first + out.size()) of an F32, F16 or BF16 tensor, exactly. Throws gptq::error
/// for other element types and for elements that the tensor does not have.
void to_float(tensor_view const& tensor, std::size_t first, std::span<float> out);
/// All elements.
std::vector<float> to_float(tensor_view const& tensor);

/// One file, mapped read-only as long as this object lives.
class safetensors_file {
 public:
  /// Throws gptq::error unless the whole file is well-formed: a header of at most 100 MB, no key twice,
  /// shapes that agree with the offsets, tensors that cover the rest of the file without overlap or hole.
  explicit safetensors_file(std::filesystem::path const& path);
  /// The same for contents that somebody else owns, called `name` in errors.
  safetensors_file(std::span<std::byte const> contents, std::string const& name);

  tensor_map const& tensors() const { return tensors_; }
  /// The strings under "__metadata__".
  std::map<std::string, std::string> const& metadata() const { return metadata_; }
  /// Null when there is no such tensor.
  tensor_view const* find(std::string_view name) const;

 private:
  void parse(std::span<std::byte const> contents, std::string const& file);

  std::shared_ptr<std::byte const> mapping_;
  tensor_map tensors_;
  std::map<std::string, std::string> metadata_;
};

/// The tensors of a model directory: model.safetensors, or the shards that model.safetensors.index.json
/// names.
class safetensors_directory {
 public:
  /// Throws gptq::error when neither file is there or one of them is wrong.
  explicit safetensors_directory(std::filesystem::path const& directory);

  tensor_map const& tensors() const { return tensors_; }
  /// Null when there is no such tensor.
  tensor_view const* find(std::string_view name) const;
  /// Throws gptq::error when there is no such tensor.
  tensor_view const& at(std::string_view name) const;

 private:
  std::filesystem::path directory_;
  std::vector<safetensors_file> files_;
  tensor_map tensors_;
};

/// What a tensor is to be, before its bytes are there.
struct tensor_info {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::size_t> shape;

  /// Throws gptq::error when the shape overflows.
  std::size_t bytes() const;
};

/// Writes a file tensor by tensor, in the order given, so that they need not be in memory together. The file
/// appears under its name when finish() returns, complete and on the disk, and is gone without it.
class safetensors_writer {
 public:
  /// Throws gptq::error when a name is reserved, not UTF-8 or there twice, a shape overflows, or the disk
  /// does not take the file.
  safetensors_writer(std::filesystem::path const& path, std::vector<tensor_info> tensors,
                     std::map<std::string, std::string> const& metadata = {});

  /// The bytes of the next tensor. Throws gptq::error when it has another number of them.
  void write(std::span<std::byte const> bytes);
  /// Throws gptq::error when tensors are missing.
  void finish();

 private:
  std::filesystem::path path_;
  std::vector<tensor_info> tensors_;
  std::size_t next_ = 0;
  detail::new_file out_;
};

/// Writes a file, larger element types first so that all tensors are aligned. The file appears under its name
/// only when it is complete and on the disk. Throws gptq::error when a shape and its bytes disagree or the
/// disk does not take the file.
void write_safetensors(std::filesystem::path const& path, tensor_map const& tensors,
                       std::map<std::string, std::string> const& metadata = {});

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

struct dtype_entry {
  dtype type;
  std::string_view name;
  std::size_t size;
};
// In the order of the enumeration.
inline constexpr std::array<dtype_entry, 15> dtypes{{{dtype::f64, "F64", 8},
                                                     {dtype::f32, "F32", 4},
                                                     {dtype::f16, "F16", 2},
                                                     {dtype::bf16, "BF16", 2},
                                                     {dtype::i64, "I64", 8},
                                                     {dtype::i32, "I32", 4},
                                                     {dtype::i16, "I16", 2},
                                                     {dtype::i8, "I8", 1},
                                                     {dtype::u64, "U64", 8},
                                                     {dtype::u32, "U32", 4},
                                                     {dtype::u16, "U16", 2},
                                                     {dtype::u8, "U8", 1},
                                                     {dtype::boolean, "BOOL", 1},
                                                     {dtype::f8_e4m3, "F8_E4M3", 1},
                                                     {dtype::f8_e5m2, "F8_E5M2", 1}}};

inline constexpr std::string_view metadata_key = "__metadata__";
inline constexpr std::size_t length_bytes = 8;
inline constexpr std::size_t max_header_bytes = 100'000'000;
inline constexpr std::size_t max_index_bytes = 100'000'000;

/// Parses JSON that has no business being deep or saying anything twice.
inline nlohmann::json parse_json(std::string_view text, std::string const& where, int max_depth) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open, outermost first
  using event_t = nlohmann::json::parse_event_t;
  auto const check = [&](int depth, event_t event, nlohmann::json& value) {
    bool const opens = event == event_t::object_start || event == event_t::array_start;
    if (opens && depth >= max_depth) {
      throw error(where + ": nested deeper than " + std::to_string(max_depth) + " levels");
    }
    if (event == event_t::object_start) keys.emplace_back();
    if (event == event_t::object_end) keys.pop_back();
    if (event == event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      throw error(where + ": '" + value.get<std::string>() + "' appears twice");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (nlohmann::json::exception const& e) {
    throw error(where + ": not valid JSON: " + e.what());
  }
}

/// The unsigned integers of a JSON array.
inline std::vector<std::size_t> integers(nlohmann::json const& entry, char const* field,
                                         std::string const& where) {
  auto const found = entry.find(field);
  if (found == entry.end() || !found->is_array()) throw error(where + ": has no array '" + field + "'");
  std::vector<std::size_t> values;
  for (auto const& value : *found) {
    if (!value.is_number_unsigned()) {
      throw error(where + ": '" + field + "' holds " + value.dump() + ", which is not a size");
    }
    values.push_back(value.get<std::size_t>());
  }
  return values;
}

/// Bytes of a tensor of this type and shape.
inline std::size_t byte_count(dtype type, std::span<std::size_t const> shape, std::string const& where) {
  if (std::find(shape.begin(), shape.end(), std::size_t{0}) != shape.end()) return 0;
  std::size_t bytes = size_of(type);
  for (std::size_t const extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) throw error(where + ": its shape overflows");
  }
  return bytes;
}

/// An entry of the header, checked against the bytes that follow the header.
inline tensor_view parse_tensor(nlohmann::json const& entry, std::span<std::byte const> buffer,
                                std::string const& where) {
  if (!entry.is_object()) throw error(where + ": its header entry is not an object");
  auto const type_name = entry.find("dtype");
  if (type_name == entry.end() || !type_name->is_string()) throw error(where + ": has no string 'dtype'");
  auto const known = std::find_if(dtypes.begin(), dtypes.end(), [&](dtype_entry const& d) {
    return d.name == type_name->get_ref<std::string const&>();
  });
  if (known == dtypes.end()) throw error(where + ": unknown dtype " + type_name->dump());

  std::vector<std::size_t> shape = integers(entry, "shape", where);
  std::vector<std::size_t> const offsets = integers(entry, "data_offsets", where);
  if (offsets.size() != 2) throw error(where + ": 'data_offsets' must hold two numbers");
  auto const [begin, end] = std::pair(offsets[0], offsets[1]);
  if (begin > end || end > buffer.size()) {
    throw error(where + ": data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
                "] do not lie in the file's " + std::to_string(buffer.size()) + " bytes of data");
  }
  if (std::size_t const want = byte_count(known->type, shape, where); want != end - begin) {
    throw error(where + ": its shape takes " + std::to_string(want) + " bytes, its data_offsets give " +
                std::to_string(end - begin));
  }
  return {known->type, std::move(shape), buffer.subspan(begin, end - begin)};
}

/// Throws unless the tensors fill the buffer from its first to its last byte, each byte once.
inline void check_coverage(tensor_map const& tensors, std::span<std::byte const> buffer,
                           std::string const& file) {
  std::vector<tensor_map::const_pointer> sorted;
  for (auto const& entry : tensors) sorted.push_back(&entry);
  auto const end_of = [](tensor_map::const_pointer e) {
    return e->second.bytes.data() + e->second.bytes.size();
  };
  std::sort(sorted.begin(), sorted.end(), [&](auto a, auto b) {
    return std::pair(a->second.bytes.data(), end_of(a)) < std::pair(b->second.bytes.data(), end_of(b));
  });
  std::byte const* covered = buffer.data();
  for (auto const* entry : sorted) {
    if (entry->second.bytes.data() != covered) {
      throw error(file + ": tensor '" + entry->first +
                  "': " + (entry->second.bytes.data() < covered ? "overlaps" : "leaves a hole after") +
                  " the tensor before it");
    }
    covered = end_of(entry);
  }
  if (covered != buffer.data() + buffer.size()) {
    throw error(file + ": " + std::to_string(buffer.data() + buffer.size() - covered) +
                " bytes after the last tensor belong to none");
  }
}

template <class Stored>
void convert(std::span<std::byte const> from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, from.data() + 2 * i, 2);
    to[i] = static_cast<float>(Stored::from_bits(bits));
  }
}

inline tensor_view const* find_tensor(tensor_map const& tensors, std::string_view name) {
  auto const found = tensors.find(name);
  return found == tensors.end() ? nullptr : &found->second;
}

}  // namespace detail

inline std::string_view name_of(dtype type) { return detail::dtypes[static_cast<std::size_t>(type)].name; }
inline std::size_t size_of(dtype type) { return detail::dtypes[static_cast<std::size_t>(type)].size; }
inline bool is_float(dtype type) { return type == dtype::f32 || type == dtype::f16 || type == dtype::bf16; }

inline std::string to_string(tensor_view const& tensor) {
  std::string text(name_of(tensor.type));
  text += " [";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(tensor.shape[i]);
  }
  return text + "]";
}

inline void to_float(tensor_view const& tensor, std::size_t first, std::span<float> out) {
  std::size_t const size = size_of(tensor.type);
  std::size_t const count = tensor.bytes.size() / size;
  if (first > count || out.size() > count - first) {
    throw error("tensor " + to_string(tensor) + " has no elements " + std::to_string(first) + " to " +
                std::to_string(first + out.size()));
  }
  if (out.empty()) return;
  auto const from = tensor.bytes.subspan(first * size, out.size() * size);
  switch (tensor.type) {
    case dtype::f32:
      std::memcpy(out.data(), from.data(), from.size());
      return;
    case dtype::f16:
      detail::convert<float16>(from, out);
      return;
    case dtype::bf16:
      detail::convert<bfloat16>(from, out);
      return;
    default:
      throw error("tensor " + to_string(tensor) + " cannot be read as numbers: only F32, F16 and BF16 can");
  }
}

inline std::vector<float> to_float(tensor_view const& tensor) {
  std::vector<float> values(tensor.bytes.size() / size_of(tensor.type));
  to_float(tensor, 0, values);
  return values;
}

inline safetensors_file::safetensors_file(std::filesystem::path const& path) {
  auto const [data, size] = detail::map_file(path);
  mapping_ = data;
  parse({data.get(), size}, path.string());
}

inline safetensors_file::safetensors_file(std::span<std::byte const> contents, std::string const& name) {
  parse(contents, name);
}

inline void safetensors_file::parse(std::span<std::byte const> contents, std::string const& file) {
  std::size_t const size = contents.size();
  std::uint64_t header_size = 0;
  if (size < detail::length_bytes) throw error(file + ": too short for a safetensors file");
  std::memcpy(&header_size, contents.data(), detail::length_bytes);
  if (header_size > size - detail::length_bytes || header_size > detail::max_header_bytes) {
    throw error(file + ": not a safetensors file, or cut short: a header of " + std::to_string(header_size) +
                " bytes in a file of " + std::to_string(size));
  }
  auto const header = contents.subspan(detail::length_bytes, header_size);
  auto const buffer = contents.subspan(detail::length_bytes + header_size);

  // The deepest a header gets is the shape of a tensor: object, object, array.
  auto const json =
      detail::parse_json({reinterpret_cast<char const*>(header.data()), header.size()}, file + ": header", 3);
  if (!json.is_object()) throw error(file + ": header: not a JSON object");
  for (auto const& [name, entry] : json.items()) {
    if (name == detail::metadata_key) {
      if (!entry.is_object()) throw error(file + ": header: metadata is not an object");
      for (auto const& [key, value] : entry.items()) {
        if (!value.is_string()) throw error(file + ": header: metadata '" + key + "' is not a string");
        metadata_.emplace(key, value.get<std::string>());
      }
    } else {
      tensors_.emplace(name, detail::parse_tensor(entry, buffer, file + ": tensor '" + name + "'"));
    }
  }
  detail::check_coverage(tensors_, buffer, file);
}

inline tensor_view const* safetensors_file::find(std::string_view name) const {
  return detail::find_tensor(tensors_, name);
}

inline safetensors_directory::safetensors_directory(std::filesystem::path const& directory)
    : directory_(directory) {
  if (!std::filesystem::is_directory(directory)) throw error(directory.string() + ": is not a directory");
  auto const single = directory / "model.safetensors";
  auto const index = directory / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) {
    files_.emplace_back(single);
    tensors_ = files_.back().tensors();
    return;
  }
  if (!std::filesystem::exists(index)) {
    throw error(directory.string() + ": has neither model.safetensors nor model.safetensors.index.json");
  }

  std::string const where = index.string();
  auto const [data, size] = detail::map_file(index);
  if (size > detail::max_index_bytes) throw error(where + ": larger than an index can be");
  auto const json = detail::parse_json({reinterpret_cast<char const*>(data.get()), size}, where, 3);
  auto const weights = json.find("weight_map");
  if (weights == json.end() || !weights->is_object()) throw error(where + ": has no object 'weight_map'");

  std::map<std::string, std::size_t> opened;  // file name -> position in files_
  for (auto const& [name, value] : weights->items()) {
    std::string const entry = where + ": tensor '" + name + "'";
    if (!value.is_string()) throw error(entry + ": its file is not a string");
    auto const& file = value.get_ref<std::string const&>();
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      throw error(entry + ": its file " + value.dump() + " is not a name in this directory");
    }
    auto const [position, is_new] = opened.emplace(file, files_.size());
    if (is_new) files_.emplace_back(directory / file);
    auto const* const tensor = files_[position->second].find(name);
    if (tensor == nullptr) throw error(entry + ": is not in " + file);
    tensors_.emplace(name, *tensor);
  }
}

inline tensor_view const* safetensors_directory::find(std::string_view name) const {
  return detail::find_tensor(tensors_, name);
}

inline tensor_view const& safetensors_directory::at(std::string_view name) const {
  auto const* const tensor = find(name);
  if (tensor == nullptr) throw error(directory_.string() + ": has no tensor '" + std::string(name) + "'");
  return *tensor;
}

inline std::size_t tensor_info::bytes() const {
  return detail::byte_count(type, shape, "tensor '" + name + "'");
}

inline safetensors_writer::safetensors_writer(std::filesystem::path const& path,
                                              std::vector<tensor_info> tensors,
                                              std::map<std::string, std::string> const& metadata)
    : path_(path), tensors_(std::move(tensors)), out_(path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(detail::metadata_key)] = metadata;
  std::set<std::string_view> names;
  std::size_t offset = 0;
  for (tensor_info const& t : tensors_) {
    std::string const where = path.string() + ": tensor '" + t.name + "'";
    if (t.name == detail::metadata_key) throw error(where + ": this name is reserved");
    if (!names.insert(t.name).second) throw error(where + " is there twice");
    std::size_t const end = offset + detail::byte_count(t.type, t.shape, where);
    header[t.name] = {{"dtype", name_of(t.type)}, {"shape", t.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (nlohmann::json::exception const& e) {
    throw error(path.string() + ": a name is not UTF-8: " + e.what());
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors start aligned
  std::uint64_t const header_size = text.size();
  if (header_size > detail::max_header_bytes) throw error(path.string() + ": the header would be too large");
  out_.write(std::as_bytes(std::span(&header_size, 1)));
  out_.write(std::as_bytes(std::span(text)));
}

inline void safetensors_writer::write(std::span<std::byte const> bytes) {
  if (next_ == tensors_.size()) throw error(path_.string() + ": all tensors are written");
  tensor_info const& t = tensors_[next_++];
  if (bytes.size() != t.bytes()) {
    throw error(path_.string() + ": tensor '" + t.name + "': " + to_string({t.type, t.shape, {}}) + " with " +
                std::to_string(bytes.size()) + " bytes");
  }
  out_.write(bytes);
}

inline void safetensors_writer::finish() {
  if (next_ != tensors_.size()) {
    throw error(path_.string() + ": tensor '" + tensors_[next_].name + "' is not written");
  }
  out_.finish();
}

inline void write_safetensors(std::filesystem::path const& path, tensor_map const& tensors,
                              std::map<std::string, std::string> const& metadata) {
  std::vector<tensor_map::const_pointer> order;
  for (auto const& entry : tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](auto a, auto b) { return size_of(a->second.type) > size_of(b->second.type); });
  std::vector<tensor_info> infos;
  infos.reserve(order.size());
  for (auto const* entry : order) infos.push_back({entry->first, entry->second.type, entry->second.shape});
  safetensors_writer out(path, std::move(infos), metadata);
  for (auto const* entry : order) out.write(entry->second.bytes);
  out.finish();
}

}  // namespace gptq::checkpoint
