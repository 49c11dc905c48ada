// A bar on the terminal for work that takes a while.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <string>
#include <unistd.h>

#include <fmt/format.h>

namespace lm {

/// Draws on stderr, only if that is a terminal, and takes the line away in the end. advance() may be called
/// from any thread.
class progress {
 public:
  progress(std::string what, std::ptrdiff_t steps) : what_(std::move(what)), steps_(steps) { draw(0); }
  ~progress() { clear(); }
  progress(progress const&) = delete;
  progress& operator=(progress const&) = delete;

  void advance(std::ptrdiff_t by = 1) { draw(done_ += by); }

  /// Removes the bar, for something else to be printed; the next advance() brings it back. From any thread.
  void clear() {
    std::scoped_lock const lock(drawing_);
    if (visible_) fmt::print(stderr, "\r\033[K");
    drawn_ = -1;
  }

 private:
  void draw(std::ptrdiff_t done) {
    if (!visible_) return;
    std::scoped_lock const lock(drawing_);
    constexpr std::ptrdiff_t width = 30;
    std::ptrdiff_t const percent = 100 * done / std::max<std::ptrdiff_t>(1, steps_);
    if (percent <= drawn_) return;
    drawn_ = percent;
    auto const filled = static_cast<std::size_t>(std::min(width, width * percent / 100));
    fmt::print(stderr, "\r{} [{}{}] {:3}%", what_, std::string(filled, '='), std::string(width - filled, ' '),
               percent);
    std::fflush(stderr);
  }

  std::string what_;
  std::ptrdiff_t steps_;
  std::atomic<std::ptrdiff_t> done_{0};
  std::ptrdiff_t drawn_ = -1;
  std::mutex drawing_;
  bool visible_ = ::isatty(STDERR_FILENO) == 1;
};

}  // namespace lm
