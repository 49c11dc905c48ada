// Packed matrices as files: what is written is read back, byte for byte the same every time, and what is damaged or
// foreign is refused with a reason.
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <system_error>
#include <unistd.h>
#include <vector>

#include <sys/stat.h>

#include <gptq/code_books.hpp>
#include <gptq/packed.hpp>
#include <gptq/packed_file.hpp>

#include "catch.hpp"
#include "guard.hpp"
#include "plain_layer.hpp"
#include "support.hpp"

using gptq::fault;
using gptq::format;
using gptq::index_t;

namespace {

using a3 = format<gptq::asymmetric, 3, 32>;

template <class Format>
gptq::packed_matrix<Format> some_matrix(index_t out, index_t in, bool permuted) {
  test::random random(11);
  auto const layer = test::random_layer(gptq::to_spec<Format>(), Format::levels, out, in, permuted, random);
  return gptq::pack(gptq::quantized_layer<Format>{
      layer.out, layer.in, layer.codes, layer.scales, layer.zeros, layer.order, {}, layer.matrix_scale});
}

template <class Format>
std::vector<std::byte> file_of(gptq::packed_view<Format> const& w, bool with_checksum = true) {
  std::vector<std::byte> bytes(gptq::packed_file_bytes(w), std::byte{0xee});
  gptq::write_packed(w, bytes.data(), with_checksum);
  return bytes;
}

template <class Format>
bool same_matrix(gptq::packed_view<Format> const& a, gptq::packed_view<Format> const& b) {
  auto const la = gptq::unpack(a), lb = gptq::unpack(b);
  return la.codes == lb.codes && la.scales == lb.scales && la.zeros == lb.zeros && la.order == lb.order &&
         la.matrix_scale == lb.matrix_scale;
}

}  // namespace

TEST_CASE("matrices of every kind come back without a copy", "[packed_file]") {
  test::for_each_format(
      gptq::format_list<a3, format<gptq::symmetric, 4, gptq::whole_row, float>,
                        format<gptq::half_step, 8, 24>, format<gptq::fixed_zero, 2, 128>,
                        format<test::five_levels, 3, 64>, gptq::mxfp4, gptq::nvfp4>{},
      []<class Format>() {
        for (bool permuted : {false, true}) {
          for (auto [out, in] : {std::pair<index_t, index_t>{70, 100}, {1, 1}, {32, 128}}) {
            auto const matrix = some_matrix<Format>(out, in, permuted);
            auto const w = matrix.view();
            for (bool with_checksum : {false, true}) {
              auto const bytes = file_of(w, with_checksum);
              CHECK(bytes.size() % 64 == 0);
              CHECK(file_of(w, with_checksum) == bytes);  // padding and all
              gptq::packed_view<Format> opened;
              REQUIRE(gptq::open_packed(opened, bytes) == fault::none);
              CHECK(same_matrix(opened, w));
              auto const* const first = reinterpret_cast<std::byte const*>(opened.codes);
              CHECK((first >= bytes.data() && first < bytes.data() + bytes.size()));
              auto const header = gptq::read_packed_header(bytes);
              REQUIRE(header);
              CHECK((header->template is<Format>() && header->out == out && header->in == in));
              CHECK((header->bytes == bytes.size() && header->has_order == (w.order != nullptr)));
            }
          }
        }
      });
}

TEST_CASE("a matrix without rows or columns", "[packed_file]") {
  for (auto [out, in] : {std::pair<index_t, index_t>{0, 0}, {0, 64}, {64, 0}}) {
    gptq::packed_matrix<a3> const matrix(out, in);
    auto const bytes = file_of(matrix.view());
    gptq::packed_view<a3> opened;
    CHECK(gptq::open_packed(opened, bytes) == fault::none);
    CHECK((opened.out == out && opened.in == in));
  }
}

