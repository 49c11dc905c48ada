// Metadata values of GGUF files: their types, and values out of bytes and into them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

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

/// A metadata value where it lies in the file.
struct gguf_value {
  gguf_type type = gguf_type::u8;      ///< of an array: of its elements, and never array itself
  std::optional<std::uint64_t> count;  ///< elements of an array; nothing: a single value
  std::span<std::byte const> bytes;    ///< little endian; strings with their lengths before them
};

namespace detail {

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

inline gguf_type_entry const& entry(gguf_type type) { return gguf_types[static_cast<std::size_t>(type)]; }

/// "STRING", "array of 32000 FLOAT32"
inline std::string describe(gguf_value const& value) {
  std::string const name(entry(value.type).name);
  return value.count ? "array of " + std::to_string(*value.count) + " " + name : name;
}

template <class T>
T number_at(std::byte const* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <class T>
constexpr gguf_type stored_type() {
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

// ---- into bytes ------------------------------------------------------------------------------------------

inline void append_bytes(std::string& out, void const* data, std::size_t size) {
  out.append(static_cast<char const*>(data), size);
}
template <class T>
void append(std::string& out, T const& value) {
  if constexpr (stored_type<T>() == gguf_type::string) {
    std::string_view const text(value);
    append(out, std::uint64_t{text.size()});
    out += text;
  } else {
    append_bytes(out, &value, sizeof value);
  }
}

/// Type and value as they lie in a file after the key.
template <class T>
void append_value(std::string& out, T const& value) {
  constexpr gguf_type type = stored_type<T>();
  append(out, static_cast<std::uint32_t>(type));
  if constexpr (type == gguf_type::array) {
    static_assert(is_vector<T>, "gguf_metadata: GGUF has no such type");
    constexpr gguf_type element = stored_type<typename T::value_type>();
    static_assert(element != gguf_type::array && element != gguf_type::boolean,
                  "gguf_metadata: arrays are of numbers or strings");
    append(out, static_cast<std::uint32_t>(element));
    append(out, std::uint64_t{value.size()});
    for (auto const& e : value) append(out, e);
  } else {
    append(out, value);
  }
}
inline void append_value(std::string& out, gguf_value const& value) {
  if (value.count) append(out, static_cast<std::uint32_t>(gguf_type::array));
  append(out, static_cast<std::uint32_t>(value.type));
  if (value.count) append(out, *value.count);
  append_bytes(out, value.bytes.data(), value.bytes.size());
}

// ---- out of bytes ----------------------------------------------------------------------------------------

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
T take_element(gguf_type type, std::span<std::byte const>& bytes, std::string const& name) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    auto const length = static_cast<std::size_t>(number_at<std::uint64_t>(bytes.data()));
    auto const text = bytes.subspan(8, length);  // the reader has been here before
    bytes = bytes.subspan(8 + length);
    return {reinterpret_cast<char const*>(text.data()), text.size()};
  } else {
    std::byte const* const p = bytes.data();
    bytes = bytes.subspan(entry(type).least_bytes);
    if constexpr (std::is_same_v<T, bool>) {
      return *p != std::byte{0};
    } else {
      return with_number(type, p, [&](auto value) {
        if constexpr (std::is_same_v<T, std::int64_t> && std::is_same_v<decltype(value), std::uint64_t>) {
          if (value > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
            throw error(name + " is " + std::to_string(value) + ", which is too large");
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
T convert_value(gguf_value const& value, std::string const& name) {
  auto const refuse = [&] {
    throw error(name + " is " + describe(value) + ", not " + std::string(wanted<T>()));
  };
  auto bytes = value.bytes;
  if constexpr (is_vector<T>) {
    using element = typename T::value_type;
    if (!value.count || !converts<element>(value.type)) refuse();
    T elements;
    elements.reserve(static_cast<std::size_t>(*value.count));
    for (std::uint64_t i = 0; i < *value.count; ++i) {
      elements.push_back(take_element<element>(value.type, bytes, name));
    }
    return elements;
  } else {
    if (value.count || !converts<T>(value.type)) refuse();
    return take_element<T>(value.type, bytes, name);
  }
}

}  // namespace detail
}  // namespace gptq::checkpoint
