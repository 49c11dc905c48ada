// Arrays in numpy's files.
#include "npy.hpp"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "files.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::scratch;
using test::write_file;

std::string contents(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE(".npy files are numpy's") {
  scratch const dir;
  auto const file = dir.path / "a.npy";
  std::string const where = file.string() + ": ";
  // What numpy.save() writes.
  std::string const floats =
      std::string("\x93NUMPY\x01\x00v\x00", 10) +
      "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" + std::string(58, ' ') + "\n" +
      std::string("\x00\x00\x80?\x00\x00\x00@\x00\x00@@\x00\x00\x80@\x00\x00\xa0@\x00\x00\xd0@", 24);
  std::string const integers = std::string("\x93NUMPY\x01\x00v\x00", 10) +
                               "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }" +
                               std::string(60, ' ') + "\n" +
                               std::string("\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00", 12);
  std::vector<float> const values{1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.5F};
  std::vector<std::int32_t> const ids{2, 0, 1};
  std::size_t const shape[] = {2, 3};
  std::size_t const length[] = {3};
  lm::write_npy<float>(file, shape, values);
  CHECK(contents(file) == floats);
  CHECK(lm::read_npy<float>(file).values == values);
  CHECK(lm::read_npy<float>(file).shape == std::vector<std::size_t>{2, 3});
  lm::write_npy<std::int32_t>(file, length, ids);
  CHECK(contents(file) == integers);
  CHECK(lm::read_npy<std::int32_t>(file).values == ids);

  auto const with = [&](std::string text, std::string const& from, std::string const& to) {
    return text.replace(text.find(from), from.size(), to);
  };
  // Columns first; keys in another order, as version 2 with a longer length.
  write_file(file, with(floats, "False", "True "));
  CHECK(lm::read_npy<float>(file).values == std::vector<float>{1.0F, 3.0F, 5.0F, 2.0F, 4.0F, 6.5F});
  std::string const other = R"({"shape":(2,3),"fortran_order":False,"descr":"<f4"})";
  write_file(file, std::string("\x93NUMPY\x02\x00", 8) + static_cast<char>(other.size()) +
                       std::string(3, '\0') + other + floats.substr(floats.size() - 24));
  CHECK(lm::read_npy<float>(file).values == values);

  std::string const header = "its header is not a dictionary of descr, fortran_order and shape";
  std::pair<std::string, std::string> const cases[] = {
      {"", "is empty"},
      {"\x93NUMPY\x01", "not a .npy file"},
      {"PK" + floats, "not a .npy file"},
      {with(floats, "\x01", "\x04"), "version 4 of the format is not known"},
      {floats.substr(0, 127), "cut short within its header"},
      {floats.substr(0, 151), "has 23 bytes of numbers, but its shape [2, 3] takes 24"},
      {floats + "x", "has 25 bytes of numbers, but its shape [2, 3] takes 24"},
      {with(floats, "(2, 3)", "(0, 3)"), "has 24 bytes of numbers, but its shape [0, 3] takes 0"},
      {with(floats, "<f4", ">f4"), "holds '>f4', not '<f4'"},
      {with(floats, "<f4", "<f2"), "holds '<f2', not '<f4'"},
      {with(floats, "<f4", "|O8"), "holds '|O8', not '<f4'"},
      {integers, "holds '<i4', not '<f4'"},
      {with(floats, "(2, 3), } ", "(2, 3, 1)}"), "has 3 dimensions, not 1 or 2"},
      {with(floats, "(2, 3), }            ", "(4294967296, 8589934592)}").erase(10 + 118, 4),
       "its shape overflows"},
      {with(floats, "(2, 3)", "(-2,3)"), header},
      {with(floats, "(2, 3)", "(2; 3)"), header},
      {with(floats, "(2, 3)", "[2, 3]"), header},
      {with(floats, "False", "false"), header},
      {with(floats, "'descr'", "'dtype'"), header},
      {with(floats, "'shape'", "'descr'"), header},
      {with(floats, "{", " "), header},
      {with(floats, "}", ","), header},
      {with(floats, "}", "'"), header},
      {with(floats, "} ", "}x"), header},
      {with(floats, "'shape': (2, 3), ", "                 "), header},
  };
  for (auto const& [text, message] : cases) {
    write_file(file, text);
    CHECK(error_of([&] { lm::read_npy<float>(file); }) == where + message);
  }
}
