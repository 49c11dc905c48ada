// The reader of tokenizer.json: every kind of tokenizer against the library that defines the format, its
// parts against what they promise, and what it refuses.
#include "tokenizer/tokenizer.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "tokenizer/byte_level.hpp"
#include "tokenizer/merges.hpp"
#include "tokenizer/regex.hpp"
#include "tokenizer/utf8.hpp"

namespace fs = std::filesystem;
using lm::tokenizers::skip_special;
using lm::tokenizers::surround;
using lm::tokenizers::token_id;
using lm::tokenizers::tokenizer;
using nlohmann::json;

namespace {

json read_json(fs::path const& path) { return json::parse(std::ifstream(path)); }

template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (gptq::error const& e) {
    return e.what();
  }
  return "";
}

bool contains(std::string const& text, std::string const& part) {
  return text.find(part) != std::string::npos;
}

/// Bytes as characters, two merges, a special token.
json byte_level_document() {
  json vocab = {{"a", 0}, {"b", 1}, {"Ġ", 2}, {"ab", 3}, {"Ġab", 4}, {"Ã", 5}, {"©", 6}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {{{"id", 7},
             {"content", "<end>"},
             {"single_word", false},
             {"lstrip", false},
             {"rstrip", false},
             {"normalized", false},
             {"special", true}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder",
           {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", {"a b", "Ġ ab"}}}}};
}

tokenizer parse(json const& document) { return tokenizer::parse(document.dump(), "t.json"); }

std::string error_of_changed(std::string const& pointer, json const& value) {
  json document = byte_level_document();
  document[json::json_pointer(pointer)] = value;
  return error_of([&] { parse(document); });
}

}  // namespace

TEST_CASE("each kind of tokenizer gives the tokens and the text that the library tokenizers gives") {
  auto const texts = read_json(fs::path(GPTQ_TOKENIZERS) / "texts.json").get<std::vector<std::string>>();
  std::size_t kinds = 0;
  for (auto const& entry : fs::directory_iterator(GPTQ_TOKENIZERS)) {
    if (!entry.is_directory()) continue;
    ++kinds;
    CAPTURE(entry.path().filename().string());
    auto const words = tokenizer::load(entry.path());
    json const cases = read_json(entry.path() / "cases.json");
    for (std::size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(texts[i]);
      auto const ids = words.encode(texts[i]);
      CHECK(ids == cases["ids"][i].get<std::vector<token_id>>());
      CHECK(words.encode(texts[i]) == ids);  // now remembered
      CHECK(words.decode(ids) == cases["decoded"][i].get<std::string>());
      CHECK(words.decode(ids, skip_special::yes) == cases["without_special"][i].get<std::string>());
      auto stream = words.start_decoding();
      std::string text;
      for (token_id const id : ids) {
        std::string const part = stream.add(id);
        CHECK_FALSE(lm::tokenizers::invalid_utf8(part));
        text += part;
      }
      CHECK(text + stream.finish() == cases["decoded"][i].get<std::string>());
      // What is around the text can be left away.
      auto const bare = words.encode(texts[i], surround::no);
      CHECK(bare.size() + words.before().size() + words.after().size() == ids.size());
      CHECK(std::equal(bare.begin(), bare.end(),
                       ids.begin() + static_cast<std::ptrdiff_t>(words.before().size())));
    }
  }
  CHECK(kinds == 26);
}

TEST_CASE("a byte-level tokenizer, token by token") {
  auto const words = parse(byte_level_document());
  CHECK(words.encode("ab ab") == std::vector<token_id>{3, 4});
  CHECK(words.encode("") == std::vector<token_id>{});
  CHECK(words.encode("é<end>") == std::vector<token_id>{5, 6, 7});
  CHECK(words.size() == 8);
  CHECK(words.find("<end>") == 7);
  CHECK(words.find("Ġab") == 4);
  CHECK_FALSE(words.find("c"));
  CHECK(*words.text(4) == "Ġab");
  CHECK(words.text(8) == nullptr);
  CHECK(words.is_special(7));
  CHECK_FALSE(words.is_special(0));

  CHECK(words.pieces("ab ab<end>\n") == std::vector<std::string>{"ab", "Ġab", "<end>", "Ċ"});
  CHECK(words.pieces("").empty());

  auto stream = words.start_decoding();
  CHECK(stream.add(5).empty());  // half of é
  CHECK(stream.add(6) == "é");
  CHECK(stream.add(5).empty());
  CHECK(stream.add(0) ==
        "\xef\xbf\xbd"
        "a");                     // it was not a half
  CHECK(stream.add(99).empty());  // no such token
  CHECK(stream.add(-1).empty());
  CHECK(stream.add(5).empty());
  CHECK(stream.finish() == "\xef\xbf\xbd");
  CHECK(words.decode(std::vector<token_id>{0, 7, 1}) == "a<end>b");
  CHECK(words.decode(std::vector<token_id>{0, 7, 1}, skip_special::yes) == "ab");
}

TEST_CASE("text that is not UTF-8 is refused with the place where it ends to be") {
  auto const words = parse(byte_level_document());
  std::string const good = "ab é 字 😀";
  CHECK(error_of([&] { words.encode(good); }).empty());
  for (std::string const bad : {"\xff", "\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80",
                                "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf0\x9f\x98"}) {
    for (std::string const before : {"", "a", "a longer text, "}) {
      CHECK(contains(error_of([&] { words.encode(before + bad); }),
                     "byte " + std::to_string(before.size()) + " is"));
      CHECK_FALSE(error_of([&] { words.encode(before + bad + "a"); }).empty());
    }
  }
}

TEST_CASE("several threads may encode at a time") {
  auto const words = tokenizer::load(fs::path(GPTQ_TOKENIZERS) / "llama3");
  auto const texts = read_json(fs::path(GPTQ_TOKENIZERS) / "texts.json").get<std::vector<std::string>>();
  std::vector<std::vector<token_id>> expected;
  for (auto const& text : texts) expected.push_back(words.encode(text));
  std::vector<char> equal(4, 0);
  std::vector<std::thread> threads;
  for (char& e : equal) {
    threads.emplace_back([&] {
      bool all = true;
      for (std::size_t i = 0; i < texts.size(); ++i) all = all && words.encode(texts[i]) == expected[i];
      e = all;
    });
  }
  for (auto& t : threads) t.join();
  CHECK(equal == std::vector<char>(4, 1));
}

TEST_CASE("merges: few tokens and many, one after the other and the same ones at once") {
  // Whatever is merged, the lowest rank and then the leftmost pair comes first: by the definition, step by
  // step.
  struct merge {
    token_id left, right, result;
  };
  std::vector<merge> const merges = {{0, 1, 2}, {2, 2, 3}, {1, 1, 4}, {0, 0, 5},
                                     {5, 5, 6}, {3, 0, 7}, {4, 2, 8}, {8, 8, 9}};
  lm::tokenizers::merge_table table(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    table.insert(merges[i].left, merges[i].right, static_cast<std::uint32_t>(i), merges[i].result);
  }
  auto const by_definition = [&](std::vector<token_id> tokens) {
    for (bool merged = true; merged;) {
      merged = false;
      for (auto const& m : merges) {
        for (std::size_t i = 0; i + 1 < tokens.size() && !merged; ++i) {
          if (tokens[i] != m.left || tokens[i + 1] != m.right) continue;
          tokens[i] = m.result;
          tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(i) + 1);
          merged = true;
        }
        if (merged) break;
      }
    }
    return tokens;
  };
  std::uint32_t random = 1;
  for (std::size_t const size : std::vector<std::size_t>{0, 1, 2, 3, 7, 47, 48, 49, 50, 200}) {
    for (int repetition = 0; repetition < 20; ++repetition) {
      std::vector<token_id> tokens(size);
      for (auto& t : tokens) t = (random = random * 1664525 + 1013904223) >> 31 ? 1 : 0;
      if (repetition == 0) std::fill(tokens.begin(), tokens.end(), 0);
      std::vector<token_id> all = {1, 0};  // stays, although it could be merged with what comes
      all.insert(all.end(), tokens.begin(), tokens.end());
      table.merge(all, 2);
      std::vector<token_id> expected = by_definition(tokens);
      expected.insert(expected.begin(), {1, 0});
      CHECK(all == expected);
    }
  }
}

TEST_CASE("regular expressions mean what they mean to Oniguruma") {
  using lm::tokenizers::regex;
  auto const found = [](std::string const& expression, std::string const& text) {
    auto const m = regex(expression).search(text, 0);
    return m ? text.substr(m->begin, m->end - m->begin) : "none";
  };
  CHECK(found(R"(\s+)", "a\u180e\u0085\u3000b") == "\u0085\u3000");  // the vowel separator is no space
  CHECK(found(R"(\w+)", "-e\u0301_\u0663x!") == "e\u0301_\u0663x");
  CHECK(found(R"(\d+)", "\u00bd\u0663") == "\u0663");
  CHECK(found(R"(\h+)", "xyz0aFg") == "0aF");
  CHECK(found(R"([^\s\d]+)", "1 a\u180e2") == "a\u180e");
  CHECK(found(R"((?i:'S|'LL))", "it'\u017f") == "'\u017f");
  CHECK(found(R"(\p{Han}+)", "\u3001\u4e00\u3005") ==
        "\u4e00\u3005");  // the script, not what is used with it
  CHECK(found(R"(\p{^L}+)", "ab12") == "12");
  CHECK(found(R"(a{,2})", "aaa") == "aa");
  CHECK(found(R"((?:a{2}+)b)", "aaaab") == "aaaab");  // repeated, not possessive
  CHECK(found(R"(a++a)", "aaa") == "none");
  CHECK(found(R"(x$)", "x\ny") == "x");
  CHECK(found(R"(^y)", "x\ny") == "y");
  CHECK(found(R"(\x{1F600}|\u5b57)", "a\u5b57") == "\u5b57");
  CHECK(found("[\r\n/]+", "a\n/\r") == "\n/\r");
  CHECK(found(R"(a{x})", "a{x}") == "a{x}");
  CHECK(found(R"( ?[^(\s|[.,!?])]+)", "(x a[b]|") == "x");
  CHECK(found(R"([a[b.[c]]d]+)", "xabc.d[]") == "abc.d");
  for (std::string const refused : {R"(\bword\b)",
                                    R"([a[^bc]])",
                                    R"([a[[:digit:]]])",
                                    R"([a[]])",
                                    R"([+-[bc]])",
                                    R"([[bc]-z])",
                                    R"([a[bc])",
                                    R"([a-z&&[^b]])",
                                    R"((a)\1)",
                                    R"((?<n>a))",
                                    R"((?m:a))",
                                    R"([^\W])",
                                    R"(\p{NoSuchScript})",
                                    "a**b)",
                                    "(a",
                                    "a)",
                                    "[a",
                                    "[]a]",
                                    "\\",
                                    R"(\x80)",
                                    R"(\x{d800})",
                                    R"(\u12)",
                                    "*a",
                                    "(?#c)",
                                    R"(\K)",
                                    "a(?i)b",
                                    R"(\p)",
                                    R"(a{2}?)"}) {
    CAPTURE(refused);
    CHECK_FALSE(error_of([&] { regex{refused}; }).empty());
  }
  // No telling in a bounded number of steps.
  CHECK_FALSE(error_of([&] { regex("(?:a+)+[bc]").search(std::string(40, 'a'), 0); }).empty());
}

TEST_CASE("bytes as characters and back") {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  std::string const text = lm::tokenizers::to_byte_level(all);
  CHECK_FALSE(lm::tokenizers::invalid_utf8(text));
  CHECK(lm::tokenizers::bytes_from_byte_level(text) == all);
  CHECK(lm::tokenizers::to_byte_level(" \n\xad") == "ĠĊŃ");
  CHECK_FALSE(lm::tokenizers::bytes_from_byte_level("a字"));
}

TEST_CASE("a decoder strips a text that arrives in parts") {
  json document = byte_level_document();
  document["model"]["vocab"] = {{"a", 0}, {" ", 1}, {"  ", 2}, {"<0xC3>", 3}, {"<0xA9>", 4}};
  document["model"]["merges"] = json::array();
  document["decoder"] = {{"type", "Sequence"},
                         {"decoders",
                          {{{"type", "ByteFallback"}},
                           {{"type", "Fuse"}},
                           {{"type", "Strip"}, {"content", " "}, {"start", 2}, {"stop", 1}}}}};
  auto const words = parse(document);
  auto const decoded = [&](std::vector<token_id> ids) { return words.decode(ids); };
  CHECK(decoded({1, 2, 0, 2}) == " a ");
  CHECK(decoded({0, 1}) == "a");
  CHECK(decoded({0, 1, 0, 1, 1}) == "a a ");
  CHECK(decoded({1}).empty());
  CHECK(decoded({3, 4, 0}) == "éa");
  CHECK(decoded({3, 4, 4}) == "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");  // together they are not a text
  auto stream = words.start_decoding();
  CHECK(stream.add(0) == "a");
  CHECK(stream.add(1).empty());  // perhaps the end
  CHECK(stream.add(0) == " a");
}

TEST_CASE("what is not understood is refused by its name and its place") {
  CHECK(error_of([] { parse(byte_level_document()); }).empty());
  auto const refuses = [](std::string const& pointer, json const& value, std::string const& place,
                          std::string const& name) {
    std::string const message = error_of_changed(pointer, value);
    CAPTURE(message, place, name);
    CHECK(message.starts_with("t.json: " + place));
    CHECK(contains(message, name));
  };
  refuses("/model/type", "WordPiece", "model", "'WordPiece'");
  refuses("/model/dropout", 0.1, "model.dropout", "chance");
  refuses("/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix", "'</w>'");
  refuses("/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix", "'##'");
  refuses("/model/unk_token", "<unk>", "model.unk_token", "'<unk>'");
  refuses("/model/new_setting", true, "model", "'new_setting'");
  refuses("/model/vocab/ab", -1, "model.vocab", "'ab'");
  refuses("/model/vocab/ab", 4, "model.vocab", "id 4");
  refuses("/model/merges/1", "Ġ  ab", "model.merges[1]", "two tokens");
  refuses("/model/merges/1", "Ġ b", "model.merges[1]", "'Ġb' is not in the vocabulary");
  refuses("/model/merges/0", json::array({"a", 3}), "model.merges[0]", "two tokens");
  refuses("/normalizer", {{"type", "BertNormalizer"}}, "normalizer", "'BertNormalizer'");
  refuses("/normalizer", {{"type", "NFC"}, {"form", "D"}}, "normalizer", "'form'");
  refuses("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Other"}}}}},
          "normalizer.normalizers[1]", "'Other'");
  refuses("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}},
          "normalizer.precompiled_charsmap", "sentencepiece");
  refuses("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "(?=a"}}}, {"content", ""}},
          "normalizer.pattern.Regex", "'(?=a'");
  refuses("/pre_tokenizer/type", "UnicodeScripts", "pre_tokenizer", "'UnicodeScripts'");
  refuses("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "\\b"}}}, {"behavior", "Isolated"}},
          "pre_tokenizer.pattern.Regex", "'\\b'");
  refuses("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Doubled"}},
          "pre_tokenizer.behavior", "'Doubled'");
  refuses("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "▁▁"}}, "pre_tokenizer.replacement",
          "one character");
  refuses(
      "/pre_tokenizer",
      {{"type", "Metaspace"}, {"replacement", "▁"}, {"add_prefix_space", false}, {"prepend_scheme", "first"}},
      "pre_tokenizer", "'first'");
  refuses("/post_processor", {{"type", "Other"}}, "post_processor", "'Other'");
  refuses(
      "/post_processor",
      {{"type", "TemplateProcessing"},
       {"single",
        {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
       {"pair", json::array()},
       {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {99}}, {"tokens", {"<s>"}}}}}}},
      "post_processor", "99");
  refuses("/decoder/type", "WordPiece", "decoder", "'WordPiece'");
  refuses("/decoder", {{"type", "Sequence"}, {"decoders", {{{"type", "Fuse"}}, {{"type", "ByteFallback"}}}}},
          "decoder.decoders[1]", "'ByteFallback'");
  refuses("/added_tokens/0/content", "ab", "added_tokens[0]", "'ab'");
  refuses("/added_tokens/0/id", 3, "added_tokens[0]", "id 3");
  refuses("/added_tokens/0/id", 3.5, "added_tokens[0].id", "id");
  refuses("/added_tokens/0/weight", 1, "added_tokens[0]", "'weight'");
  refuses("/version", "2.0", "version", "'2.0'");
  refuses("/something", 1, "", "'something'");
}

