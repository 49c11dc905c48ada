// Reading and writing GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
//
//   gptq::checkpoint::gguf_file file("model.gguf");                       // mapped, not read
//   auto layers = file.at<std::int64_t>("llama.block_count");             // metadata
//   auto tokens = file.at<std::vector<std::string_view>>("tokenizer.ggml.tokens");
//   auto const& weight = file.tensors().at("blk.0.attn_q.weight");        // type, shape, bytes: not copied
//   std::vector<float> values = gptq::checkpoint::to_float(weight);       // ggml.hpp
//
// A file is "GGUF", its version (2 or 3), how many tensors and metadata entries it has, the entries (key,
// type, value), the tensors' descriptions (name, extents, type, offset) and, from the next multiple of
// general.alignment (32 when it is not there) on, their bytes, each tensor at such a multiple. Nothing in a
// file is trusted: every error is a gptq::error that names the file, the entry or tensor, and what is wrong.
// A file that another process shortens while it is mapped ends the program (SIGBUS).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gptq/checkpoint/file.hpp>
#include <gptq/checkpoint/ggml.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint {

/// Types of metadata, with their numbers in a file.
enum class gguf_type : std::uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64
};

/// "UINT32", "STRING", ...
std::string_view name_of(gguf_type type);

/// A metadata value where it lies in the file.
struct gguf_value {
  gguf_type type = gguf_type::u8;      ///< of an array: of its elements, and never array itself
  std::optional<std::uint64_t> count;  ///< elements of an array; nothing: a single value
  std::span<std::byte const> bytes;    ///< little endian; strings with their lengths before them
};

/// "STRING", "array of 32000 FLOAT32"
std::string to_string(gguf_value const& value);

/// Names with their tensors, in alphabetical order.
using ggml_tensor_map = std::map<std::string, ggml_tensor, std::less<>>;

/// One file, mapped read-only as long as this object lives.
class gguf_file {
 public:
  /// Throws gptq::error unless the whole file is well-formed: keys and names in UTF-8 and not twice, strings
  /// and arrays within the file, tensors of known types within its data, without overlap. Arrays of arrays,
  /// which nobody writes, are refused.
  explicit gguf_file(std::filesystem::path const& path);
  /// The same for contents that somebody else owns, called `name` in errors.
  gguf_file(std::span<std::byte const> contents, std::string name);

  std::uint32_t version() const { return version_; }
  ggml_tensor_map const& tensors() const { return tensors_; }
  /// Null when there is no such tensor.
  ggml_tensor const* find_tensor(std::string_view name) const;

  std::map<std::string, gguf_value, std::less<>> const& metadata() const { return metadata_; }
  /// The value of a key: nothing when it is not there. T is bool, std::int64_t (any integer type), double
  /// (any number), std::string_view (into the file), or a std::vector of one of the latter three. Throws
  /// gptq::error when the value is of another type, or an integer beyond int64.
  template <class T>
  std::optional<T> get(std::string_view key) const;
  /// Throws gptq::error as well when it is not there.
  template <class T>
  T at(std::string_view key) const;

 private:
  void parse(std::span<std::byte const> contents);

  std::string name_;
  std::shared_ptr<std::byte const> mapping_;
  std::uint32_t version_ = 0;
  ggml_tensor_map tensors_;
  std::map<std::string, gguf_value, std::less<>> metadata_;
};

/// Metadata to be written, in the order in which it is added.
class gguf_metadata {
 public:
  /// T is one of the integer types of 8 to 64 bits, float, double, bool, something that converts to
  /// std::string_view, or a std::vector of one of them but bool. Throws gptq::error for a key that is empty,
  /// longer than 65535 bytes, not UTF-8, there already, or the writer's own: general.alignment.
  template <class T>
  void add(std::string_view key, T const& value);
  /// A value of another file.
  void add(std::string_view key, gguf_value const& value);

  std::uint64_t size() const { return keys_.size(); }
  /// As it lies in a file.
  std::string const& encoded() const { return encoded_; }

 private:
  void add_key(std::string_view key);

  std::set<std::string, std::less<>> keys_;
  std::string encoded_;
};

