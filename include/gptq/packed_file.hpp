// Packed matrices as bytes in a file, so that an engine keeps what it has packed and maps it the next time: zero copy.
//
//   gptq::write_packed_file("layer.packed", w);                      // at once: a temporary file, then renamed
//   gptq::packed_file<q4> file("layer.packed");                      // mapped; refused, with a reason, if it is not q4
//   gptq::gemv(file.view(), x, y);
//
//   std::vector<std::byte> bytes(gptq::packed_file_bytes(w));        // or in memory and files of your own, at multiples
//   gptq::write_packed(w, bytes.data());                             // of 64 bytes, as many as you like in one file
//   gptq::packed_view<q4> same;
//   gptq::fault const what = gptq::open_packed(same, bytes);         // looks at everything, and makes no copy
//
// All numbers are little endian. A matrix is a header of 64 bytes,
//    0  "gptqpack"
//    8  uint32  1, the version of this format      12  uint32  packed_layout_version
//   16  uint8   bits of a code                     17  uint8   scales: 2 float16, 4 float, 8 e8m0, 9 e4m3
//   18  uint8   1: a zero point for each group,    19  uint8   1: a column order
//               2: a code book
//   20  int32   columns of a group, -1: of a row   24  int16   the lowest code     26  int16  the highest
//   28  int32   twice the constant zero point,     32  int64   rows                40  int64  columns
//               or a hash of the code book's levels
//   48  uint64  checksum of all other bytes, or 0  56  uint64  bytes of what follows
// and then the arrays of layout.hpp: codes, scales, zero points, the column order as int32, and, with scales of type
// e4m3, the matrix's own scale as a float, each padded with zeros to a multiple of 64 bytes. The checksum is FNV-1a
// over 64-bit words, 0 stands for none; the hash, 32-bit FNV-1a over the levels of the codes 0, 1, ... as int8.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include <gptq/checks.hpp>
#include <gptq/layout.hpp>
#include <gptq/layout/packed_bytes.hpp>

#if defined(__cpp_exceptions)
#include <new>
#include <string>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/layout/mapped_file.hpp>
#endif

namespace gptq {

static_assert(std::endian::native == std::endian::little, "gptq/packed_file.hpp: for little endian machines");

/// What the header of a packed matrix says, for programs that choose a format by it.
struct packed_header {
  int bits = 0;
  int scale_bytes = 0;
  bool has_matrix_scale = false;  ///< scales are of type e4m3
  bool has_zero_point = false;
  bool is_code_book = false;
  bool has_order = false;
  int group_size = 0;  ///< or whole_row
  int min_code = 0, max_code = 0;
  float zero = 0.0F;  ///< the constant zero point; 0 where each group stores its own, and of a code book
  std::int32_t levels = 0;  ///< twice the constant zero point, or the hash of a code book's levels
  index_t out = 0, in = 0;
  std::uint64_t bytes = 0;  ///< of header and arrays

  /// Whether the matrix is one of `Format`: whatever its scheme is called, codes mean the same.
  template <storage_format Format>
  bool is() const {
    return bits == Format::bits && scale_bytes == int{sizeof(typename Format::scale)} &&
           has_matrix_scale == Format::has_matrix_scale && has_zero_point == Format::has_zero_point &&
           is_code_book == Format::is_code_book && group_size == Format::group_size &&
           min_code == Format::levels.min_code && max_code == Format::levels.max_code &&
           levels == detail::stored_levels<Format>();
  }
};

/// The header of the packed matrix that `file` begins with, or nothing where there is none of this version.
inline std::optional<packed_header> read_packed_header(std::span<std::byte const> file) noexcept {
  return detail::parse_packed_header<packed_header>(file);
}

/// Bytes of header and arrays, a multiple of 64.
template <storage_format Format>
constexpr std::size_t packed_file_bytes(packed_view<Format> const& w) {
  return detail::packed_parts<Format>(w.layout(), w.order != nullptr).end;
}

/// Writes packed_file_bytes(w) bytes.
template <storage_format Format>
void write_packed(packed_view<Format> const& w, std::byte* file, bool with_checksum = true) noexcept {
  detail::write_packed_bytes(w, file, with_checksum);
}

/// A view of the packed matrix that `file` begins with; `file` may be longer, and begins at a multiple of 4, best of
/// 64. Reads all of it: the checksum, if there is one, and what find_fault() looks at. On a fault the view is left
/// alone.
template <storage_format Format>
fault open_packed(packed_view<Format>& view, std::span<std::byte const> file) noexcept {
  return detail::open_packed_bytes<packed_header>(view, file);
}

#if defined(__cpp_exceptions)

/// Writes a packed matrix to a file: all of it, or nothing.
/// @throws gptq::error with the path and the system's reason
template <storage_format Format>
void write_packed_file(std::string const& path, packed_view<Format> const& w) {
  std::vector<std::byte> bytes(packed_file_bytes(w));
  write_packed(w, bytes.data());
  detail::replace_file(path, bytes);
}

/// A packed matrix in a mapped file.
template <storage_format Format>
class packed_file {
 public:
  /// @throws gptq::error with the path, and the system's reason or message(fault)
  explicit packed_file(std::string const& path) : file_(path) {
    fault const what = open_packed(view_, file_.bytes());
    if (what == fault::no_memory) throw std::bad_alloc();
    if (what != fault::none) throw error(path + ": " + message(what));
  }
  /// As long as this object is there.
  packed_view<Format> view() const { return view_; }

 private:
  detail::mapped_file file_;
  packed_view<Format> view_;
};

#endif

}  // namespace gptq
