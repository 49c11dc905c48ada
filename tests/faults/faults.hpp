// System calls that fail when a test wants them to: a full disk, a disk that breaks, a signal, a program killed in
// the middle. Linked into a test, or loaded before a program runs (faults.cpp says how).
#pragma once

#include <string>
#include <vector>

namespace faults {

enum class kind {
  none,           ///< calls are only counted
  error,          ///< the call does nothing and says `error`
  short_write,    ///< a write takes half of its bytes; other calls are left alone
  kill,           ///< the program is killed (SIGKILL) before the call
  kill_in_write,  ///< the same, but half of the bytes of a write are written first
};

/// What goes wrong. Counted are the calls that concern files in a directory and below: open, fstat, mmap, write,
/// fsync, rename, close and mkdir.
struct plan {
  std::string directory = {};  ///< absolute, without links
  int at = -1;                 ///< the call that fails, from 0 on
  kind what = kind::none;
  int error = 0;               ///< as errno has it
  bool and_all_later = false;  ///< those after it fail, too
  std::string only_call = {};  ///< "write": calls of other names are not counted; empty: all of them are
};

/// From here on calls fail as planned.
void start(plan const& p);

/// The calls that were counted, by name, in order; none of them fails any more.
std::vector<std::string> stop();

}  // namespace faults
