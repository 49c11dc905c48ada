// Tokenizers as llama.cpp wants them.
#include "gguf_tokenizer.hpp"

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gguf.hpp>

#include "catch.hpp"
#include "config.hpp"
#include "files.hpp"
#include "support.hpp"
#include "tokenizer/tokenizer.hpp"

namespace {

using nlohmann::json;
using test::contains;
using test::error_of;
using test::scratch;
using test::write_file;

/// tokenizer.json of all bytes, tokens "12" and "123", <s> and <x>; words of digits in at most so many.
json byte_level_document(int bytes, int digits) {
  json vocab;
  unsigned next = 256;
  for (unsigned byte = 0; byte < static_cast<unsigned>(bytes); ++byte) {
    bool const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    unsigned const code = printable ? byte : next++;
    std::string text;
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xc0 | code >> 6);
      text += static_cast<char>(0x80 | (code & 0x3f));
    }
    vocab[text] = byte;
  }
  vocab["12"] = 256;
  vocab["123"] = 257;
  auto const added = [](int id, char const* text, bool special) {
    return json{{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", special}};
  };
  std::string const regex = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,)" +
                            std::to_string(digits) +
                            R"(}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  return {
      {"added_tokens", {added(258, "<s>", true), added(259, "<x>", false)}},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}},
          {{"type", "ByteLevel"},
           {"add_prefix_space", false},
           {"trim_offsets", true},
           {"use_regex", false}}}}}},
      {"decoder",
       {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"1 2", "12 3"}}, {"ignore_merges", true}}}};
}

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
    c.vocab_size = 300;
    auto const document = byte_level_document(256, 3);
    write_file(dir.path / "tokenizer.json", document.dump());
    write_file(dir.path / "tokenizer_config.json",
               R"({"chat_template": "{{ messages }}", "eos_token": {"content": "<x>"}, "pad_token": "<pad>",
                   "add_bos_token": false})");
    auto const m = written();
    CHECK(m.at<std::string_view>("tokenizer.ggml.model") == "gpt2");
    CHECK(m.at<std::string_view>("tokenizer.ggml.pre") == "llama-bpe");
    auto const tokens = m.at<strings>("tokenizer.ggml.tokens");
    CHECK(tokens[258] == "<s>");
    CHECK(tokens[259] == "<x>");
    CHECK(tokens[299] == "[PAD299]");
    auto const types = m.at<std::vector<std::int64_t>>("tokenizer.ggml.token_type");
    CHECK(types[0] == 1);
    CHECK(types[258] == 3);
    CHECK(types[259] == 4);
    CHECK(types[299] == 5);
    CHECK(m.at<strings>("tokenizer.ggml.merges") == strings{"1 2", "12 3"});
    CHECK(m.at<std::int64_t>("tokenizer.ggml.bos_token_id") == 1);
    CHECK(m.at<std::int64_t>("tokenizer.ggml.eos_token_id") == 259);      // by its name
    CHECK_FALSE(m.get<std::int64_t>("tokenizer.ggml.padding_token_id"));  // a name that no token has
    CHECK(m.at<bool>("tokenizer.ggml.add_bos_token") == false);
    CHECK(m.at<std::string_view>("tokenizer.chat_template") == "{{ messages }}");
    // And the tokenizer of the file is the same again.
    auto const again = lm::tokenizers::tokenizer::parse(*lm::tokenizer_json_in(m, "x"), "x");
    auto const before = lm::tokenizers::tokenizer::parse(document.dump(), "y");
    for (std::string const text : {"12345", "a12 123<x>12", "\xc3\xa9 <s>", ""}) {
      CHECK(again.encode(text) == before.encode(text));
    }
  }
  SECTION("the pre-tokenizer is known by what it does") {
    c.vocab_size = 300;
    auto const name_of = [&](json const& pre, bool ignore_merges = false) {
      json document = byte_level_document(256, 3);
      document["pre_tokenizer"] = pre;
      document["model"]["ignore_merges"] = ignore_merges;
      write_file(dir.path / "tokenizer.json", document.dump());
      return std::string(written().at<std::string_view>("tokenizer.ggml.pre"));
    };
    json const bytes{
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
    json const digits{{"type", "Digits"}, {"individual_digits", true}};
    CHECK(name_of({{"type", "Sequence"}, {"pretokenizers", {digits, bytes}}}) == "smollm");
    json const of_three = byte_level_document(256, 3)["pre_tokenizer"];
    CHECK(name_of(of_three, true) == "llama-bpe");
    CHECK(name_of(of_three, false) == "dbrx");
    CHECK(name_of(byte_level_document(256, 1)["pre_tokenizer"]) == "qwen2");
    CHECK(contains(error_of([&] { name_of(byte_level_document(256, 2)["pre_tokenizer"]); }), "as none of"));
    CHECK(name_of(bytes) == "gpt-2");
    json with_space = bytes;
    with_space["add_prefix_space"] = true;
    CHECK(contains(error_of([&] { name_of(with_space); }), "as none of llama-bpe"));
    json const in_twos = {{"type", "Sequence"},
                          {"pretokenizers",
                           {{{"type", "Split"},
                             {"pattern", {{"Regex", "[0-9][0-9]"}}},
                             {"behavior", "Isolated"},
                             {"invert", false}},
                            bytes}}};
    CHECK(contains(error_of([&] { name_of(in_twos); }), "llama.cpp's name for it is not known"));
  }
  SECTION("templates in a file, in a list, and in neither") {
    c.vocab_size = 256;
    auto const chat = [&] { return written().get<std::string_view>("tokenizer.chat_template"); };
    CHECK_FALSE(chat());
    write_file(
        dir.path / "tokenizer_config.json",
        R"({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]})");
    auto const listed = written();
    CHECK(listed.at<std::string_view>("tokenizer.chat_template") == "d");
    write_file(dir.path / "chat_template.jinja", "{{ own }}\n");
    auto const own = written();
    CHECK(own.at<std::string_view>("tokenizer.chat_template") == "{{ own }}\n");
    write_file(dir.path / "tokenizer_config.json", "{");
    CHECK(contains(error_of([&] { written(); }), "not valid JSON") == false);  // a file of its own is enough
  }
  SECTION("BPE with byte fallback becomes scores in the order of merges") {
    write_file(dir.path / "tokenizer.json",
               R"({"model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
                             "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "ab": 4, "abb": 5, "b": 6},
                             "merges": ["a b", "ab b"]},
                   "added_tokens": [{"id": 1, "content": "<s>", "special": true},
                                    {"id": 8, "content": "<pad>", "special": true}],
                   "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}]}})");
    auto const m = written();
    CHECK(m.at<bool>("tokenizer.ggml.add_space_prefix"));
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
    CHECK(contains(
        refusal(R"({"normalizer": {"type": "Lowercase"}, "model": {"vocab": {"a": 0}, "merges": []}})"),
        "llama.cpp has none"));
    CHECK(contains(refusal(R"({"model": {"byte_fallback": true, "vocab": {"a": 0}, "merges": ["ab"]}})"),
                   "merge 'ab' is not two pieces"));
  }
}
