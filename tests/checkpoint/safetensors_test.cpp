// Reading and writing safetensors files: what is written comes back, and nothing malformed gets through.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

#include <gptq/checkpoint/safetensors.hpp>

#include "bad_inputs.hpp"
#include "catch.hpp"
#include "files.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using test::contains;
using test::error_of;
using test::scratch;
using test::write_file;
using namespace gptq::checkpoint;

template <class T>
std::span<std::byte const> bytes_of(std::vector<T> const& values) {
  return std::as_bytes(std::span(values));
}

/// A safetensors file with this header and `data_bytes` bytes of data.
std::string file_of(std::string const& header, std::size_t data_bytes) {
  std::string contents(8, '\0');
  std::uint64_t const size = header.size();
  std::memcpy(contents.data(), &size, 8);
  return contents + header + std::string(data_bytes, '\x3f');
}

}  // namespace

TEST_CASE("what is written is read back") {
  scratch const dir;
  std::vector<float> const a{1.0F, -2.5F, 3e-30F, 4.0F, 5.0F, 6.0F};
  std::vector<std::uint16_t> const half{0x3c00, 0xc000, 0x7bff};   // 1, -2, 65504
  std::vector<std::uint16_t> const brain{0x3f80, 0xc000, 0x4049};  // 1, -2, 3.140625
  std::vector<std::int32_t> const integers{7, -8};
  std::vector<std::uint8_t> const codes{1, 2, 3};
  tensor_map const tensors{{"a", {dtype::f32, {2, 3}, bytes_of(a)}},
                           {"half", {dtype::f16, {3}, bytes_of(half)}},
                           {"brain", {dtype::bf16, {3, 1}, bytes_of(brain)}},
                           {"integers", {dtype::i32, {2}, bytes_of(integers)}},
                           {"a\"quoted\\ name", {dtype::u8, {3}, bytes_of(codes)}},
                           {"empty", {dtype::f32, {0, 4}, {}}},
                           {"scalar", {dtype::f32, {}, bytes_of(a).first(4)}}};
  write_safetensors(dir.path / "x.safetensors", tensors, {{"format", "pt"}});

  safetensors_file const file(dir.path / "x.safetensors");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  REQUIRE(file.tensors().size() == tensors.size());
  for (auto const& [name, tensor] : tensors) {
    INFO(name);
    auto const* const found = file.find(name);
    REQUIRE(found != nullptr);
    CHECK(found->type == tensor.type);
    CHECK(found->shape == tensor.shape);
    CHECK(std::equal(found->bytes.begin(), found->bytes.end(), tensor.bytes.begin(), tensor.bytes.end()));
    CHECK(reinterpret_cast<std::uintptr_t>(found->bytes.data()) % element_bytes(found->type) == 0);
  }
  CHECK(file.find("b") == nullptr);
  CHECK(to_float(*file.find("a")) == a);
  CHECK(to_float(*file.find("half")) == std::vector<float>{1.0F, -2.0F, 65504.0F});
  CHECK(to_float(*file.find("brain")) == std::vector<float>{1.0F, -2.0F, 3.140625F});
  CHECK(to_float(*file.find("empty")).empty());
  CHECK(to_string(*file.find("a")) == "F32 [2, 3]");

  std::vector<float> part(2);
  to_float(*file.find("a"), 4, part);
  CHECK(part == std::vector<float>{5.0F, 6.0F});
  CHECK_THROWS_AS(to_float(*file.find("a"), 5, part), gptq::error);
  CHECK_THROWS_AS(to_float(*file.find("a"), 7, part), gptq::error);
  CHECK(contains(error_of([&] { to_float(*file.find("integers")); }), "I32 [2]"));
}

TEST_CASE("a tensor outlives moves of its file") {
  scratch const dir;
  std::vector<float> const a{1.0F, 2.0F};
  write_safetensors(dir.path / "x", {{"a", {dtype::f32, {2}, bytes_of(a)}}});
  std::vector<safetensors_file> files;
  files.emplace_back(dir.path / "x");
  tensor_view const tensor = *files.front().find("a");
  for (int i = 0; i < 10; ++i) files.emplace_back(dir.path / "x");
  safetensors_file const moved = std::move(files.front());
  files.clear();
  CHECK(to_float(tensor) == a);
}

