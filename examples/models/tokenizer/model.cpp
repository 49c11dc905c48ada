#include "model.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "bpe.hpp"
#include "unigram.hpp"

namespace lm::tokenizers {

void vocabulary::reserve(std::size_t tokens) {
  ids_.reserve(tokens);
  texts_.reserve(tokens);
}

void vocabulary::insert(std::string text, token_id id) {
  auto const [entry, is_inserted] = ids_.insert_or_assign(std::move(text), id);
  texts_.insert_or_assign(id, &entry->first);
  end_ = std::max(end_, id + 1);
}

std::optional<token_id> vocabulary::id(std::string_view text) const {
  auto const found = ids_.find(text);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::string const* vocabulary::text(token_id id) const {
  auto const found = texts_.find(id);
  return found == texts_.end() ? nullptr : found->second;
}

std::string byte_token(unsigned char byte) { return fmt::format("<0x{:02X}>", byte); }

std::unique_ptr<model const> read_model(node const& description) {
  auto const type = description.find("type");
  // Old files leave it to be told from the rest.
  std::string const name = type ? type->string() : description.has("merges") ? "BPE" : "Unigram";
  if (name == "BPE") return read_bpe(description);
  if (name == "Unigram") return read_unigram(description);
  description.fail(fmt::format("a model of type '{}' is not understood: only BPE and Unigram are", name));
}

}  // namespace lm::tokenizers
