#include "npy.hpp"

#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <gptq/checkpoint/files.hpp>
#include <gptq/error.hpp>

namespace lm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "\x93NUMPY";
constexpr std::size_t alignment = 64;  // of the numbers

template <class T>
constexpr std::string_view descr = std::is_same_v<T, float> ? "<f4" : "<i4";

struct npy_header {
  std::string descr;
  bool fortran_order = false;
  std::vector<std::size_t> shape;
};

/// The dictionary, as far as the format allows it to vary.
class header_parser {
 public:
  header_parser(std::string_view text, std::string where) : text_(text), where_(std::move(where)) {}

  npy_header parse() {
    std::optional<std::string_view> type;
    std::optional<bool> fortran;
    std::optional<std::vector<std::size_t>> shape;
    expect("{");
    while (!accept("}")) {
      std::string_view const key = quoted();
      expect(":");
      if (key == "descr" && !type) {
        type = quoted();
      } else if (key == "fortran_order" && !fortran) {
        fortran = accept("True");
        if (!*fortran) expect("False");
      } else if (key == "shape" && !shape) {
        shape = extents();
      } else {
        fail();
      }
      if (!accept(",")) {
        expect("}");
        break;
      }
    }
    skip_blanks();
    if (!text_.empty() || !type || !fortran || !shape) fail();
    return {std::string(*type), *fortran, *shape};
  }

 private:
  [[noreturn]] void fail() const {
    throw gptq::error(where_ + ": its header is not a dictionary of descr, fortran_order and shape");
  }
  void skip_blanks() {
    while (!text_.empty() && (text_.front() == ' ' || text_.front() == '\n')) text_.remove_prefix(1);
  }
  bool accept(std::string_view token) {
    skip_blanks();
    if (!text_.starts_with(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }
  void expect(std::string_view token) {
    if (!accept(token)) fail();
  }
  std::string_view quoted() {
    std::string_view const mark = accept("'") ? "'" : "\"";
    if (mark == "\"") expect(mark);
    auto const end = text_.find(mark);
    if (end == std::string_view::npos) fail();
    std::string_view const value = text_.substr(0, end);
    text_.remove_prefix(end + 1);
    return value;
  }
  std::vector<std::size_t> extents() {
    std::vector<std::size_t> values;
    expect("(");
    while (!accept(")")) {
      skip_blanks();
      std::size_t value = 0;
      auto const [end, failure] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
      if (failure != std::errc()) fail();
      text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
      values.push_back(value);
      if (!accept(",")) {
        expect(")");
        break;
      }
    }
    return values;
  }

  std::string_view text_;
  std::string where_;
};

}  // namespace

template <class T>
npy_array<T> read_npy(fs::path const& path) {
  std::string const where = path.string();
  gptq::checkpoint::mapped_file const file(path);
  auto const bytes = file.text();
  auto const fail = [&](std::string const& what) { throw gptq::error(where + ": " + what); };
  if (!bytes.starts_with(magic) || bytes.size() < 12) fail("not a .npy file");
  int const version = bytes[6];
  if (version < 1 || version > 3) fail(fmt::format("version {} of the format is not known", version));
  std::uint32_t length = 0;
  std::size_t const length_bytes = version == 1 ? 2 : 4;
  std::memcpy(&length, bytes.data() + 8, length_bytes);
  std::size_t const begin = 8 + length_bytes;
  if (length > bytes.size() - begin) fail("cut short within its header");
  auto const header = header_parser(bytes.substr(begin, length), where).parse();
  if (header.descr != descr<T>) fail(fmt::format("holds '{}', not '{}'", header.descr, descr<T>));
  if (header.shape.size() > 2) fail(fmt::format("has {} dimensions, not 1 or 2", header.shape.size()));

  std::size_t count = 1;
  std::size_t size = sizeof(T);
  for (std::size_t const extent : header.shape) {
    if (__builtin_mul_overflow(size, extent, &size)) fail("its shape overflows");
    count *= extent;
  }
  auto const data = bytes.substr(begin + length);
  if (data.size() != size) {
    fail(fmt::format("has {} bytes of numbers, but its shape [{}] takes {}", data.size(),
                     fmt::join(header.shape, ", "), size));
  }
  npy_array<T> array{header.shape, std::vector<T>(count)};
  if (size > 0) std::memcpy(array.values.data(), data.data(), size);
  if (header.fortran_order && array.shape.size() == 2) {
    std::vector<T> const columns = array.values;
    for (std::size_t i = 0; i < count; ++i) {
      array.values[i] = columns[i % array.shape[1] * array.shape[0] + i / array.shape[1]];
    }
  }
  return array;
}

template <class T>
void write_npy(fs::path const& path, std::span<std::size_t const> shape, std::span<T const> values) {
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr<T>,
                                   fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  std::size_t const begin = magic.size() + 4;
  header.resize((begin + header.size() + 1 + alignment - 1) / alignment * alignment - begin - 1, ' ');
  header += '\n';
  auto const length = static_cast<std::uint16_t>(header.size());  // two extents are no 200 bytes
  std::array<std::uint8_t, 4> const version_and_length{1, 0, static_cast<std::uint8_t>(length & 0xff),
                                                       static_cast<std::uint8_t>(length >> 8)};
  gptq::checkpoint::new_file out(path);
  out.write(std::as_bytes(std::span(magic)));
  out.write(std::as_bytes(std::span(version_and_length)));
  out.write(std::as_bytes(std::span(header)));
  out.write(std::as_bytes(values));
  out.finish();
}

template npy_array<float> read_npy(fs::path const&);
template npy_array<std::int32_t> read_npy(fs::path const&);
template void write_npy(fs::path const&, std::span<std::size_t const>, std::span<float const>);
template void write_npy(fs::path const&, std::span<std::size_t const>, std::span<std::int32_t const>);

}  // namespace lm