TEST_CASE("the header is the documented one", "[packed_file]") {
  auto const matrix = some_matrix<a3>(70, 100, true);
  auto const bytes = file_of(matrix.view());
  auto const field = [&]<class T>(T, std::size_t at) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  };
  CHECK(std::memcmp(bytes.data(), "gptqpack", 8) == 0);
  CHECK((field(std::uint32_t{}, 8) == 1 && field(std::uint32_t{}, 12) == 1));
  CHECK((field(std::uint8_t{}, 16) == 3 && field(std::uint8_t{}, 17) == 2));
  CHECK((field(std::uint8_t{}, 18) == 1 && field(std::uint8_t{}, 19) == 1));
  CHECK(field(std::int32_t{}, 20) == 32);
  CHECK((field(std::int16_t{}, 24) == 0 && field(std::int16_t{}, 26) == 7 && field(std::int32_t{}, 28) == 0));
  CHECK((field(std::int64_t{}, 32) == 70 && field(std::int64_t{}, 40) == 100));
  CHECK(field(std::uint64_t{}, 56) == bytes.size() - 64);
  auto const layout = matrix.layout();
  CHECK(std::memcmp(bytes.data() + 64, matrix.view().codes, static_cast<std::size_t>(layout.code_bytes())) ==
        0);
  auto const half = file_of(some_matrix<format<gptq::half_step, 4, gptq::whole_row>>(1, 8, false).view());
  std::int32_t twice, group;
  std::memcpy(&twice, half.data() + 28, 4);
  std::memcpy(&group, half.data() + 20, 4);
  CHECK((twice == 15 && group == -1));
}

TEST_CASE("a code book and its scales are part of the format", "[packed_file]") {
  using scaled = format<gptq::e2m1_levels, 4, 16>;
  using other_book = format<gptq::nf4_levels, 4, 16, gptq::e4m3>;
  using other_type = format<gptq::e2m1_levels, 4, 16, gptq::e8m0>;
  auto const bytes = file_of(some_matrix<gptq::nvfp4>(40, 64, false).view());
  CHECK((bytes[17] == std::byte{9} && bytes[18] == std::byte{2}));
  gptq::packed_view<other_book> in_other_book;
  gptq::packed_view<other_type> with_powers;
  gptq::packed_view<scaled> with_halves;
  gptq::packed_view<format<gptq::fixed_zero, 4, 16, gptq::e4m3>> uniform;
  CHECK(gptq::open_packed(in_other_book, bytes) == fault::other_format);
  CHECK(gptq::open_packed(with_powers, bytes) == fault::other_format);
  CHECK(gptq::open_packed(with_halves, bytes) == fault::other_format);
  CHECK(gptq::open_packed(uniform, bytes) == fault::other_format);
  auto view = some_matrix<gptq::nvfp4>(40, 64, false).view();
  for (float const bad : {0.0F, -1.0F, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    auto const matrix = some_matrix<gptq::nvfp4>(40, 64, false);
    view = matrix.view();
    view.matrix_scale = bad;
    CHECK(gptq::find_fault(view).what == fault::matrix_scale);
  }
}

TEST_CASE("every changed byte is noticed, and every missing one", "[packed_file]") {
  auto const matrix = some_matrix<a3>(40, 64, true);
  auto const bytes = file_of(matrix.view());
  test::guarded_memory memory(bytes.size());
  std::size_t accepted = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    auto copy = bytes;
    copy[i] ^= std::byte{1};
    gptq::packed_view<a3> opened;
    fault const what = gptq::open_packed(opened, copy);
    accepted += what == fault::none;
    if (what != fault::none) CHECK(opened.codes == nullptr);
  }
  CHECK(accepted == 0);
  for (std::size_t size = 0; size < bytes.size(); size += size < 70 ? 1 : 64) {
    auto* const end = static_cast<std::byte*>(memory.at_end(size));  // a byte too far ends the program
    std::memcpy(end, bytes.data(), size);
    gptq::packed_view<a3> opened;
    fault const what = gptq::open_packed(opened, std::span<std::byte const>(end, size));
    CHECK(what == (size < 64                                        ? fault::no_packed_file
                   : reinterpret_cast<std::uintptr_t>(end) % 4 != 0 ? what
                                                                    : fault::file_size));
  }
}

