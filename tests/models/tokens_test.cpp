// Tokens from files, and the windows that they are cut into.
#include "tokens.hpp"

#include <string>
#include <vector>

#include "catch.hpp"
#include "config.hpp"
#include "files.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

using lm::token;
using test::contains;
using test::error_of;
using test::random_tokens;
using test::scratch;
using test::write_file;

}  // namespace

TEST_CASE("a tokenizer that does not fit") {
  scratch const dir;
  lm::config c{};
  c.vocab_size = 80;
  // A sentencepiece model: pieces {1: text, 2: score, 3: kind}, the first of them the unknown piece.
  auto const pieces = [](int count) {
    std::string model;
    for (int i = 0; i < count; ++i) {
      std::string const text =
          i == 0 ? "<unk>" : std::string(1, static_cast<char>('!' + i % 90)) + (i > 89 ? "x" : "");
      std::string piece = "\x0a" + std::string(1, static_cast<char>(text.size())) + text;
      piece += std::string("\x15\0\0\0\0", 5) + "\x18" + (i == 0 ? '\x02' : '\x01');
      model += "\x0a" + std::string(1, static_cast<char>(piece.size())) + piece;
    }
    return model;
  };
  write_file(dir.path / "tokenizer.model", pieces(81));
  std::string const message = error_of([&] { lm::make_tokenizer(dir.path, c); });
  INFO(message);
  CHECK((contains(message, "81 pieces, more than the model's vocabulary of 80") ||
         contains(message, "without sentencepiece")));
  write_file(dir.path / "tokenizer.model", pieces(80));
  if (!contains(message, "without")) CHECK(error_of([&] { lm::make_tokenizer(dir.path, c); }).empty());
}

TEST_CASE("tokens from files") {
  scratch const dir;
  lm::config c{};
  c.vocab_size = 256;
  SECTION("a byte-level model reads bytes") {
    write_file(dir.path / "x.txt", "A\n\xff");
    CHECK(lm::read_tokens(dir.path / "x.txt", dir.path, c) == std::vector<token>{65, 10, 255});
    CHECK(lm::make_tokenizer(dir.path, c).decode(std::vector<token>{72, 105}) == "Hi");
  }
  SECTION("token ids are int32") {
    std::string contents("\x05\0\0\0\xff\0\0\0", 8);
    write_file(dir.path / "x.i32", contents);
    CHECK(lm::read_tokens(dir.path / "x.i32", dir.path, c) == std::vector<token>{5, 255});
    write_file(dir.path / "x.i32", contents + "\x01");
    CHECK(contains(error_of([&] { lm::read_tokens(dir.path / "x.i32", dir.path, c); }), "9 bytes"));
    c.vocab_size = 255;
    write_file(dir.path / "x.i32", contents);
    CHECK(contains(error_of([&] { lm::read_tokens(dir.path / "x.i32", dir.path, c); }), "token 1 is 255"));
    write_file(dir.path / "x.i32", std::string("\xff\xff\xff\xff", 4));
    CHECK(contains(error_of([&] { lm::read_tokens(dir.path / "x.i32", dir.path, c); }), "token 0 is -1"));
  }
  SECTION("other models need a tokenizer") {
    c.vocab_size = 1000;
    write_file(dir.path / "x.txt", "text");
    CHECK(contains(error_of([&] { lm::read_tokens(dir.path / "x.txt", dir.path, c); }),
                   "text needs a tokenizer.json or tokenizer.model"));
    write_file(dir.path / "tokenizer.model", "nonsense");
    CHECK(contains(error_of([&] { lm::read_tokens(dir.path / "x.txt", dir.path, c); }), "sentencepiece"));
  }
  SECTION("windows are whole and do not overlap") {
    auto const tokens = random_tokens(25, 80);
    auto const windows = lm::cut_windows(tokens, 10, 0);
    REQUIRE(windows.size() == 2);
    CHECK(windows[1].data() == tokens.data() + 10);
    CHECK(windows[1].size() == 10);
    CHECK(lm::cut_windows(tokens, 10, 1).size() == 1);
    CHECK(lm::cut_windows(tokens, 26, 0).empty());
  }
}