TEST_CASE("writing") {
  scratch const dir;
  std::vector<float> const a{1.0F, 2.0F};
  SECTION("a shape that disagrees with its bytes is refused, and nothing is left behind") {
    auto const message = error_of([&] {
      write_safetensors(dir.path / "x", {{"a", {dtype::f32, {3}, bytes_of(a)}}});
    });
    CHECK(contains(message, "'a'"));
    CHECK(fs::is_empty(dir.path));
  }
  SECTION("so is a name that the format keeps for itself") {
    CHECK_THROWS_AS(write_safetensors(dir.path / "x", {{"__metadata__", {dtype::f32, {2}, bytes_of(a)}}}),
                    gptq::error);
  }
  SECTION("and one that is not UTF-8") {
    CHECK_THROWS_AS(write_safetensors(dir.path / "x", {{"\xff", {dtype::f32, {2}, bytes_of(a)}}}),
                    gptq::error);
  }
  SECTION("tensor by tensor, in the order given") {
    using gptq::checkpoint::safetensors_writer;
    std::vector<float> const b{3.0F};
    auto const infos = [](char const* second) {
      return std::vector<gptq::checkpoint::tensor_info>{{"b", dtype::f32, {1}}, {second, dtype::f32, {2}}};
    };
    {
      safetensors_writer out(dir.path / "x", infos("a"), {{"format", "pt"}});
      out.write(bytes_of(b));
      CHECK(contains(error_of([&] { out.finish(); }), "tensor 'a' is not written"));
      CHECK_FALSE(fs::exists(dir.path / "x"));
      out.write(bytes_of(a));
      CHECK(contains(error_of([&] { out.write(bytes_of(b)); }), "all tensors are written"));
      out.finish();
    }
    safetensors_file const file(dir.path / "x");
    CHECK(to_float(*file.find("a")) == a);
    CHECK(to_float(*file.find("b")) == b);
    CHECK(file.find("b")->bytes.data() < file.find("a")->bytes.data());
    fs::remove(dir.path / "x");
    CHECK(contains(error_of([&] { safetensors_writer(dir.path / "x", infos("b")); }),
                   "tensor 'b' is there twice"));
    CHECK(contains(error_of([&] { safetensors_writer(dir.path / "x", infos("a")).write(bytes_of(a)); }),
                   "tensor 'b': F32 [1] with 8 bytes"));
    CHECK(fs::is_empty(dir.path));
  }
  SECTION("a directory that is not there") {
    CHECK(contains(error_of([&] { write_safetensors(dir.path / "no" / "x", {}); }), "cannot be written"));
  }
  SECTION("an existing file is replaced") {
    write_file(dir.path / "x", "something else");
    write_safetensors(dir.path / "x", {{"a", {dtype::f32, {2}, bytes_of(a)}}});
    CHECK(to_float(*safetensors_file(dir.path / "x").find("a")) == a);
    CHECK(std::distance(fs::directory_iterator(dir.path), {}) == 1);
  }
}

