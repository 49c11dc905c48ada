// Ctrl-C, between two steps of the work.
#pragma once

#include <csignal>
#include <exception>

namespace lm {

/// Thrown where the work can stop; everything on the way out cleans up after itself.
struct interrupted : std::exception {
  char const* what() const noexcept override { return "interrupted"; }
};

namespace detail {
inline volatile std::sig_atomic_t interrupt_signal = 0;
}

/// From now on SIGINT and SIGTERM make the next check_interrupt() throw. A second one ends the program.
inline void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int signal) { detail::interrupt_signal = signal; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

/// Throws interrupted after a signal. May be called from any thread.
inline void check_interrupt() {
  if (detail::interrupt_signal != 0) throw interrupted();
}

/// What a shell expects of a program that a signal has ended.
inline int interrupt_status() { return 128 + detail::interrupt_signal; }

}  // namespace lm
