// A packed matrix as bytes: the header and arrays that packed_file.hpp describes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>

#include <gptq/checks.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

inline constexpr std::size_t packed_header_bytes = 64;
inline constexpr char packed_magic[] = "gptqpack";
inline constexpr std::uint32_t packed_file_version = 1;

/// Where the arrays begin, and where they end.
struct packed_offsets {
  std::size_t codes, scales, zeros, order, matrix_scale, end;
};

template <storage_format Format>
constexpr packed_offsets packed_parts(packed_layout<Format> layout, bool has_order) {
  auto const after = [](std::size_t begin, index_t count, std::size_t size) {
    return begin + (static_cast<std::size_t>(count) * size + 63) / 64 * 64;
  };
  packed_offsets at{};
  at.codes = packed_header_bytes;
  at.scales = after(at.codes, layout.code_bytes(), 1);
  at.zeros = after(at.scales, layout.scale_count(), sizeof(typename Format::scale));
  at.order = after(at.zeros, layout.zero_bytes(), 1);
  at.matrix_scale = after(at.order, has_order ? layout.in : 0, sizeof(std::int32_t));
  at.end = after(at.matrix_scale, Format::has_matrix_scale ? 1 : 0, sizeof(float));
  return at;
}

template <class T>
T header_field(std::byte const* header, std::size_t at) {
  T value;
  std::memcpy(&value, header + at, sizeof value);
  return value;
}
template <class T>
void set_header_field(std::byte* header, std::size_t at, T value) {
  std::memcpy(header + at, &value, sizeof value);
}

inline constexpr std::size_t checksum_offset = 48;

/// FNV-1a over the 64-bit words of a file but its checksum (http://www.isthe.com/chongo/tech/comp/fnv), never 0.
/// `bytes` is a multiple of 8.
inline std::uint64_t packed_checksum(std::byte const* p, std::size_t bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < bytes; i += 8) {
    if (i != checksum_offset) hash = (hash ^ header_field<std::uint64_t>(p, i)) * 0x100000001b3u;
  }
  return hash == 0 ? 1 : hash;
}

/// What byte 17 of a header says of scales: their bytes, and more of those that have one.
inline constexpr std::uint8_t stored_scale_type(scale_type type) {
  constexpr std::uint8_t types[] = {2, 4, 8, 9};
  return types[static_cast<int>(type)];
}

/// A hash of a code book's levels, as many as it has codes: 32-bit FNV-1a.
constexpr std::uint32_t hash_levels(level_table const& table) {
  std::uint32_t hash = 0x811c9dc5u;
  for (int code = 0; code < table.codes; ++code) {
    hash = (hash ^ static_cast<std::uint8_t>(table.of_code[code])) * 0x01000193u;
  }
  return hash;
}

/// What a header says of a format's levels: twice the constant zero point, or a code book's hash.
template <storage_format Format>
constexpr std::int32_t stored_levels() {
  if constexpr (Format::is_code_book) {
    return static_cast<std::int32_t>(hash_levels(*Format::levels.table));
  } else {
    return static_cast<std::int32_t>(2.0F * Format::levels.zero);
  }
}

/// The header of a matrix whose arrays are there.
template <storage_format Format>
void write_packed_header(packed_layout<Format> layout, bool has_order, std::byte* file,
                         bool with_checksum) noexcept {
  packed_offsets const at = packed_parts<Format>(layout, has_order);
  std::memset(file, 0, packed_header_bytes);
  std::memcpy(file, packed_magic, 8);
  set_header_field(file, 8, packed_file_version);
  set_header_field(file, 12, static_cast<std::uint32_t>(packed_layout_version));
  set_header_field(file, 16, static_cast<std::uint8_t>(Format::bits));
  set_header_field(file, 17, stored_scale_type(Format::scales));
  set_header_field(file, 18,
                   static_cast<std::uint8_t>(Format::is_code_book     ? 2
                                             : Format::has_zero_point ? 1
                                                                      : 0));
  set_header_field(file, 19, static_cast<std::uint8_t>(has_order ? 1 : 0));
  set_header_field(file, 20, static_cast<std::int32_t>(Format::group_size));
  set_header_field(file, 24, static_cast<std::int16_t>(Format::levels.min_code));
  set_header_field(file, 26, static_cast<std::int16_t>(Format::levels.max_code));
  set_header_field(file, 28, stored_levels<Format>());
  set_header_field(file, 32, std::int64_t{layout.out});
  set_header_field(file, 40, std::int64_t{layout.in});
  set_header_field(file, 56, static_cast<std::uint64_t>(at.end - packed_header_bytes));
  if (with_checksum) set_header_field(file, checksum_offset, packed_checksum(file, at.end));
}