TEST_CASE("a malformed file is refused with the reason") {
  auto const open = [](std::string contents) {
    return [contents = std::move(contents)] { safetensors_file(std::as_bytes(std::span(contents)), "x"); };
  };
  /// A file whose only tensor is this entry.
  auto const entry = [&](std::string const& text, std::size_t data_bytes) {
    return open(file_of("{\"a\":" + text + "}", data_bytes));
  };
  auto const read_a = [](std::string const& text) {
    return [contents = file_of("{\"a\":" + text + "}", 8)] {
      to_float(*safetensors_file(std::as_bytes(std::span(contents)), "x").find("a"));
    };
  };
  auto const shape = [&](std::string const& text, std::size_t data_bytes) {
    auto const end = std::to_string(data_bytes);
    return entry(R"({"dtype":"F32","shape":)" + text + R"(,"data_offsets":[0,)" + end + "]}", data_bytes);
  };
  auto const offsets = [&](std::string const& text) {
    return entry(R"({"dtype":"F32","shape":[2],"data_offsets":)" + text + "}", 8);
  };
  /// U8 tensors `a` and `name`.
  auto const two = [&](std::string const& name, std::string const& extent, std::string const& place,
                       std::size_t data_bytes) {
    return open(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},")" + name +
                            R"(":{"dtype":"U8","shape":[)" + extent + R"(],"data_offsets":)" + place + "}}",
                        data_bytes));
  };
  std::string const good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  std::string const whole = file_of(good, 8);
  std::string blank;
  blank.resize(100'000'001, ' ');
  std::string huge_length = whole;
  std::fill_n(huge_length.begin(), 8, '\xff');

  CHECK(error_of(open(whole)).empty());
  test::check_bad_inputs(
      "safetensors files",
      {
          {"nothing", open("")},
          {"the length of the header cut short", open(whole.substr(0, 7))},
          {"the header cut short", open(whole.substr(0, 30))},
          {"a header longer than any file", open(huge_length)},
          {"a header of more than 100 MB", open(file_of(blank, 0))},
          {"data cut short", open(file_of(good, 7))},
          {"data left over", open(file_of(good, 9))},
          {"data without tensors", open(file_of("{}", 3))},
          {"a header of no bytes", open(file_of("", 0))},
          {"a header that ends within an object", open(file_of("{\"a\":", 0))},
          {"a header that goes on after its object", open(file_of("{}  x", 0))},
          {"a header that is an array", open(file_of("[]", 0))},
          {"a header that is a number", open(file_of("1", 0))},
          {"a name that is not UTF-8", open(file_of("{\"\xff\":1}", 0))},
          {"an overlong UTF-8 name", open(file_of("{\"\xc0\x80\":1}", 0))},
          {"100000 arrays in each other", open(file_of(std::string(100000, '['), 0))},
          {"an array in a shape", shape("[[2]]", 8)},
          {"metadata that is an array", open(file_of(R"({"__metadata__":["x"]})", 0))},
          {"metadata that is null", open(file_of(R"({"__metadata__":null})", 0))},
          {"metadata that is a number", open(file_of(R"({"__metadata__":{"x":1}})", 0))},
          {"metadata that is an object", open(file_of(R"({"__metadata__":{"x":{}}})", 0))},
          {"metadata twice", open(file_of(R"({"__metadata__":{},"__metadata__":{}})", 0))},
          {"a tensor that is a number", entry("1", 0)},
          {"no dtype", entry(R"({"shape":[2],"data_offsets":[0,8]})", 8)},
          {"a dtype that is a number", entry(R"({"dtype":5,"shape":[2],"data_offsets":[0,8]})", 8)},
          {"a dtype twice", entry(R"({"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]})", 4)},
          {"no shape", entry(R"({"dtype":"F32","data_offsets":[0,8]})", 8)},
          {"a shape that is a number", shape("2", 8)},
          {"a negative extent", shape("[-2]", 8)},
          {"an extent of 2.0", shape("[2.0]", 8)},
          {"an extent that is a string", shape(R"(["2"])", 8)},
          {"an extent beyond 64 bits", shape("[99999999999999999999]", 8)},
          {"a shape larger than its data", shape("[3]", 8)},
          {"a shape smaller than its data", shape("[1]", 8)},
          {"a shape of no elements with data", shape("[0]", 8)},
          {"a shape whose product overflows", shape("[4294967296,4294967296]", 8)},
          {"a shape whose bytes overflow to 4", shape("[4611686018427387905]", 4)},
          {"no data_offsets", entry(R"({"dtype":"F32","shape":[2]})", 8)},
          {"one offset", offsets("[0]")},
          {"three offsets", offsets("[0,8,8]")},
          {"an offset that is null", offsets("[null,8]")},
          {"an end before the beginning", offsets("[8,0]")},
          {"offsets whose difference overflows to 8", offsets("[18446744073709551608,0]")},
          {"an end beyond the file", offsets("[8,16]")},
          {"a tensor of no elements beyond the file",
           entry(R"({"dtype":"U8","shape":[0],"data_offsets":[1,1]})", 0)},
          {"tensors that overlap", two("b", "6", "[2,8]", 8)},
          {"tensors in the same place", two("b", "4", "[0,4]", 4)},
          {"a tensor of no elements within another", two("b", "0", "[2,2]", 4)},
          {"a hole between tensors", two("b", "3", "[5,8]", 8)},
          {"two tensors of one name", two("a", "4", "[4,8]", 8)},
          {"two tensors of one name, written with an escape", two("\\u0061", "4", "[4,8]", 8)},
          {"an unknown dtype read as floats", read_a(R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})")},
          {"a dtype in small letters read as floats",
           read_a(R"({"dtype":"f32","shape":[2],"data_offsets":[0,8]})")},
          {"an unknown dtype beyond the file",
           entry(R"({"dtype":"F31","shape":[2],"data_offsets":[0,9]})", 8)},
          {"a tensor of an unknown dtype within another",
           open(file_of(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                        R"("b":{"dtype":"F4","shape":[4],"data_offsets":[2,4]}})",
                        8))},
          {"integers read as floats",
           [] {
             std::vector<std::int32_t> const integers(2);
             to_float({dtype::i32, {2}, bytes_of(integers)});
           }},
          {"elements 1 to 3 of 2",
           [] {
             std::vector<float> values(2);
             to_float({dtype::f32, {2}, bytes_of(values)}, 1, values);
           }},
      });
}

