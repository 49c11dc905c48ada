// Runs independent pieces of work on a few threads. Which thread takes which piece never changes a result,
// because the pieces are fixed beforehand and share nothing.
#pragma once

#include <algorithm>
#include <type_traits>

#include <gptq/config.hpp>
#include <gptq/linalg/compiled_once.hpp>

#if !defined(GPTQ_SOLVER_ELSEWHERE)
#if defined(__linux__)
#include <sched.h>
#endif
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#endif

namespace gptq::linalg {

/// The number of threads to use for a request; 0 stands for one a core that this process may run on.
GPTQ_SOLVER_FUNCTION int thread_count(int requested);

/// A function that is only called while the call lasts which it is an argument of.
template <class Signature>
class function_ref;
template <class... Arguments>
class function_ref<void(Arguments...)> {
 public:
  template <class Function>
  // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): not of a function_ref
  requires(!std::is_same_v<std::remove_cvref_t<Function>, function_ref>) function_ref(Function&& f)
      : function_(const_cast<void*>(static_cast<void const*>(&f))),
        call_([](void* function, Arguments... arguments) {
          (*static_cast<std::remove_reference_t<Function>*>(function))(arguments...);
        }) {}
  void operator()(Arguments... arguments) const { call_(function_, arguments...); }

 private:
  void* function_;
  void (*call_)(void*, Arguments...);
};

/// Calls piece(i) for i in 0..count-1, in any order, on up to `threads` threads; rethrows the first
/// exception.
GPTQ_SOLVER_FUNCTION void parallel_for(index_t count, int threads, function_ref<void(index_t)> piece);

/// Calls range(first, n) for the ranges of `size` (the last one: of what is left) that make up 0..count-1.
inline void parallel_ranges(index_t count, index_t size, int threads,
                            function_ref<void(index_t, index_t)> range) {
  parallel_for((count + size - 1) / size, threads,
               [&](index_t i) { range(i * size, std::min(size, count - i * size)); });
}

#if !defined(GPTQ_SOLVER_ELSEWHERE)

GPTQ_SOLVER_FUNCTION int thread_count(int requested) {
  if (requested > 0) return requested;
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

GPTQ_SOLVER_FUNCTION void parallel_for(index_t count, int threads, function_ref<void(index_t)> piece) {
  std::atomic<index_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  auto const work = [&] {
    try {
      for (index_t i = next++; i < count; i = next++) piece(i);
    } catch (...) {
      std::scoped_lock const lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> helpers;
  auto const wanted = std::min<index_t>(thread_count(threads), count) - 1;
  try {
    for (index_t t = 0; t < wanted; ++t) helpers.emplace_back(work);
  } catch (std::system_error const&) {  // no more threads to be had: those that run will do
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

#endif

}  // namespace gptq::linalg
