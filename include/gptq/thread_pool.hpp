// Threads for products that follow each other closely, for programs that have none: an executor of parallel.hpp.
//
//   gptq::thread_pool workers(4);                    // three threads beside the one that calls
//   workers(8, [](int part) noexcept { run(part); });  // run(0) ... run(7), two on each; returns when all are done
//
// Between two calls the threads wait for the next for a moment, which costs a core each and starts at once, and then
// sleep, which costs nothing.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace gptq {

/// One call at a time, from one thread at a time. Calling allocates nothing and does not throw.
class thread_pool {
 public:
  /// Starts threads - 1 threads. Those that have nothing to do look for it for `awake`, and then sleep.
  /// @param threads  those that work, the caller's among them: 1 and more
  /// @throws std::system_error when the system has no more threads
  explicit thread_pool(int threads, std::chrono::microseconds awake = std::chrono::microseconds(20))
      : thread_pool(awake) {  // and from here on the destructor stops those that are there
    threads_.reserve(static_cast<std::size_t>(threads > 1 ? threads - 1 : 0));
    for (int t = 1; t < threads; ++t) threads_.emplace_back([this, t] { work(t); });
  }
  ~thread_pool() {
    stopped_.store(true, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  thread_pool(thread_pool const&) = delete;
  thread_pool& operator=(thread_pool const&) = delete;

  /// Those that work, the caller's among them.
  int threads() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls f(0) ... f(parts-1), thread t those of t, t + threads(), ..., and returns when all are done.
  template <class F>
  void operator()(int parts, F const& f) noexcept {
    parts_ = parts;
    context_ = &f;
    call_ = [](void const* context, int part) { (*static_cast<F const*>(context))(part); };
    busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    take(0);
    for (int left = busy_.load(std::memory_order_acquire); left != 0;
         left = busy_.load(std::memory_order_acquire)) {
      wait_while(busy_, left);
    }
  }

 private:
  explicit thread_pool(std::chrono::microseconds awake) : awake_(awake) {}

  void take(int thread) {
    for (int part = thread; part < parts_; part += threads()) call_(context_, part);
  }

  /// Returns some time after `value` is no longer `old`.
  template <class T>
  void wait_while(std::atomic<T> const& value, T old) const {
    auto const end = std::chrono::steady_clock::now() + awake_;
    do {
      for (int i = 0; i < 64; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    } while (std::chrono::steady_clock::now() < end);
    value.wait(old, std::memory_order_acquire);
  }

  void work(int thread) {
    for (std::uint32_t seen = 0;;) {
      wait_while(round_, seen);
      ++seen;
      if (stopped_.load(std::memory_order_relaxed)) return;
      take(thread);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  std::chrono::microseconds awake_;
  std::vector<std::thread> threads_;
  std::atomic<std::uint32_t> round_ = 0;  ///< calls so far
  std::atomic<int> busy_ = 0;             ///< threads that are not done with this one
  std::atomic<bool> stopped_ = false;
  int parts_ = 0;
  void const* context_ = nullptr;
  void (*call_)(void const* context, int part) = nullptr;
};

}  // namespace gptq
