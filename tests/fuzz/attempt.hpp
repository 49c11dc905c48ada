// What a fuzzed reader may do: succeed, with what it promises, or say in a gptq::error why not.
#pragma once

#include <gptq/error.hpp>

namespace fuzz {

/// Whether `action` succeeds.
template <class Action>
bool attempt(Action&& action) {
  try {
    action();
    return true;
  } catch (gptq::error const&) {
    return false;
  }
}

/// A finding unless it holds.
inline void require(bool holds) {
  if (!holds) __builtin_trap();
}

}  // namespace fuzz
