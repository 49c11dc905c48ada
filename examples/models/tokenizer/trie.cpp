#include "trie.hpp"

#include <utility>

namespace lm::tokenizers {
namespace {

std::uint64_t key_for(std::uint32_t node, char byte) {
  return std::uint64_t{node} << 8 | static_cast<unsigned char>(byte);
}

}  // namespace

/// Where `key` is or would be.
std::size_t trie::slot(std::uint64_t key) const {
  std::size_t const mask = edges_.size() - 1;
  std::size_t at = (key * 0x9e3779b97f4a7c15 >> 32) & mask;
  while (edges_[at].key != key && edges_[at].key != none) at = (at + 1) & mask;
  return at;
}

void trie::grow() {
  std::vector<edge> const old = std::exchange(edges_, std::vector<edge>(2 * edges_.size()));
  for (edge const& e : old) {
    if (e.key != none) edges_[slot(e.key)] = e;
  }
}

void trie::insert(std::string_view word, std::int32_t value) {
  std::uint32_t node = root;
  for (char const byte : word) {
    std::uint64_t const key = key_for(node, byte);
    edge& found = edges_[slot(key)];
    if (found.key == key) {
      node = found.to;
      continue;
    }
    node = static_cast<std::uint32_t>(values_.size());
    found = {key, node};
    values_.push_back(-1);
    if (2 * values_.size() > edges_.size()) grow();
  }
  values_[node] = value;
}

std::uint32_t trie::next(std::uint32_t node, char byte) const { return edges_[slot(key_for(node, byte))].to; }

}  // namespace lm::tokenizers
