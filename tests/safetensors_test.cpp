// Reading and writing safetensors files: what is written comes back, and nothing malformed gets through.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

#include <gptq/checkpoint/safetensors.hpp>

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
    CHECK(reinterpret_cast<std::uintptr_t>(found->bytes.data()) % size_of(found->type) == 0);
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
  scratch const dir;
  auto const path = dir.path / "bad.safetensors";
  struct bad_file {
    std::string contents;
    std::string reason;
  };
  std::string const huge_length("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
  std::string const good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  auto const cases = std::vector<bad_file>{
      {"", "is empty"},
      {"1234567", "too short"},
      {huge_length, "a header of 18446744073709551615 bytes"},
      {file_of(good, 8).substr(0, 30), "cut short"},
      {file_of(good, 7), "do not lie in the file's 7 bytes"},
      {file_of(good, 9), "1 bytes after the last tensor"},
      {file_of("", 0), "not valid JSON"},
      {file_of("{\"a\":", 0), "not valid JSON"},
      {file_of("[]", 0), "not a JSON object"},
      {file_of("{}  x", 0), "not valid JSON"},
      {file_of(R"({"a":1})", 0), "not an object"},
      {file_of(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8), "'dtype'"},
      {file_of(R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8), "unknown dtype \"F31\""},
      {file_of(R"({"a":{"dtype":5,"shape":[2],"data_offsets":[0,8]}})", 8), "'dtype'"},
      {file_of(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8), "'shape'"},
      {file_of(R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8), "'shape'"},
      {file_of(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "not a size"},
      {file_of(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8), "not a size"},
      {file_of(R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", 8), "not a size"},
      {file_of(R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}})", 8),
       "not a size"},
      {file_of(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), "takes 12 bytes"},
      {file_of(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8),
       "overflows"},
      {file_of(R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", 4),
       "overflows"},
      {file_of(R"({"a":{"dtype":"F32","shape":[2]}})", 8), "'data_offsets'"},
      {file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8), "two numbers"},
      {file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", 8), "two numbers"},
      {file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), "do not lie"},
      {file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,0]}})", 8),
       "do not lie"},
      {file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("b":{"dtype":"U8","shape":[6],"data_offsets":[2,8]}})",
               8),
       "'b': overlaps"},
      {file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
               4),
       "overlaps"},
      {file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("b":{"dtype":"U8","shape":[3],"data_offsets":[5,8]}})",
               8),
       "'b': leaves a hole"},
      {file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
               8),
       "'a' appears twice"},
      {file_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}})", 4),
       "'dtype' appears twice"},
      {file_of(R"({"a":{"dtype":"U8","shape":[[4]],"data_offsets":[0,4]}})", 4), "nested deeper"},
      {file_of(std::string(100000, '['), 0), "nested deeper"},
      {file_of(R"({"__metadata__":{"x":1}})", 0), "'x' is not a string"},
      {file_of("{\"\xff\":1}", 0), "not valid JSON"},
  };
  for (auto const& [contents, reason] : cases) {
    write_file(path, contents);
    std::string const message = error_of([&] { safetensors_file const file(path); });
    INFO(contents.substr(0, 200));
    INFO(message);
    CHECK(contains(message, path.string() + ": "));
    CHECK(contains(message, reason));
  }
  write_file(path, file_of(good, 8));
  CHECK(error_of([&] { safetensors_file const file(path); }).empty());
  CHECK(contains(error_of([&] { safetensors_file const file(dir.path / "none"); }), "cannot be opened"));
  CHECK(contains(error_of([&] { safetensors_file const file(dir.path); }), "not a regular file"));
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
  auto const open_error = [&] { return error_of([&] { safetensors_directory const model(dir.path); }); };

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
  SECTION("an index that is wrong") {
    write_safetensors(dir.path / "model-1.safetensors", first);
    write_file(index, R"({"weight_map":{"a":"model-1.safetensors","b":"model-1.safetensors"}})");
    CHECK(contains(open_error(), "tensor 'b': is not in model-1.safetensors"));
    write_file(index, R"({"weight_map":{"a":"model-3.safetensors"}})");
    CHECK(contains(open_error(), "cannot be opened"));
    for (auto const* const name : {"../x", "/etc/passwd", "..", "", "a/b"}) {
      write_file(index, std::string(R"({"weight_map":{"a":")") + name + "\"}}");
      INFO(name);
      CHECK(contains(open_error(), "is not a name in this directory"));
    }
    write_file(index, R"({"weight_map":{"a":1}})");
    CHECK(contains(open_error(), "not a string"));
    write_file(index, R"({"weight_map":{"a":"x","a":"y"}})");
    CHECK(contains(open_error(), "'a' appears twice"));
    write_file(index, R"({"weight_map":[]})");
    CHECK(contains(open_error(), "'weight_map'"));
    write_file(index, "[]");
    CHECK(contains(open_error(), "'weight_map'"));
  }
  SECTION("nothing in it") { CHECK(contains(open_error(), "has neither")); }
  SECTION("not a directory") {
    CHECK(contains(error_of([&] { safetensors_directory const model(dir.path / "no"); }),
                   "is not a directory"));
  }
}