TEST_CASE("what is wrong is told", "[packed_file]") {
  auto const matrix = some_matrix<a3>(40, 64, true);
  auto const changed = [&](std::size_t at, auto value, bool with_checksum = false) {
    auto bytes = file_of(matrix.view(), with_checksum);
    std::memcpy(bytes.data() + at, &value, sizeof value);
    gptq::packed_view<a3> opened;
    return gptq::open_packed(opened, bytes);
  };
  CHECK(changed(0, 'G') == fault::no_packed_file);
  CHECK(changed(8, std::uint32_t{2}) == fault::file_version);
  CHECK(changed(12, std::uint32_t{2}) == fault::file_version);
  CHECK(changed(16, std::uint8_t{4}) == fault::other_format);
  CHECK(changed(17, std::uint8_t{4}) == fault::other_format);
  CHECK(changed(18, std::uint8_t{0}) == fault::other_format);
  CHECK(changed(20, std::int32_t{64}) == fault::other_format);
  CHECK(changed(24, std::int16_t{1}) == fault::other_format);
  CHECK(changed(26, std::int16_t{6}) == fault::other_format);
  CHECK(changed(28, std::int32_t{8}) == fault::other_format);
  CHECK(changed(19, std::uint8_t{0}) == fault::file_size);
  CHECK(changed(32, std::int64_t{-1}) == fault::shape);
  CHECK(changed(32, std::int64_t{1} << 40) == fault::shape);
  CHECK(changed(40, std::int64_t{65}) == fault::file_size);
  CHECK(changed(32, std::int64_t{0x7fffffff}) == fault::file_size);
  CHECK(changed(56, ~std::uint64_t{0}) == fault::file_size);
  CHECK(changed(80, std::uint8_t{1}, true) == fault::checksum);
  auto const offset = static_cast<std::size_t>(matrix.layout().code_bytes()) + 64;
  CHECK(changed(offset, std::uint16_t{0x7c00}) == fault::scale_value);  // the first scale
}

TEST_CASE("files", "[packed_file]") {
#if defined(_WIN32)
  std::string const no_such_file = std::system_category().message(ERROR_FILE_NOT_FOUND);
  std::string const no_such_folder = std::system_category().message(ERROR_PATH_NOT_FOUND);
#else
  std::string const no_such_file = "No such file or directory", no_such_folder = no_such_file;
#endif
  std::string const path = "packed_file_test.packed";
  auto const matrix = some_matrix<a3>(70, 100, true);
  gptq::write_packed_file(path, matrix.view());
  {
    gptq::packed_file<a3> file(path);
    CHECK(same_matrix(file.view(), matrix.view()));
    gptq::packed_file<a3> const moved = std::move(file);
    CHECK(same_matrix(moved.view(), matrix.view()));
  }
  CHECK(test::error_of([&] { gptq::packed_file<format<gptq::symmetric, 3, 32>> file(path); }) ==
        path + ": a packed matrix of another format");
  REQUIRE(truncate(path.c_str(), 4096) == 0);
  CHECK(test::error_of([&] { gptq::packed_file<a3> file(path); }) ==
        path + ": fewer bytes than a packed matrix of that size has");
  REQUIRE(truncate(path.c_str(), 0) == 0);
  CHECK(test::error_of([&] { gptq::packed_file<a3> file(path); }) == path + ": no packed matrix");
  gptq::write_packed_file(path, matrix.view());  // over what was there
  CHECK(same_matrix(gptq::packed_file<a3>(path).view(), matrix.view()));
  unlink(path.c_str());
  CHECK(test::error_of([&] { gptq::packed_file<a3> file(path); }) ==
        path + ": cannot be opened: " + no_such_file);
  CHECK(test::error_of([&] { gptq::write_packed_file("no/such/folder", matrix.view()); }) ==
        "no/such/folder: cannot be written: " + no_such_folder);
}
