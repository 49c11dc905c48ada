#include "pre_tokenizers.hpp"

#include <array>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <gptq/error.hpp>

#include "tokenizer/tokenizer.hpp"

namespace lm {
namespace {

using nlohmann::json;

json byte_level(bool with_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", with_regex}};
}

json split(std::string const& regex) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
}

json digits() { return {{"type", "Digits"}, {"individual_digits", true}}; }

json sequence(json const& steps) { return {{"type", "Sequence"}, {"pretokenizers", steps}}; }

/// Expressions one after another, then what is left over, then bytes.
json words_of_each(std::vector<std::string> const& expressions, std::vector<json> const& more = {}) {
  json steps = json::array();
  for (std::string const& expression : expressions) steps.push_back(split(expression));
  for (json const& step : more) steps.push_back(step);
  steps.push_back(byte_level(false));
  return sequence(steps);
}

/// Words by one expression, then bytes.
json words(std::string const& regex) { return sequence({split(regex), byte_level(false)}); }

/// GPT-4's expression, numbers in pieces as `number` says.
std::string of_gpt4(std::string const& number) {
  return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" + number +
         R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
}

/// GPT-4o's, which tells capitals from small letters.
std::string of_gpt4o(std::string const& contraction, std::string const& number) {
  return R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)" + contraction +
         R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)" + contraction +
         "|" + number + R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
}

/// Letters that are capital or small, as of Unicode 11.
constexpr char const* cased_letters =
    R"(A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293})"
    R"(\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a})"
    R"(\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556})"
    R"(\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf})"
    R"(\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d})"
    R"(\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d})"
    R"(\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4})"
    R"(\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4})"
    R"(\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124})"
    R"(\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f})"
    R"(\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4})"
    R"(\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f})"
    R"(\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17})"
    R"(\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3})"
    R"(\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df})"
    R"(\x{1e900}-\x{1e943})";

/// Of BLOOM and its kin: words end at these marks.
constexpr char const* until_mark = R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+)";

/// Of DeepSeek's three: Han and what lies beside it, or Han and kana.
constexpr char const* han_and_hangul = R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)";
constexpr char const* han_and_kana = R"([\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+)";

json deepseek_llm() {
  return words_of_each({R"([\r\n])", R"(\s?[)" + std::string(cased_letters) + "]+",
                        R"(\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+)",
                        R"(\s+$)", han_and_hangul},
                       {digits()});
}

json deepseek_v3() {
  return words_of_each(
      {R"(\p{N}{1,3})", han_and_kana,
       R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
       R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"});
}

struct named {
  char const* name;
  pre_tokenizer pre;
};

/// Two that cut alike differ in whether a word of the vocabulary is taken as a whole, before any merge.
std::array<named, 13> const& all() {
  static std::array<named, 13> const list{{
      {"llama-bpe", {words(of_gpt4(R"(\p{N}{1,3})")), true}},
      {"dbrx", {words(of_gpt4(R"(\p{N}{1,3})")), false}},
      {"qwen2", {words(of_gpt4(R"(\p{N})")), false}},
      {"smollm", {sequence({digits(), byte_level(true)}), false}},
      {"gpt-2", {byte_level(true), false}},
      {"gpt-4o", {words(of_gpt4o(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)", R"(\p{N}{1,3})")), false}},
      {"tekken", {words(of_gpt4o("", R"(\p{N})")), true}},
      {"falcon",
       {sequence({{{"type", "Punctuation"}, {"behavior", "Contiguous"}},
                  byte_level(true),
                  {{"type", "Digits"}, {"individual_digits", false}},
                  split("[0-9][0-9][0-9]")}),
        false}},
      {"deepseek-llm", {deepseek_llm(), false}},
      {"deepseek-coder",
       {words_of_each({R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", han_and_hangul}, {digits()}), false}},
      {"deepseek-v3", {deepseek_v3(), false}},
      {"bloom", {words_of_each({until_mark}), false}},
      {"viking", {words_of_each({until_mark}, {digits()}), false}},
  }};
  return list;
}

/// Everything that sets them apart, in one text.
constexpr std::string_view probe =
    "Hello World,  don't you'RE I'LL we've 1 12 123 1234 12345 9912 1.5x2 \n\n \t\n  a\r\n\r\nb   c "
    "camelCaseHTTPServer "
    "ÀÉÎöü straße ǅungla е̄ и́ 你好世界 こんにちは 안녕하세요 नमस्ते สวัสดี مرحبا שלום "
    "\U0001F600\U0001F44D\U0001F3FD "
    "!!! ... ---- #$%^&* (a)[b]{c} <d> \"e\" 'f' ¿qué? «oui» x=y+z; if(a&&b){return;} http://a.b/c?d=e&f "
    "/path//to/\n"
    "a(b)c;d, word\u3002\u8a9e\uff0cx\u0964y\u06d4z\u060cw\u2026v a_b*c \u13a0\u13a1 \u10a0\u10d0 "
    "\u2160\u24b6 \ufb03x "
    "\uff21\uff10\uff01 \u309d\u30fc \u0e01\u0e31 \U00010400 \u200b x\u0301 +5 $x \u20acy  \r\r\n"
    "٣٤٥ ௧௨௩ ½ ²³ Ⅷ tab\tTab  two   three    four\n\n\n\nend ";

}  // namespace

std::optional<pre_tokenizer> find_pre_tokenizer(std::string_view name) {
  // Names of tokenizers that cut as another does.
  for (std::string_view const same : {"llama3", "llama-v3", "falcon3"}) {
    if (name == same) name = "llama-bpe";
  }
  for (std::string_view const same : {"starcoder", "refact", "command-r", "exaone", "minerva-7b"}) {
    if (name == same) name = "smollm";
  }
  for (std::string_view const same : {"poro-chat", "gpt3-finnish"}) {
    if (name == same) name = "bloom";
  }
  if (name == "smaug-bpe") name = "dbrx";
  if (name == "deepseek-r1-qwen") name = "qwen2";
  for (named const& n : all()) {
    if (name == n.name) return n.pre;
  }
  return std::nullopt;
}

std::string identify_pre_tokenizer(json const& document, std::string const& file) {
  json const normalizer = document.value("normalizer", json());
  bool const plain =
      normalizer.is_null() || (normalizer.is_object() && normalizer.value("type", "") == "NFC");
  if (!plain) {
    throw gptq::error(fmt::format("{}: its normalizer is {}: llama.cpp has none for byte-level BPE", file,
                                  normalizer.dump()));
  }
  // What the vocabulary is does not matter.
  json bare{{"version", "1.0"},
            {"model", {{"type", "BPE"}, {"vocab", {{"a", 0}}}, {"merges", json::array()}}}};
  auto const pieces = [&](json const& pre) {
    bare["pre_tokenizer"] = pre;
    return tokenizers::tokenizer::parse(bare.dump(), file).pieces(probe);
  };
  auto const expected = pieces(document.value("pre_tokenizer", json()));
  bool const ignore_merges = document.at("model").value("ignore_merges", false);
  std::vector<char const*> names;
  for (named const& n : all()) {
    if (n.pre.ignore_merges == ignore_merges && pieces(n.pre.description) == expected) return n.name;
    names.push_back(n.name);
  }
  throw gptq::error(
      fmt::format("{}: its pre-tokenizer cuts a probe text, or takes words whole, as none of {} does: "
                  "llama.cpp's name for it is "
                  "not known",
                  file, fmt::join(names, ", ")));
}

}  // namespace lm
