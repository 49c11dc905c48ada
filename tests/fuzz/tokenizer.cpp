// Whatever a tokenizer.json says, reading it and encoding a text end in tokens or in a gptq::error; what the
// tokens decode to is UTF-8, all at once as in parts. The input is the file, a byte 0xff, which no JSON has,
// and the text.
#include "tokenizer/tokenizer.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attempt.hpp"
#include "tokenizer/utf8.hpp"

namespace {

using fuzz::attempt;
using fuzz::require;
using namespace lm::tokenizers;

void use(tokenizer const& words, std::string_view text) {
  std::vector<token_id> ids;
  if (!attempt([&] { ids = words.encode(text); })) return;
  std::vector<token_id> again;
  require(attempt([&] { again = words.encode(text); }));
  require(again == ids);
  for (token_id const id : ids) require(id >= 0 && id < words.size() && words.text(id));

  std::string parts;
  auto stream = words.start_decoding();
  attempt([&] {
    for (token_id const id : ids) parts += stream.add(id);
    parts += stream.finish();
    require(!invalid_utf8(parts));
    require(words.decode(ids) == parts);
    require(!invalid_utf8(words.decode(ids, skip_special::yes)));
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::string_view const input(reinterpret_cast<char const*>(data), size);
  std::size_t const end = input.find('\xff');
  std::string_view const text = end == std::string_view::npos ? "ab <s> 12" : input.substr(end + 1);
  std::optional<tokenizer> words;
  if (attempt([&] { words.emplace(tokenizer::parse(input.substr(0, end), "fuzzed")); })) use(*words, text);
  return 0;
}
