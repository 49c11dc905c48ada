// The tokens of pieces that have been seen before.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "model.hpp"

namespace lm::tokenizers {

/// Has a place for each hash, where the last piece with that hash is found: two cache lines, so that the
/// whole of it stays near the core.
class piece_cache {
  static constexpr std::size_t most_bytes = 75;
  static constexpr std::size_t most_tokens = 10;
  static constexpr std::size_t places = std::size_t{1} << 14;

  struct alignas(64) place {
    std::uint64_t hash = 0;
    std::uint8_t bytes = 0;  // 0: empty
    std::uint8_t count = 0;
    std::array<token_id, most_tokens> tokens;
    std::array<char, most_bytes> text;
  };
  static_assert(sizeof(place) == 128);
  std::vector<place> places_ = std::vector<place>(places);

 public:
  /// Multiplies 8 bytes at a time into the hash.
  static std::uint64_t hash(std::string_view piece) {
    std::uint64_t h = piece.size() * 0x9e3779b97f4a7c15;
    auto const mix = [&](std::uint64_t word) {
      h = (h ^ word) * 0xd6e8feb86659fd93;
      h ^= h >> 32;
    };
    std::size_t at = 0;
    std::uint64_t word = 0;
    for (; at + sizeof(word) <= piece.size(); at += sizeof(word)) {
      std::memcpy(&word, piece.data() + at, sizeof(word));
      mix(word);
    }
    word = 0;
    std::memcpy(&word, piece.data() + at, piece.size() - at);
    mix(word);
    return h;
  }

  /// The tokens that were inserted for it, if they are still here.
  std::span<token_id const> find(std::string_view piece, std::uint64_t hash) const {
    place const& p = places_[hash % places];
    if (p.hash != hash || p.bytes != piece.size() || std::memcmp(p.text.data(), piece.data(), p.bytes) != 0)
      return {};
    return {p.tokens.data(), p.count};
  }

  /// Nothing happens for what is too long to be kept, or has no tokens.
  void insert(std::string_view piece, std::uint64_t hash, std::span<token_id const> tokens) {
    if (piece.size() > most_bytes || tokens.empty() || tokens.size() > most_tokens) return;
    place& p = places_[hash % places];
    p.hash = hash;
    p.bytes = static_cast<std::uint8_t>(piece.size());
    p.count = static_cast<std::uint8_t>(tokens.size());
    std::memcpy(p.text.data(), piece.data(), piece.size());
    std::memcpy(p.tokens.data(), tokens.data(), tokens.size_bytes());
  }
};

}  // namespace lm::tokenizers