/// What is known of a tensor before its bytes are written.
struct gguf_tensor_info {
  std::string name;  ///< 1 to 63 bytes, which is what ggml takes
  ggml_type type = ggml_type::f32;
  std::vector<std::size_t> shape;  ///< 1 to 4 extents, the last being that of a row
};

/// Writes a file piece by piece, so that no more than a tensor has to be in memory. The file appears under
/// its name only when it is complete and on the disk.
class gguf_writer {
 public:
  /// Throws gptq::error when a name or shape is not one, a name is there twice, or the disk does not take the
  /// file.
  gguf_writer(std::filesystem::path const& path, gguf_metadata const& metadata,
              std::vector<gguf_tensor_info> tensors);

  /// The bytes of the next tensor. Throws gptq::error when it has another number of them.
  void write(std::span<std::byte const> bytes);
  /// Throws gptq::error when tensors are missing.
  void finish();

 private:
  void pad();

  std::filesystem::path path_;
  std::vector<gguf_tensor_info> tensors_;
  std::size_t next_ = 0;
  std::size_t written_ = 0;
  detail::new_file out_;
};

/// Writes a file whose tensors are all there.
void write_gguf(std::filesystem::path const& path, gguf_metadata const& metadata,
                ggml_tensor_map const& tensors);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

inline constexpr std::string_view gguf_magic = "GGUF";
inline constexpr std::uint32_t gguf_version = 3;
inline constexpr std::size_t gguf_alignment = 32;
inline constexpr std::string_view gguf_alignment_key = "general.alignment";
inline constexpr std::size_t max_gguf_name = 63;

struct gguf_type_entry {
  std::string_view name;
  std::size_t least_bytes;  ///< of a value; exactly these, but for strings and arrays
};
// In the order of the enumeration.
inline constexpr std::array<gguf_type_entry, 13> gguf_types{{{"UINT8", 1},
                                                             {"INT8", 1},
                                                             {"UINT16", 2},
                                                             {"INT16", 2},
                                                             {"UINT32", 4},
                                                             {"INT32", 4},
                                                             {"FLOAT32", 4},
                                                             {"BOOL", 1},
                                                             {"STRING", 8},
                                                             {"ARRAY", 12},
                                                             {"UINT64", 8},
                                                             {"INT64", 8},
                                                             {"FLOAT64", 8}}};
// The least that a metadata entry (key, type, value) and a tensor's description take.
inline constexpr std::size_t least_entry_bytes = 8 + 4 + 1;
inline constexpr std::size_t least_tensor_bytes = 8 + 4 + 4 + 8;

/// Whether a text is UTF-8: no stray or missing continuation, no overlong form, surrogate or code above
/// 0x10ffff.
inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    auto const lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x80) continue;
    int const more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || text.size() - i < static_cast<std::size_t>(more)) return false;
    std::uint32_t code = lead & (0x3fU >> more);
    for (int k = 0; k < more; ++k) {
      auto const next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fU);
    }
    constexpr std::array<std::uint32_t, 4> least{0, 0x80, 0x800, 0x10000};
    if (code < least[static_cast<std::size_t>(more)] || code > 0x10ffff ||
        (code >= 0xd800 && code < 0xe000)) {
      return false;
    }
  }
  return true;
}