TEST_CASE("a type that nobody knows does not keep a file from being opened") {
  std::string const contents = file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                       R"("new":{"dtype":"F4","shape":[2,3],"data_offsets":[4,7]}})",
                                       7);
  safetensors_file const file(std::as_bytes(std::span(contents)), "x");
  CHECK(to_float(*file.find("a")).size() == 1);
  tensor_view const& unknown = *file.find("new");
  CHECK(unknown.type == dtype::unknown);
  CHECK(unknown.bytes.size() == 3);
  CHECK(to_string(unknown) == "F4 [2, 3]");
  CHECK(element_bytes(unknown.type) == 0);
  std::vector<float> one(1);
  CHECK(error_of([&] { to_float(unknown, 0, one); }) ==
        "tensor F4 [2, 3] cannot be read as numbers: only F32, F16 and BF16 can");
  scratch const dir;
  CHECK(contains(error_of([&] {
                   write_safetensors(dir.path / "x", {{"new", unknown}});
                 }),
                 "tensor 'new': its type is not known"));
  CHECK(fs::is_empty(dir.path));
}

TEST_CASE("tensors of no elements, wherever they lie") {
  auto const u8 = [](std::string const& name, std::string const& shape, std::string const& place) {
    return '"' + name + R"(":{"dtype":"U8","shape":)" + shape + R"(,"data_offsets":)" + place + '}';
  };
  auto const opens = [](std::vector<std::string> const& entries, std::size_t data_bytes) {
    std::string header = "{";
    for (auto const& entry : entries) header += (header.size() > 1 ? "," : "") + entry;
    auto const contents = file_of(header + "}", data_bytes);
    return error_of([&] { safetensors_file(std::as_bytes(std::span(contents)), "x"); });
  };
  std::string const full = u8("m", "[4]", "[0,4]");
  for (auto const* const name : {"a", "z"}) {  // before the other in the alphabet, and after it
    INFO(name);
    CHECK(opens({full, u8(name, "[0]", "[0,0]")}, 4).empty());
    CHECK(opens({full, u8(name, "[0]", "[4,4]")}, 4).empty());
    CHECK(opens({full, u8(name, "[0,7]", "[0,0]"), u8("n", "[0]", "[0,0]")}, 4).empty());
    CHECK(contains(opens({full, u8(name, "[0]", "[1,1]")}, 4), "overlaps the tensor before it"));
  }
  CHECK(opens({u8("a", "[0]", "[0,0]")}, 0).empty());
  CHECK(opens({}, 0).empty());
  // Beside an extent of 0 the others may be anything.
  for (auto const* const shape :
       {"[0,9223372036854775808,4]", "[9223372036854775808,0,4]", "[9223372036854775808,4,0]"}) {
    CHECK(opens({u8("a", shape, "[0,0]")}, 0).empty());
  }
  scratch const dir;
  CHECK_NOTHROW(write_safetensors(dir.path / "x", {{"a", {dtype::f32, {std::size_t{1} << 63, 4, 0}, {}}}}));
  CHECK_NOTHROW(safetensors_file(dir.path / "x"));
}

TEST_CASE("headers and indices as long as they may be") {
  // At the limit they are read, and found to be no JSON; a byte more, and they are not.
  auto const open = [](std::size_t bytes) {
    auto const contents = file_of(std::string(bytes, ' '), 0);
    return error_of([&] { safetensors_file(std::as_bytes(std::span(contents)), "x"); });
  };
  CHECK(contains(open(100'000'000), "not valid JSON"));
  CHECK(contains(open(100'000'001), "a header of 100000001 bytes"));
  scratch const dir;
  auto const index = dir.path / "model.safetensors.index.json";
  write_file(index, "x");
  fs::resize_file(index, 100'000'000);
  CHECK(contains(error_of([&] { safetensors_directory{dir.path}; }), "not valid JSON"));
  fs::resize_file(index, 100'000'001);
  CHECK(error_of([&] { safetensors_directory{dir.path}; }) ==
        index.string() + ": larger than an index can be");
}

TEST_CASE("a file that cannot be mapped is refused with the reason") {
  scratch const dir;
  write_file(dir.path / "empty", "");
  auto const open = [&](char const* name) { return [path = dir.path / name] { safetensors_file{path}; }; };
  test::check_bad_inputs("Files",
                         {
                             {"no file of this name", open("none")},
                             {"a directory", open(".")},
                             {"a file of no bytes", open("empty")},
                         },
                         dir.path.string());
}

