// Threads that wait awake, so that handing them a microsecond of work costs less than the work.
//
//   spin_pool pool(4);                                    // 3 threads and the caller
//   pool.run([&](int index) { work(index); });            // index 0..3, once each; the caller is 0
//
// They keep their cores busy as long as the pool lives: make one for a measurement, not for a program.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <thread>
#include <type_traits>

#if defined(__linux__)
#include <sched.h>
#endif

class spin_pool {
 public:
  explicit spin_pool(int threads) {
    pin(0);
    for (int index = 1; index < threads; ++index) {
      worker& added = workers_.emplace_back();
      added.thread = std::thread([this, &added, index] { serve(added, index); });
    }
  }

  ~spin_pool() {
    task_ = nullptr;
    turn_.fetch_add(1, std::memory_order_release);
    for (worker& w : workers_) w.thread.join();
    unpin();
  }

  spin_pool(spin_pool const&) = delete;
  spin_pool& operator=(spin_pool const&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Cores that the calling thread may use: all that the process may, outside a pool.
  static int cores() {
#if defined(__linux__)
    cpu_set_t const set = allowed();
    return CPU_COUNT(&set);
#else
    return static_cast<int>(std::thread::hardware_concurrency());
#endif
  }

  /// f(index) on every thread, the caller's included; f must not throw. Returns when all are done.
  template <class F>
  void run(F&& f) {
    argument_ = const_cast<void*>(static_cast<void const*>(std::addressof(f)));
    task_ = [](void* g, int index) { (*static_cast<std::remove_reference_t<F>*>(g))(index); };
    unsigned const turn = turn_.load(std::memory_order_relaxed) + 1;
    turn_.store(turn, std::memory_order_release);
    f(0);
    for (worker& w : workers_) wait(w.done, turn);
  }

 private:
  // What one side writes and another waits for has a cache line of its own.
  struct alignas(64) worker {
    std::atomic<unsigned> done{0};
    std::thread thread;
  };

  static void wait(std::atomic<unsigned> const& value, unsigned wanted) {
    for (int spins = 0; value.load(std::memory_order_acquire) != wanted; ++spins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
      if (spins >= 1 << 16) std::this_thread::yield();  // more threads than cores
    }
  }

  void serve(worker& self, int index) {
    pin(index);
    for (unsigned turn = 1;; ++turn) {
      wait(turn_, turn);
      if (task_ == nullptr) return;
      task_(argument_, index);
      self.done.store(turn, std::memory_order_release);
    }
  }

#if defined(__linux__)
  /// The calling thread to the index-th of the cores that the process may use.
  void pin(int index) {
    int left = index % CPU_COUNT(&allowed_);
    int core = 0;
    while (!CPU_ISSET(core, &allowed_) || left-- > 0) ++core;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
  }
  void unpin() { sched_setaffinity(0, sizeof allowed_, &allowed_); }

  static cpu_set_t allowed() {
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    return set;
  }
  cpu_set_t allowed_ = allowed();
#else
  void pin(int) {}
  void unpin() {}
#endif

  alignas(64) std::atomic<unsigned> turn_{0};
  void (*task_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  std::deque<worker> workers_;
};