template <class T>
T number_at(std::byte const* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

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

inline gguf_type read_type(gguf_cursor& in, std::string const& where) {
  auto const type = in.number<std::uint32_t>("the type of " + where);
  if (type >= gguf_types.size()) throw error(where + " has the unknown type " + std::to_string(type));
  return static_cast<gguf_type>(type);
}

/// A value, passed over.
/// @param where  "FILE: metadata 'KEY'"
inline gguf_value read_value(gguf_cursor& in, std::span<std::byte const> contents, std::string const& where) {
  gguf_value value;
  value.type = read_type(in, where);
  if (value.type == gguf_type::array) {
    value.type = read_type(in, where + ": an element");
    if (value.type == gguf_type::array) throw error(where + " is an array of arrays");
    value.count = in.number<std::uint64_t>("its length");
  }
  std::uint64_t const count = value.count.value_or(1);
  std::size_t const least = gguf_types[static_cast<std::size_t>(value.type)].least_bytes;
  if (count > in.left() / least) {
    throw error(where + ": cut short, or damaged: " + std::to_string(count) + " values of " +
                std::string(name_of(value.type)) + ", " + std::to_string(in.left()) + " bytes are left");
  }
  std::size_t const start = in.position();
  if (value.type != gguf_type::string) {
    in.take(count * least, where);
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
constexpr gguf_type gguf_type_of() {
  if constexpr (std::is_same_v<T, bool>) return gguf_type::boolean;
  if constexpr (std::is_same_v<T, float>) return gguf_type::f32;
  if constexpr (std::is_same_v<T, double>) return gguf_type::f64;
  if constexpr (std::is_convertible_v<T const&, std::string_view>) return gguf_type::string;
  if constexpr (std::is_same_v<T, std::uint8_t>) return gguf_type::u8;
  if constexpr (std::is_same_v<T, std::int8_t>) return gguf_type::i8;
  if constexpr (std::is_same_v<T, std::uint16_t>) return gguf_type::u16;
  if constexpr (std::is_same_v<T, std::int16_t>) return gguf_type::i16;
  if constexpr (std::is_same_v<T, std::uint32_t>) return gguf_type::u32;
  if constexpr (std::is_same_v<T, std::int32_t>) return gguf_type::i32;
  if constexpr (std::is_same_v<T, std::uint64_t>) return gguf_type::u64;
  if constexpr (std::is_same_v<T, std::int64_t>) return gguf_type::i64;
  return gguf_type::array;
}

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;

inline void append_bytes(std::string& out, void const* data, std::size_t size) {
  out.append(static_cast<char const*>(data), size);
}
template <class T>
void append(std::string& out, T const& value) {
  if constexpr (gguf_type_of<T>() == gguf_type::string) {
    std::string_view const text(value);
    append(out, std::uint64_t{text.size()});
    out += text;
  } else {
    append_bytes(out, &value, sizeof value);
  }
}

/// Calls use(value) with the number at p, as it is.
template <class Use>
decltype(auto) with_number(gguf_type type, std::byte const* p, Use&& use) {
  switch (type) {
    case gguf_type::u8:
      return use(number_at<std::uint8_t>(p));
    case gguf_type::i8:
      return use(number_at<std::int8_t>(p));
    case gguf_type::u16:
      return use(number_at<std::uint16_t>(p));
    case gguf_type::i16:
      return use(number_at<std::int16_t>(p));
    case gguf_type::u32:
      return use(number_at<std::uint32_t>(p));
    case gguf_type::i32:
      return use(number_at<std::int32_t>(p));
    case gguf_type::u64:
      return use(number_at<std::uint64_t>(p));
    case gguf_type::i64:
      return use(number_at<std::int64_t>(p));
    case gguf_type::f64:
      return use(number_at<double>(p));
    default:
      return use(number_at<float>(p));
  }
}

inline bool is_integer(gguf_type type) {
  switch (type) {
    case gguf_type::f32:
    case gguf_type::f64:
    case gguf_type::boolean:
    case gguf_type::string:
    case gguf_type::array:
      return false;
    default:
      return true;
  }
}
inline bool is_number(gguf_type type) {
  return is_integer(type) || type == gguf_type::f32 || type == gguf_type::f64;
}

/// One element that lies at the start of `bytes`, which is then passed over.
template <class T>
T take_element(gguf_type type, std::span<std::byte const>& bytes, std::string const& where) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    auto const length = static_cast<std::size_t>(number_at<std::uint64_t>(bytes.data()));
    auto const text = bytes.subspan(8, length);  // the reader has been here before
    bytes = bytes.subspan(8 + length);
    return {reinterpret_cast<char const*>(text.data()), text.size()};
  } else {
    std::byte const* const p = bytes.data();
    bytes = bytes.subspan(gguf_types[static_cast<std::size_t>(type)].least_bytes);
    if constexpr (std::is_same_v<T, bool>) {
      return *p != std::byte{0};
    } else {
      return with_number(type, p, [&](auto value) {
        if constexpr (std::is_same_v<T, std::int64_t> && std::is_same_v<decltype(value), std::uint64_t>) {
          if (value > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
            throw error(where + " is " + std::to_string(value) + ", which is too large");
          }
        }
        return static_cast<T>(value);
      });
    }
  }
}

/// Whether an element of this type can be read as a T, and what that is called.
template <class T>
bool converts(gguf_type type) {
  if constexpr (std::is_same_v<T, bool>) return type == gguf_type::boolean;
  if constexpr (std::is_same_v<T, std::int64_t>) return is_integer(type);
  if constexpr (std::is_same_v<T, double>) return is_number(type);
  return type == gguf_type::string;
}
template <class T>
constexpr std::string_view wanted() {
  if constexpr (std::is_same_v<T, bool>) return "a bool";
  if constexpr (std::is_same_v<T, std::int64_t>) return "an integer";
  if constexpr (std::is_same_v<T, double>) return "a number";
  if constexpr (std::is_same_v<T, std::string_view>) return "a string";
  if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) return "an array of integers";
  if constexpr (std::is_same_v<T, std::vector<double>>) return "an array of numbers";
  return "an array of strings";
}

