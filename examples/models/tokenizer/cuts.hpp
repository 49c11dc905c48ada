// What becomes of the matches at which a text is cut: "behavior" in tokenizer.json.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>

#include "document.hpp"
#include "pre_tokenizers.hpp"
#include "utf8.hpp"

namespace lm::tokenizers {

enum class cut_behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// @param description  has "behavior", or means `otherwise`
cut_behavior read_behavior(node const& description, cut_behavior otherwise);

/// Takes a text part by part, matches and what is between them, and hands on the pieces of it.
class cutter {
  piece whole_;
  cut_behavior behavior_;
  piece_sink sink_;
  std::size_t begin_ = 0;  // of the piece that is held
  std::size_t end_ = 0;
  bool was_match_ = false;  // the part before was one
  bool is_held_ = false;

  void hand_on(std::size_t begin, std::size_t end) const {
    if (begin < end) sink_({whole_.text.substr(begin, end - begin), whole_.is_first && begin == 0});
  }
  void hand_on_held() {
    if (is_held_) hand_on(begin_, end_);
    is_held_ = false;
  }
  void hold(std::size_t begin, std::size_t end) {
    hand_on_held();
    begin_ = begin;
    end_ = end;
    is_held_ = true;
  }

 public:
  cutter(piece whole, cut_behavior behavior, piece_sink sink)
      : whole_(whole), behavior_(behavior), sink_(sink) {}

  void add(std::size_t begin, std::size_t end, bool is_match) {
    switch (behavior_) {
      case cut_behavior::isolated:
        hand_on(begin, end);
        return;
      case cut_behavior::removed:
        if (!is_match) hand_on(begin, end);
        return;
      case cut_behavior::contiguous:
        if (is_held_ && is_match == was_match_) {
          end_ = end;
        } else {
          hold(begin, end);
        }
        break;
      case cut_behavior::merged_with_previous:
        if (is_held_ && is_match && !was_match_) {
          end_ = end;
        } else {
          hold(begin, end);
        }
        break;
      case cut_behavior::merged_with_next:
        // Of matches in a row, the last is merged.
        if (is_held_ && was_match_ && !is_match) {
          end_ = end;
        } else {
          hold(begin, end);
        }
        break;
    }
    was_match_ = is_match;
  }
  void finish() { hand_on_held(); }
};

/// Cuts at the characters for which `holds`, each of them a match.
template <class Predicate>
void cut_at_characters(piece whole, cut_behavior behavior, piece_sink sink, Predicate holds) {
  cutter out(whole, behavior, sink);
  std::size_t between = 0;
  for (std::size_t at = 0; at < whole.text.size();) {
    character const c = first_character(whole.text.substr(at));
    if (holds(c.code)) {
      if (between < at) out.add(between, at, false);
      out.add(at, at + c.size, true);
      between = at + c.size;
    }
    at += c.size;
  }
  if (between < whole.text.size()) out.add(between, whole.text.size(), false);
  out.finish();
}

}  // namespace lm::tokenizers
