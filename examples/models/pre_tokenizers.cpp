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

struct named {
  char const* name;
  pre_tokenizer pre;
};

/// Two that cut alike differ in whether a word of the vocabulary is taken as a whole, before any merge.
std::array<named, 8> const& all() {
  static std::array<named, 8> const list{{
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
  if (name == "smaug-bpe") name = "dbrx";
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