template <class T>
T convert_value(gguf_value const& value, std::string const& where) {
  auto const refuse = [&] {
    throw error(where + " is " + to_string(value) + ", not " + std::string(wanted<T>()));
  };
  auto bytes = value.bytes;
  if constexpr (is_vector<T>) {
    using element = typename T::value_type;
    if (!value.count || !converts<element>(value.type)) refuse();
    T elements;
    elements.reserve(static_cast<std::size_t>(*value.count));
    for (std::uint64_t i = 0; i < *value.count; ++i) {
      elements.push_back(take_element<element>(value.type, bytes, where));
    }
    return elements;
  } else {
    if (value.count || !converts<T>(value.type)) refuse();
    return take_element<T>(value.type, bytes, where);
  }
}

inline std::size_t aligned(std::size_t position, std::size_t alignment) {
  return (position + alignment - 1) / alignment * alignment;
}

}  // namespace detail

inline std::string_view name_of(gguf_type type) {
  return detail::gguf_types[static_cast<std::size_t>(type)].name;
}

inline std::string to_string(gguf_value const& value) {
  std::string const name(name_of(value.type));
  return value.count ? "array of " + std::to_string(*value.count) + " " + name : name;
}

inline gguf_file::gguf_file(std::filesystem::path const& path) : name_(path.string()) {
  auto const [data, size] = detail::map_file(path);
  mapping_ = data;
  parse({data.get(), size});
}

inline gguf_file::gguf_file(std::span<std::byte const> contents, std::string name) : name_(std::move(name)) {
  parse(contents);
}

