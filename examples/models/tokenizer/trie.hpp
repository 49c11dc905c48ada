// Words by their beginnings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lm::tokenizers {

/// Maps byte strings to numbers, and finds those that a text begins with. Nodes are numbered from 0, the
/// root; an edge is an entry in one hash table for all of them.
class trie {
  struct edge {
    std::uint64_t key = none;  // the node it leaves, and the byte
    std::uint32_t to = 0;
  };
  static constexpr std::uint64_t none = ~std::uint64_t{0};
  std::vector<edge> edges_ = std::vector<edge>(16);  // a power of two, at most half of them used
  std::vector<std::int32_t> values_ = {-1};          // by node; -1: no word ends here

  std::size_t slot(std::uint64_t key) const;
  void grow();

 public:
  static constexpr std::uint32_t root = 0;

  /// @param value  not negative; replaces what `word`, not empty, had
  void insert(std::string_view word, std::int32_t value);

  /// Where `byte` leads from `node`; root: nowhere.
  std::uint32_t next(std::uint32_t node, char byte) const;
  /// What was inserted for the word that ends at `node`, or -1.
  std::int32_t value(std::uint32_t node) const { return values_[node]; }
};

}  // namespace lm::tokenizers
