// The merges of byte pair encoding, and the loop that applies them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model.hpp"

namespace lm::tokenizers {

/// What pairs of tokens become: the pair with the lowest rank in a piece first, the leftmost of equals
/// (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909).
class merge_table {
  struct entry {
    std::uint64_t pair = none;
    std::uint32_t rank = 0;
    token_id result = 0;
  };
  static constexpr std::uint64_t none = ~std::uint64_t{0};
  std::vector<entry> entries_ = std::vector<entry>(1);  // a power of two, at most half of them used

  static std::uint64_t key(token_id left, token_id right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }
  std::size_t slot(std::uint64_t pair) const {
    std::size_t const mask = entries_.size() - 1;
    std::size_t at = ((pair ^ pair >> 29) * 0x9e3779b97f4a7c15 >> 24) & mask;
    while (entries_[at].pair != pair && entries_[at].pair != none) at = (at + 1) & mask;
    return at;
  }
  std::uint32_t rank(token_id left, token_id right) const {
    entry const& found = entries_[slot(key(left, right))];
    return found.pair == none ? no_rank : found.rank;
  }
  token_id result(token_id left, token_id right) const { return entries_[slot(key(left, right))].result; }

  void merge_few(std::vector<token_id>& tokens, std::size_t from) const;
  void merge_many(std::vector<token_id>& tokens, std::size_t from) const;

 public:
  static constexpr std::uint32_t no_rank = ~std::uint32_t{0};

  /// Room for so many, all that will be inserted.
  explicit merge_table(std::size_t merges = 0);

  /// A pair that is there already gets this rank and result.
  void insert(token_id left, token_id right, std::uint32_t rank, token_id result);

  /// Merges what `tokens` has from there on, less than 2^32 of them, until no pair is left to merge.
  void merge(std::vector<token_id>& tokens, std::size_t from) const;
};

}  // namespace lm::tokenizers
