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
#include "pre_tokenizers.hpp"
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

/// Of sentencepiece, as protobuf writes it: <unk>, <s>, </s>, "a" and a space.
std::string sentencepiece_model() {
  std::string model;
  auto const add = [&](std::string const& text, char type) {
    std::string const score(4, '\0');
    std::string const entry = '\x0a' + std::string(1, static_cast<char>(text.size())) + text + '\x15' +
                              score + '\x18' + std::string(1, type);
    model += '\x0a' + std::string(1, static_cast<char>(entry.size())) + entry;
  };
  add("<unk>", 2), add("<s>", 3), add("</s>", 3), add("a", 1), add("\u2581", 1);
  return model + "\x12\x02\x18\x02";  // BPE
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
    auto const split = [](std::string const& regex) {
      return json{
          {"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
    };
    json plain_bytes = bytes;
    plain_bytes["use_regex"] = false;
    auto const steps = [&](std::vector<json> all) {
      all.push_back(plain_bytes);
      return json{{"type", "Sequence"}, {"pretokenizers", all}};
    };
    // As these models' own files have them.
    json const bloom = split(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+");
    CHECK(name_of(steps({bloom})) == "bloom");
    CHECK(name_of(steps({bloom, digits})) == "viking");
    json const han = split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+");
    CHECK(name_of(steps({split("[\r\n]"), split("\\s?\\p{L}+"), split("\\s?\\p{P}+"), han, digits})) ==
          "deepseek-coder");
    json const words = split(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+");
    CHECK(name_of(steps({split("\\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
                         words})) == "deepseek-v3");
    CHECK(contains(error_of([&] { name_of(steps({split("\\p{N}{1,3}"), words})); }), "as none of"));
    // And as a file that has the name is read.
    for (std::string const name :
         {"bloom", "viking", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon"}) {
      CHECK(name_of(lm::find_pre_tokenizer(name)->description) == name);
    }
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
  SECTION("a tokenizer.model, and tokens that only the files beside it have") {
    c.vocab_size = 12;
    write_file(dir.path / "tokenizer.model", sentencepiece_model());
    if (contains(error_of([&] { written(); }), "built without sentencepiece")) return;
    // The same token in several files; one that sentencepiece has; one past the vocabulary.
    write_file(dir.path / "added_tokens.json", R"({"<from_added>": 5})");
    write_file(dir.path / "tokenizer_config.json",
               R"({"added_tokens_decoder": {"0": {"content": "<other>", "special": false},
                                            "6": {"content": "<from_config>", "special": true},
                                            "7": {"content": "from_config", "special": false},
                                            "12": {"content": "<outside>", "special": true}},
                   "eos_token": "<from_config>", "pad_token": {"content": "<from_json>"}})");
    write_file(dir.path / "tokenizer.json",
               R"({"added_tokens": [{"id": 6, "content": "<from_config>", "special": true},
                                    {"id": 11, "content": "<from_json>", "special": true}]})");
    auto const m = written();
    CHECK(m.at<strings>("tokenizer.ggml.tokens") == strings{"<unk>", "<s>", "</s>", "a", "\u2581",
                                                            "<from_added>", "<from_config>", "from_config",
                                                            "[PAD8]", "[PAD9]", "[PAD10]", "<from_json>"});
    CHECK(m.at<std::vector<std::int64_t>>("tokenizer.ggml.token_type") ==
          std::vector<std::int64_t>{2, 3, 3, 1, 1, 4, 3, 4, 5, 5, 5, 3});
    CHECK(m.at<std::int64_t>("tokenizer.ggml.eos_token_id") == 6);
    CHECK(m.at<std::int64_t>("tokenizer.ggml.padding_token_id") == 11);
    CHECK(m.at<bool>("tokenizer.ggml.add_space_prefix"));
    write_file(dir.path / "tokenizer_config.json", R"({"added_tokens_decoder": {"six": {"content": "x"}}})");
    CHECK(contains(error_of([&] { written(); }), "tokens that are added to it: "));
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