inline void gguf_file::parse(std::span<std::byte const> contents) {
  detail::gguf_cursor in(contents, name_);
  constexpr auto magic = detail::gguf_magic;
  auto const first = contents.first(std::min(contents.size(), magic.size()));
  if (!first.empty() && std::memcmp(first.data(), magic.data(), first.size()) != 0)
    throw error(name_ + ": not a GGUF file");
  in.take(magic.size(), "the magic number");
  version_ = in.number<std::uint32_t>("the version");
  if (version_ != 0 && (version_ & 0xffff) == 0) throw error(name_ + ": big-endian GGUF is not read");
  if (version_ != 2 && version_ != 3) {
    throw error(name_ + ": GGUF version " + std::to_string(version_) + " is not read, only 2 and 3 are");
  }
  auto const tensor_count = in.number<std::uint64_t>("the number of tensors");
  auto const entry_count = in.number<std::uint64_t>("the number of metadata entries");
  auto const check_count = [&](std::uint64_t count, std::size_t least, char const* of_what) {
    if (count > in.left() / least) {
      throw error(name_ + ": cut short, or damaged: " + std::to_string(count) + " " + of_what + ", " +
                  std::to_string(in.left()) + " bytes are left");
    }
  };
  check_count(entry_count, detail::least_entry_bytes, "metadata entries");
  check_count(tensor_count, detail::least_tensor_bytes, "tensors");
  auto const check_name = [&](std::string_view name, std::string const& what) {
    if (name.empty()) throw error(name_ + ": " + what + " is empty");
    if (!detail::is_utf8(name)) throw error(name_ + ": " + what + " is not UTF-8");
  };

  for (std::uint64_t i = 0; i < entry_count; ++i) {
    std::string const what = "the key of metadata entry " + std::to_string(i);
    std::string const key(in.string(what));
    check_name(key, what);
    std::string const where = name_ + ": metadata '" + key + "'";
    if (!metadata_.emplace(key, detail::read_value(in, contents, where)).second) {
      throw error(where + " appears twice");
    }
  }
  std::size_t alignment = detail::gguf_alignment;
  if (auto const given = get<std::int64_t>(detail::gguf_alignment_key)) {
    if (*given < 1 || *given > std::int64_t{1} << 31 || (*given & (*given - 1)) != 0) {
      throw error(name_ + ": " + std::string(detail::gguf_alignment_key) + " is " + std::to_string(*given) +
                  ", not a power of two");
    }
    alignment = static_cast<std::size_t>(*given);
  }

  check_count(tensor_count, detail::least_tensor_bytes, "tensors");
  std::map<std::string, std::uint64_t, std::less<>> offsets;
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    std::string const what = "the name of tensor " + std::to_string(i);
    std::string const name(in.string(what));
    check_name(name, what);
    std::string const tensor = "tensor '" + name + "'";
    std::string const where = name_ + ": " + tensor;
    auto const rank = in.number<std::uint32_t>(tensor + ": its rank");
    if (rank > 4) throw error(where + " has " + std::to_string(rank) + " extents, 4 is the most");
    ggml_tensor described;
    for (std::uint32_t d = 0; d < rank; ++d) {
      auto const extent = in.number<std::uint64_t>(tensor + ": an extent");
      described.shape.insert(described.shape.begin(), static_cast<std::size_t>(extent));
    }
    described.type = static_cast<ggml_type>(in.number<std::uint32_t>(tensor + ": its type"));
    if (detail::find_type(described.type) == nullptr) {
      throw error(where + " has the unknown type " +
                  std::to_string(static_cast<std::uint32_t>(described.type)));
    }
    auto const offset = in.number<std::uint64_t>(tensor + ": its offset");
    if (offset % alignment != 0) {
      throw error(where + ": offset " + std::to_string(offset) + " is no multiple of " +
                  std::to_string(alignment));
    }
    if (!tensors_.emplace(name, std::move(described)).second) throw error(where + " appears twice");
    offsets.emplace(name, offset);
  }

  auto const start = std::min(detail::aligned(in.position(), alignment), contents.size());
  auto const data = contents.subspan(start);
  for (auto& [name, tensor] : tensors_) {
    std::string const where = name_ + ": tensor '" + name + "'";
    std::size_t const bytes = detail::byte_count(tensor.type, tensor.shape, where);
    std::uint64_t const offset = offsets.find(name)->second;
    if (offset > data.size() || bytes > data.size() - offset) {
      throw error(where + ": " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                  " do not lie in the file's " + std::to_string(data.size()) + " bytes of data");
    }
    tensor.bytes = data.subspan(static_cast<std::size_t>(offset), bytes);
  }
  detail::check_overlap(tensors_, name_);
}

