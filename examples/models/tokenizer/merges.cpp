#include "merges.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <queue>

namespace lm::tokenizers {
namespace {

/// Up to here it is faster to look at all pairs for each merge than to keep them in order.
constexpr std::size_t few = 48;

}  // namespace

merge_table::merge_table(std::size_t merges) : entries_(std::bit_ceil(2 * merges + 1)) {}

void merge_table::insert(token_id left, token_id right, std::uint32_t rank, token_id result) {
  std::uint64_t const pair = key(left, right);
  entries_[slot(pair)] = {pair, rank, result};
}

void merge_table::merge(std::vector<token_id>& tokens, std::size_t from) const {
  std::size_t const count = tokens.size() - from;
  if (count < 2) return;
  if (count <= few) {
    merge_few(tokens, from);
  } else {
    merge_many(tokens, from);
  }
}

void merge_table::merge_few(std::vector<token_id>& tokens, std::size_t from) const {
  token_id* const t = tokens.data() + from;
  std::size_t count = tokens.size() - from;
  std::array<std::uint32_t, few> ranks;  // of a token and the one after it
  for (std::size_t i = 0; i + 1 < count; ++i) ranks[i] = rank(t[i], t[i + 1]);
  while (count > 1) {
    auto const pairs_end = ranks.begin() + static_cast<std::ptrdiff_t>(count - 1);
    auto const best = std::min_element(ranks.begin(), pairs_end);
    if (*best == no_rank) break;
    auto const i = static_cast<std::size_t>(best - ranks.begin());
    t[i] = result(t[i], t[i + 1]);
    std::copy(t + i + 2, t + count, t + i + 1);
    std::copy(best + 1, pairs_end, best);
    --count;
    if (i + 1 < count) ranks[i] = rank(t[i], t[i + 1]);
    if (i > 0) ranks[i - 1] = rank(t[i - 1], t[i]);
  }
  tokens.resize(from + count);
}

void merge_table::merge_many(std::vector<token_id>& tokens, std::size_t from) const {
  token_id* const t = tokens.data() + from;
  auto const count = static_cast<std::uint32_t>(tokens.size() - from);
  // A list of the tokens that are left; one that was merged into the token before it has next 0.
  std::vector<std::uint32_t> next(count), previous(count);
  // Rank and position of pairs to merge, the next one on top. An entry may be of a pair that is no more.
  std::vector<std::uint64_t> found;
  auto const entry_for = [](std::uint32_t rank, std::uint32_t at) { return std::uint64_t{rank} << 32 | at; };
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
    if (i + 1 == count) break;
    if (auto const r = rank(t[i], t[i + 1]); r != no_rank) found.push_back(entry_for(r, i));
  }
  std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> queue({}, std::move(found));
  while (!queue.empty()) {
    auto const top = queue.top();
    queue.pop();
    auto const at = static_cast<std::uint32_t>(top);
    std::uint32_t const right = next[at];
    if (right == 0 || right == count || rank(t[at], t[right]) != top >> 32) continue;
    t[at] = result(t[at], t[right]);
    std::uint32_t const after = next[right];
    next[at] = after;
    next[right] = 0;
    if (after != count) {
      previous[after] = at;
      if (auto const r = rank(t[at], t[after]); r != no_rank) queue.push(entry_for(r, at));
    }
    if (at != 0) {
      std::uint32_t const before = previous[at];
      if (auto const r = rank(t[before], t[at]); r != no_rank) queue.push(entry_for(r, before));
    }
  }
  std::size_t left = 0;
  for (std::uint32_t i = 0; i < count; i = next[i]) t[left++] = t[i];
  tokens.resize(from + left);
}

}  // namespace lm::tokenizers
