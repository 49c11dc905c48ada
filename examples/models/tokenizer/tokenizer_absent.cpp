// In place of all the rest where PCRE2 or utf8proc is missing: there never is a tokenizer.
#include <gptq/error.hpp>

#include "tokenizer.hpp"

namespace lm::tokenizers {

struct tokenizer::parts {
  std::vector<token_id> none;
};
struct tokenizer::stream::state {};

tokenizer tokenizer::load(std::filesystem::path const& directory) {
  return parse({}, (directory / "tokenizer.json").string());
}
tokenizer tokenizer::parse(std::string_view, std::string const& name) {
  throw gptq::error(name + ": this program was built without PCRE2 or utf8proc, which reading it needs");
}

tokenizer::tokenizer(std::shared_ptr<parts const> p) : parts_(std::move(p)) {}
std::vector<token_id> tokenizer::encode(std::string_view, surround) const { return {}; }
std::vector<std::string> tokenizer::pieces(std::string_view) const { return {}; }
std::string tokenizer::decode(std::span<token_id const>, skip_special) const { return {}; }
tokenizer::stream::stream(std::shared_ptr<state> s) : state_(std::move(s)) {}
std::string tokenizer::stream::add(token_id) { return {}; }
std::string tokenizer::stream::finish() { return {}; }
tokenizer::stream tokenizer::start_decoding(skip_special) const { return stream(nullptr); }
std::vector<token_id> const& tokenizer::before() const { return parts_->none; }
std::vector<token_id> const& tokenizer::after() const { return parts_->none; }
token_id tokenizer::size() const { return 0; }
std::optional<token_id> tokenizer::find(std::string_view) const { return std::nullopt; }
std::string const* tokenizer::text(token_id) const { return nullptr; }
bool tokenizer::is_special(token_id) const { return false; }

}  // namespace lm::tokenizers