inline ggml_tensor const* gguf_file::find_tensor(std::string_view name) const {
  auto const found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

template <class T>
std::optional<T> gguf_file::get(std::string_view key) const {
  auto const found = metadata_.find(key);
  if (found == metadata_.end()) return std::nullopt;
  return detail::convert_value<T>(found->second, name_ + ": metadata '" + found->first + "'");
}

template <class T>
T gguf_file::at(std::string_view key) const {
  auto value = get<T>(key);
  if (!value) throw error(name_ + ": has no metadata '" + std::string(key) + "'");
  return std::move(*value);
}

inline void gguf_metadata::add_key(std::string_view key) {
  if (key.empty() || key.size() > 65535) {
    throw error("GGUF metadata: a key of " + std::to_string(key.size()) + " bytes");
  }
  if (!detail::is_utf8(key)) throw error("GGUF metadata: a key is not UTF-8");
  if (key == detail::gguf_alignment_key) throw error("GGUF metadata: the writer chooses " + std::string(key));
  if (!keys_.emplace(key).second) throw error("GGUF metadata: '" + std::string(key) + "' is there already");
  detail::append(encoded_, key);
}

template <class T>
void gguf_metadata::add(std::string_view key, T const& value) {
  constexpr gguf_type type = detail::gguf_type_of<T>();
  add_key(key);
  detail::append(encoded_, static_cast<std::uint32_t>(type));
  if constexpr (type == gguf_type::array) {
    static_assert(detail::is_vector<T>, "gguf_metadata: GGUF has no such type");
    constexpr gguf_type element = detail::gguf_type_of<typename T::value_type>();
    static_assert(element != gguf_type::array && element != gguf_type::boolean,
                  "gguf_metadata: arrays are of numbers or strings");
    detail::append(encoded_, static_cast<std::uint32_t>(element));
    detail::append(encoded_, std::uint64_t{value.size()});
    for (auto const& e : value) detail::append(encoded_, e);
  } else {
    detail::append(encoded_, value);
  }
}

inline void gguf_metadata::add(std::string_view key, gguf_value const& value) {
  add_key(key);
  if (value.count) detail::append(encoded_, static_cast<std::uint32_t>(gguf_type::array));
  detail::append(encoded_, static_cast<std::uint32_t>(value.type));
  if (value.count) detail::append(encoded_, *value.count);
  detail::append_bytes(encoded_, value.bytes.data(), value.bytes.size());
}

inline gguf_writer::gguf_writer(std::filesystem::path const& path, gguf_metadata const& metadata,
                                std::vector<gguf_tensor_info> tensors)
    : path_(path), tensors_(std::move(tensors)), out_(path) {
  std::string header(detail::gguf_magic);
  detail::append(header, detail::gguf_version);
  detail::append(header, std::uint64_t{tensors_.size()});
  detail::append(header, metadata.size());
  header += metadata.encoded();
  std::set<std::string_view> names;
  std::size_t offset = 0;
  for (gguf_tensor_info const& t : tensors_) {
    std::string const where = path.string() + ": tensor '" + t.name + "'";
    if (t.name.empty() || t.name.size() > detail::max_gguf_name || !detail::is_utf8(t.name)) {
      throw error(where + ": a name is UTF-8 of 1 to " + std::to_string(detail::max_gguf_name) + " bytes");
    }
    if (!names.insert(t.name).second) throw error(where + " is there twice");
    if (t.shape.empty() || t.shape.size() > 4) throw error(where + ": 1 to 4 extents can be written");
    detail::append(header, t.name);
    detail::append(header, static_cast<std::uint32_t>(t.shape.size()));
    for (std::size_t d = t.shape.size(); d-- > 0;) detail::append(header, std::uint64_t{t.shape[d]});
    detail::append(header, static_cast<std::uint32_t>(t.type));
    detail::append(header, std::uint64_t{offset});
    offset = detail::aligned(offset + detail::byte_count(t.type, t.shape, where), detail::gguf_alignment);
  }
  out_.write(std::as_bytes(std::span(header)));
  written_ = header.size();
  pad();
}

inline void gguf_writer::pad() {
  std::array<std::byte, detail::gguf_alignment> const zeros{};
  std::size_t const end = detail::aligned(written_, detail::gguf_alignment);
  out_.write(std::span(zeros).first(end - written_));
  written_ = end;
}

inline void gguf_writer::write(std::span<std::byte const> bytes) {
  if (next_ == tensors_.size()) throw error(path_.string() + ": all tensors are written");
  gguf_tensor_info const& t = tensors_[next_++];
  std::string const where = path_.string() + ": tensor '" + t.name + "'";
  if (std::size_t const want = detail::byte_count(t.type, t.shape, where); want != bytes.size()) {
    throw error(where + " takes " + std::to_string(want) + " bytes, not " + std::to_string(bytes.size()));
  }
  out_.write(bytes);
  written_ += bytes.size();
  pad();
}

inline void gguf_writer::finish() {
  if (next_ != tensors_.size()) {
    throw error(path_.string() + ": tensor '" + tensors_[next_].name + "' is not written");
  }
  out_.finish();
}

inline void write_gguf(std::filesystem::path const& path, gguf_metadata const& metadata,
                       ggml_tensor_map const& tensors) {
  std::vector<gguf_tensor_info> infos;
  for (auto const& [name, tensor] : tensors) infos.push_back({name, tensor.type, tensor.shape});
  gguf_writer out(path, metadata, std::move(infos));
  for (auto const& [name, tensor] : tensors) out.write(tensor.bytes);
  out.finish();
}

}  // namespace gptq::checkpoint
