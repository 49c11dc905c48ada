// Runs independent pieces of work on a few threads. Which thread takes which piece never changes a result,
// because the pieces are fixed beforehand and share nothing.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace gptq::detail {

/// The number of threads to use for a request; 0 stands for one a core that this process may run on.
inline int thread_count(int requested) {
  if (requested > 0) return requested;
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

/// Calls piece(i) for i in 0..count-1, in any order, on up to `threads` threads; rethrows the first
/// exception.
template <class Piece>
void parallel_for(std::ptrdiff_t count, int threads, Piece&& piece) {
  std::atomic<std::ptrdiff_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  auto const work = [&] {
    try {
      for (std::ptrdiff_t i = next++; i < count; i = next++) piece(i);
    } catch (...) {
      std::scoped_lock const lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> helpers;
  auto const wanted = std::min<std::ptrdiff_t>(thread_count(threads), count) - 1;
  for (std::ptrdiff_t t = 0; t < wanted; ++t) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace gptq::detail