template <storage_format Format>
void write_packed_bytes(packed_view<Format> const& w, std::byte* file, bool with_checksum) noexcept {
  auto const layout = w.layout();
  packed_offsets const at = packed_parts<Format>(layout, w.order != nullptr);
  auto const copy = [&](std::size_t begin, std::size_t end, void const* from, std::size_t bytes) {
    if (bytes != 0) std::memcpy(file + begin, from, bytes);
    std::memset(file + begin + bytes, 0, end - begin - bytes);
  };
  copy(at.codes, at.scales, w.codes, static_cast<std::size_t>(layout.code_bytes()));
  copy(at.scales, at.zeros, w.scales,
       static_cast<std::size_t>(layout.scale_count()) * sizeof(typename Format::scale));
  copy(at.zeros, at.order, w.zeros, static_cast<std::size_t>(layout.zero_bytes()));
  copy(at.order, at.matrix_scale, w.order,
       w.order == nullptr ? 0 : static_cast<std::size_t>(w.in) * sizeof(std::int32_t));
  if constexpr (Format::has_matrix_scale) copy(at.matrix_scale, at.end, &w.matrix_scale, sizeof(float));
  write_packed_header(layout, w.order != nullptr, file, with_checksum);
}

/// Whether `file` begins as a packed matrix does, of whatever version.
inline bool is_packed(std::span<std::byte const> file) noexcept {
  return file.size() >= packed_header_bytes && std::memcmp(file.data(), packed_magic, 8) == 0;
}
inline bool is_this_version(std::byte const* file) noexcept {
  return header_field<std::uint32_t>(file, 8) == packed_file_version &&
         header_field<std::uint32_t>(file, 12) == static_cast<std::uint32_t>(packed_layout_version);
}

/// @tparam Header  packed_header
template <class Header>
std::optional<Header> parse_packed_header(std::span<std::byte const> file) noexcept {
  if (!is_packed(file) || !is_this_version(file.data())) return std::nullopt;
  std::byte const* const p = file.data();
  Header h;
  h.bits = header_field<std::uint8_t>(p, 16);
  auto const scales = header_field<std::uint8_t>(p, 17);
  h.scale_bytes = scales == 8 || scales == 9 ? 1 : scales;
  h.has_matrix_scale = scales == 9;
  auto const levels = header_field<std::uint8_t>(p, 18);
  h.has_zero_point = levels == 1;
  h.is_code_book = levels == 2;
  h.has_order = header_field<std::uint8_t>(p, 19) != 0;
  h.group_size = header_field<std::int32_t>(p, 20);
  h.min_code = header_field<std::int16_t>(p, 24);
  h.max_code = header_field<std::int16_t>(p, 26);
  h.levels = header_field<std::int32_t>(p, 28);
  h.zero = h.is_code_book ? 0.0F : static_cast<float>(h.levels) / 2.0F;
  h.out = static_cast<index_t>(header_field<std::int64_t>(p, 32));
  h.in = static_cast<index_t>(header_field<std::int64_t>(p, 40));
  h.bytes = header_field<std::uint64_t>(p, 56);
  if (h.bytes > std::numeric_limits<std::uint64_t>::max() - packed_header_bytes) return std::nullopt;
  h.bytes += packed_header_bytes;
  return h;
}

/// @tparam Header  packed_header
template <class Header, storage_format Format>
fault open_packed_bytes(packed_view<Format>& view, std::span<std::byte const> file) noexcept {
  if (!is_packed(file)) return fault::no_packed_file;
  if (!is_this_version(file.data())) return fault::file_version;
  std::optional<Header> const header = parse_packed_header<Header>(file);
  if (!header) return fault::file_size;
  if (!header->template is<Format>()) return fault::other_format;
  constexpr index_t limit = std::numeric_limits<std::int32_t>::max();
  if (header->out < 0 || header->in < 0 || header->out > limit || header->in > limit) return fault::shape;
  packed_layout<Format> const layout{header->out, header->in};
  packed_offsets const at = packed_parts<Format>(layout, header->has_order);
  if (header->bytes != at.end || file.size() < at.end) return fault::file_size;
  std::byte const* const p = file.data();
  if (reinterpret_cast<std::uintptr_t>(p) % 4 != 0) return fault::scale_alignment;
  auto const checksum = header_field<std::uint64_t>(p, checksum_offset);
  if (checksum != 0 && checksum != packed_checksum(p, at.end)) {
    return fault::checksum;
  }
  packed_view<Format> opened{reinterpret_cast<std::uint8_t const*>(p + at.codes),
                             reinterpret_cast<typename Format::scale const*>(p + at.scales),
                             nullptr,
                             nullptr,
                             header->out,
                             header->in};
  if (Format::has_zero_point) opened.zeros = reinterpret_cast<std::uint8_t const*>(p + at.zeros);
  if constexpr (Format::has_matrix_scale) opened.matrix_scale = header_field<float>(p, at.matrix_scale);
  if (header->has_order) opened.order = reinterpret_cast<std::int32_t const*>(p + at.order);
  fault const what = find_fault(opened).what;
  if (what == fault::none) view = opened;
  return what;
}

}  // namespace gptq::detail
