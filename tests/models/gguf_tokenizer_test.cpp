// Tokenizers as llama.cpp wants them.
#include "gguf_tokenizer.hpp"

#include <string>
#include <string_view>
#include <vector>

#include <gptq/checkpoint/gguf.hpp>

#include "catch.hpp"
#include "config.hpp"
#include "files.hpp"
#include "support.hpp"

namespace {

using test::contains;
using test::error_of;
using test::scratch;
using test::write_file;

}  // namespace

TEST_CASE("tokenizers for llama.cpp") {
  namespace checkpoint = gptq::checkpoint;
  using strings = std::vector<std::string_view>;
  scratch const dir;
  auto const file = dir.path / "x.gguf";
  lm::config c{};
  c.vocab_size = 8;
  c.bos_token_id = 1;
  auto const written = [&] {
    checkpoint::gguf_metadata metadata;
    lm::add_tokenizer(metadata, dir.path, c);
    checkpoint::write_gguf(file, metadata, {});
    return checkpoint::gguf_file(file);
  };
  SECTION("none") { CHECK(written().at<std::string_view>("tokenizer.ggml.model") == "none"); }
  SECTION("bytes") {
    c.vocab_size = 256;
    auto const m = written();
    auto const tokens = m.at<strings>("tokenizer.ggml.tokens");
    REQUIRE(tokens.size() == 256);
    CHECK(tokens['a'] == "a");
    CHECK(tokens[' '] == "\u0120");
    CHECK(tokens['\n'] == "\u010a");
    CHECK(tokens[0xe9] == "\u00e9");
    CHECK(tokens[0xad] == "\u0143");
    CHECK(m.at<strings>("tokenizer.ggml.merges").empty());
  }
  SECTION("byte-level BPE") {
    write_file(dir.path / "tokenizer.json",
               R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 2, "ab": 3, "abb": 4},
                             "merges": ["a b", ["ab", "b"]]},
                   "added_tokens": [{"id": 1, "content": "<s>", "special": true}, {"id": 5, "content": "<x>"}],
                   "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                     {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\s+"}}, {"type": "ByteLevel"}]}})");
    write_file(dir.path / "tokenizer_config.json", R"({"chat_template": "{{ messages }}"})");
    auto const m = written();
    CHECK(m.at<std::string_view>("tokenizer.ggml.model") == "gpt2");
    CHECK(m.at<std::string_view>("tokenizer.ggml.pre") == "llama-bpe");
    CHECK(m.at<strings>("tokenizer.ggml.tokens") ==
          strings{"a", "<s>", "b", "ab", "abb", "<x>", "[PAD6]", "[PAD7]"});
    CHECK(m.at<std::vector<std::int64_t>>("tokenizer.ggml.token_type") ==
          std::vector<std::int64_t>{1, 3, 1, 1, 1, 4, 5, 5});
    CHECK(m.at<strings>("tokenizer.ggml.merges") == strings{"a b", "ab b"});
    CHECK(m.at<std::int64_t>("tokenizer.ggml.bos_token_id") == 1);
    CHECK(m.at<std::string_view>("tokenizer.chat_template") == "{{ messages }}");
  }
  SECTION("BPE with byte fallback becomes scores in the order of merges") {
    write_file(dir.path / "tokenizer.json",
               R"({"model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
                             "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "ab": 4, "abb": 5, "b": 6},
                             "merges": ["a b", "ab b"]},
                   "added_tokens": [{"id": 1, "content": "<s>", "special": true}]})");
    auto const m = written();
    CHECK(m.at<std::string_view>("tokenizer.ggml.model") == "llama");
    CHECK(m.at<std::vector<double>>("tokenizer.ggml.scores") ==
          std::vector<double>{-1e6, -1e6, -1e6, -1e6, 0, -1, -1e6, -1e6});
    CHECK(m.at<std::vector<std::int64_t>>("tokenizer.ggml.token_type") ==
          std::vector<std::int64_t>{2, 3, 6, 1, 1, 1, 1, 5});
    CHECK(m.at<std::int64_t>("tokenizer.ggml.unknown_token_id") == 0);
  }
  SECTION("others") {
    auto const refusal = [&](std::string const& text) {
      write_file(dir.path / "tokenizer.json", text);
      return error_of([&] { written(); });
    };
    CHECK(contains(refusal("{"), "not valid JSON"));
    CHECK(contains(refusal("{}"), "not a tokenizer"));
    CHECK(contains(refusal(R"({"model": {"type": "Unigram"}})"), "is \"Unigram\": only BPE can be written"));
    CHECK(contains(refusal(R"({"model": {"vocab": {"a": 8}, "merges": []}})"),
                   "token 8 is outside the model's vocabulary of 8"));
    CHECK(
        contains(refusal(R"({"model": {"vocab": {"a": 0}, "merges": []}})"), "its pre-tokenizer is none of"));
    CHECK(contains(refusal(R"({"model": {"byte_fallback": true, "vocab": {"a": 0}, "merges": ["ab"]}})"),
                   "merge 'ab' is not two pieces"));
  }
}