TEST_CASE("a file that is no tokenizer is named") {
  test::scratch const dir("gptq_tokenizer");
  auto const error = [&] { return error_of([&] { tokenizer::load(dir.path); }); };
  CHECK(contains(error(), (dir.path / "tokenizer.json").string() + ": cannot be opened"));
  test::write_file(dir.path / "tokenizer.json", "{");
  CHECK(contains(error(), (dir.path / "tokenizer.json").string() + ": not valid JSON"));
  test::write_file(dir.path / "tokenizer.json", "[]");
  CHECK(contains(error(), "not an object"));
  test::write_file(dir.path / "tokenizer.json", "{}");
  CHECK(contains(error(), "'model' is missing"));
  json document = {{"normalizer", nullptr},
                   {"model", {{"type", "BPE"}, {"vocab", json::object()}, {"merges", json::array()}}}};
  json nested = {{"type", "NFC"}};
  for (int i = 0; i < 400; ++i) nested = {{"type", "Sequence"}, {"normalizers", {nested}}};
  document["normalizer"] = nested;
  CHECK(contains(error_of([&] { parse(document); }), "too deeply"));
}

TEST_CASE("a character without a token") {
  json document = byte_level_document();
  document["model"] = {{"type", "Unigram"},
                       {"unk_id", nullptr},
                       {"vocab", json::array({json::array({"a", -1.0}), json::array({"b", -2.0})})}};
  document["pre_tokenizer"] = nullptr;
  document["decoder"] = nullptr;
  document["added_tokens"] = json::array();
  CHECK(parse(document).encode("ab") == std::vector<token_id>{0, 1});
  CHECK(parse(document).decode(std::vector<token_id>{0, 1}) == "a b");
  CHECK(contains(error_of([&] { parse(document).encode("axb"); }), "'x'"));
  document["model"]["unk_id"] = 2;
  CHECK(contains(error_of([&] { parse(document); }), "model.unk_id"));
  document["model"]["unk_id"] = 1;
  CHECK(parse(document).encode("axxa") == std::vector<token_id>{0, 1, 0});
}

TEST_CASE("ways to cut a text that are equally likely") {
  json document = byte_level_document();
  document["pre_tokenizer"] = nullptr;
  document["decoder"] = nullptr;
  document["added_tokens"] = json::array();
  auto const encoded = [&](double a, double aa, std::string const& text) {
    document["model"] = {{"type", "Unigram"},
                         {"unk_id", 0},
                         {"vocab", json::array({json::array({"<unk>", -50.0}), json::array({"a", a}),
                                                json::array({"aa", aa})})}};
    return parse(document).encode(text);
  };
  // The one whose last token is the longest.
  CHECK(encoded(-1.0, -2.0, "aaa") == std::vector<token_id>{1, 2});
  CHECK(encoded(-1.0, -2.0, "aaaa") == std::vector<token_id>{2, 2});
  // The library reads the first of these a bit too large, so that two of it are more than the second.
  CHECK(encoded(-7.495435087091941, -14.990870174183883, "aa") == std::vector<token_id>{1, 1});
}