TEST_CASE("cut anywhere, a file is an error and never a crash") {
  scratch const dir;
  std::vector<float> const a{1.0F, 2.0F, 3.0F};
  write_safetensors(dir.path / "x",
                    {{"a", {dtype::f32, {3}, bytes_of(a)}}, {"b", {dtype::f32, {1}, bytes_of(a).first(4)}}});
  std::ifstream in(dir.path / "x", std::ios::binary);
  std::string const whole((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_file(dir.path / "cut", whole.substr(0, length));
    INFO(length);
    CHECK_THROWS_AS(safetensors_file(dir.path / "cut"), gptq::error);
  }
  // One byte changed: an error or other contents, but nothing worse.
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (char const flip : {'\x01', '\x20', '\x80'}) {
      std::string changed = whole;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      write_file(dir.path / "changed", changed);
      error_of([&] {
        safetensors_file const file(dir.path / "changed");
        for (auto const& [name, tensor] : file.tensors()) to_float(tensor);
      });
    }
  }
}

TEST_CASE("a model directory") {
  scratch const dir;
  std::vector<float> const a{1.0F, 2.0F};
  std::vector<float> const b{3.0F};
  tensor_map const first{{"a", {dtype::f32, {2}, bytes_of(a)}}};
  tensor_map const second{{"b", {dtype::f32, {1}, bytes_of(b)}}, {"unused", {dtype::f32, {1}, bytes_of(b)}}};
  auto const index = dir.path / "model.safetensors.index.json";

  SECTION("one file") {
    write_safetensors(dir.path / "model.safetensors", first);
    safetensors_directory const model(dir.path);
    CHECK(to_float(model.at("a")) == a);
    CHECK(model.find("b") == nullptr);
    CHECK(contains(error_of([&] { model.at("b"); }), "has no tensor 'b'"));
  }
  SECTION("shards") {
    write_safetensors(dir.path / "model-1.safetensors", first);
    write_safetensors(dir.path / "model-2.safetensors", second);
    write_file(
        index,
        R"({"metadata":{"total_size":12},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})");
    safetensors_directory const model(dir.path);
    CHECK(to_float(model.at("a")) == a);
    CHECK(to_float(model.at("b")) == b);
    CHECK(model.tensors().size() == 2);
  }
  SECTION("one file is the model, whatever an index beside it says") {
    write_safetensors(dir.path / "model.safetensors", first);
    write_safetensors(dir.path / "model-2.safetensors", second);
    write_file(index, R"({"weight_map":{"b":"model-2.safetensors"}})");
    safetensors_directory const model(dir.path);
    CHECK(model.find("a") != nullptr);
    CHECK(model.find("b") == nullptr);
    write_file(index, "not even JSON");
    CHECK_NOTHROW(safetensors_directory(dir.path));
  }
  SECTION("what is wrong is named") {
    write_safetensors(dir.path / "model-1.safetensors", first);
    write_safetensors(dir.path / "model-2.safetensors", {});
    write_file(dir.path / "cut.safetensors", "12345678");
    // The index changes from case to case, or is removed.
    auto const with_index = [&](std::string contents) {
      return [&, contents = std::move(contents)] {
        write_file(index, contents);
        safetensors_directory const model(dir.path);
      };
    };
    auto const file_of_a = [&](std::string const& name) {
      return with_index(R"({"weight_map":{"a":)" + name + "}}");
    };
    test::check_bad_inputs(
        "Model directories",
        {
            {"no directory of this name", [&] { safetensors_directory const model(dir.path / "no"); }},
            {"a directory without a model", [&] { safetensors_directory const model(dir.path); }},
            {"an index of no bytes", with_index("")},
            {"an index cut short", with_index(R"({"weight_map":{"a":"mod)")},
            {"an index that is an array", with_index("[]")},
            {"an index without weight_map", with_index(R"({"metadata":{}})")},
            {"a weight_map that is an array", with_index(R"({"weight_map":[]})")},
            {"an object in weight_map", file_of_a("{\"b\":{}}")},
            {"a file name that is a number", file_of_a("1")},
            {"a tensor twice", with_index(R"({"weight_map":{"a":"x","a":"y"}})")},
            {"a file that is not there", file_of_a(R"("model-3.safetensors")")},
            {"a file in another directory", file_of_a(R"("../x")")},
            {"a file by its whole path", file_of_a(R"("/etc/passwd")")},
            {"the directory above", file_of_a(R"("..")")},
            {"a file in a directory below", file_of_a(R"("a/b")")},
            {"a file name of no characters", file_of_a(R"("")")},
            {"a NUL in a file name", file_of_a(R"("model-1.safetensors\u0000")")},
            {"a tensor that its file does not have", file_of_a(R"("model-2.safetensors")")},
            {"a file cut short", file_of_a(R"("cut.safetensors")")},
        },
        dir.path.string());
  }
}
