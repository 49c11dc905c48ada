// gemv, gemm and prepare on several threads of yours: these functions start none.
//
//   auto a = gptq::parallel_prepare(w, x, tokens, workspace, executor, parts);
//   gptq::parallel_gemm(w, a, y, executor, parts);
//   gptq::parallel_gemv(w, x, y, executor, parts);    // one token, x as it is: rounded to int8, as by gemv()
//
// An executor is anything that can be called as executor(parts, f): it calls f(0) ... f(parts-1), once each,
// on whatever threads, and returns when all are done. f does not throw. To make one of a thread pool:
//
//   auto executor = [&](int parts, auto const& f) noexcept { pool.run(parts, f); };
//
// An executor that says how many threads it has, as executor.threads(), needs no `parts`. There are two, thread_pool
// of thread_pool.hpp and, where the compiler has OpenMP, openmp here:
//
//   gptq::thread_pool workers(4);
//   gptq::parallel_gemv(w, x, y, workers);
//
// A product takes microseconds, so how threads wait for the next decides much: those that spin start at once and
// take a core each from everything else, those that sleep take some 10 us to wake up. OpenMP's spin unless told
// otherwise (OMP_WAIT_POLICY=passive, GOMP_SPINCOUNT), which is a loss where other programs want the cores.
//
// Results are those of one thread. Nothing here allocates, nor throws unless the executor does.
#pragma once

#include <concepts>
#include <type_traits>

#include <gptq/gemm.hpp>

namespace gptq {

/// Part `part` of `parts` of the rows of a matrix: contiguous, in order, cut at multiples of 32, where
/// kernels best start, and as even as that allows. May be empty.
GPTQ_INLINE constexpr row_range row_share(index_t out, int part, int parts) {
  index_t const blocks = (out + packed_rows - 1) / packed_rows;
  index_t const last = blocks * (part + 1) / parts * packed_rows;
  return {blocks * part / parts * packed_rows, last < out ? last : out};
}

/// The same for tokens, which may be cut anywhere.
GPTQ_INLINE constexpr token_range token_share(index_t tokens, int part, int parts) {
  return {tokens * part / parts, tokens * (part + 1) / parts};
}

namespace detail {
struct no_work {
  void operator()(int /*part*/) const noexcept {}
};
template <class Executor>
inline constexpr bool nothrow_executor = std::is_nothrow_invocable_v<Executor&, int, no_work const&>;
}  // namespace detail

/// Callable as executor(parts, f); see the head of this file.
template <class Executor>
concept parallel_executor = std::is_invocable_v<Executor&, int, detail::no_work const&>;

/// And knows how many threads it has.
template <class Executor>
concept sized_executor = parallel_executor<Executor> && requires(Executor const& executor) {
  { executor.threads() } -> std::convertible_to<int>;
};

/// gemv(w, x, y) in `parts` row shares. x: prepared activations, or float, float16 or bfloat16, which each part
/// prepares for itself: less than all of them waiting for one.
template <precision Precision, class Isa = isa::native, storage_format Format, parallel_executor Executor>
void parallel_gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y,
                   Executor&& executor, int parts) noexcept(detail::nothrow_executor<Executor>) {
  executor(parts, [&](int part) noexcept { gemv<Precision, Isa>(w, x, y, row_share(w.out, part, parts)); });
}
/// The same for x[in] of float, float16 or bfloat16, as it is.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T,
          parallel_executor Executor>
void parallel_gemv(packed_view<Format> const& w, T const* x, float* y, Executor&& executor,
                   int parts) noexcept(detail::nothrow_executor<Executor>) {
  executor(parts, [&](int part) noexcept { gemv<Precision, Isa>(w, x, y, row_share(w.out, part, parts)); });
}

/// gemm(w, x, y) in `parts` row shares.
template <precision Precision, class Isa = isa::native, storage_format Format, parallel_executor Executor>
void parallel_gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y,
                   Executor&& executor, int parts) noexcept(detail::nothrow_executor<Executor>) {
  executor(parts, [&](int part) noexcept { gemm<Precision, Isa>(w, x, y, row_share(w.out, part, parts)); });
}

/// prepare(w, x, tokens, workspace) in `parts` shares of the tokens.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T,
          parallel_executor Executor>
activations<Precision> parallel_prepare(packed_view<Format> const& w, T const* x, index_t tokens,
                                        void* workspace, Executor&& executor,
                                        int parts) noexcept(detail::nothrow_executor<Executor>) {
  executor(parts, [&](int part) noexcept {
    prepare<Precision, Isa>(w, x, tokens, workspace, token_share(tokens, part, parts));
  });
  return prepare<Precision, Isa>(w, x, tokens, workspace, {0, 0});  // no work: where it all lies
}

/// The same in a part for each thread of an executor that knows how many it has.
template <precision Precision, class Isa = isa::native, storage_format Format, sized_executor Executor>
void parallel_gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y,
                   Executor&& executor) noexcept(detail::nothrow_executor<Executor>) {
  parallel_gemv<Precision, Isa>(w, x, y, executor, executor.threads());
}
/// The same in a part for each of its threads.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T,
          sized_executor Executor>
void parallel_gemv(packed_view<Format> const& w, T const* x, float* y,
                   Executor&& executor) noexcept(detail::nothrow_executor<Executor>) {
  parallel_gemv<Precision, Isa>(w, x, y, executor, executor.threads());
}
/// The same in a part for each of its threads.
template <precision Precision, class Isa = isa::native, storage_format Format, sized_executor Executor>
void parallel_gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y,
                   Executor&& executor) noexcept(detail::nothrow_executor<Executor>) {
  parallel_gemm<Precision, Isa>(w, x, y, executor, executor.threads());
}
/// The same in a part for each of its threads.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T,
          sized_executor Executor>
activations<Precision> parallel_prepare(packed_view<Format> const& w, T const* x, index_t tokens,
                                        void* workspace,
                                        Executor&& executor) noexcept(detail::nothrow_executor<Executor>) {
  return parallel_prepare<Precision, Isa>(w, x, tokens, workspace, executor, executor.threads());
}

#if defined(_OPENMP)
/// An executor on OpenMP's threads.
class openmp {
 public:
  explicit openmp(int threads) : threads_(threads) {}
  int threads() const { return threads_; }

  template <class F>
  void operator()(int parts, F const& f) const noexcept {
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int part = 0; part < parts; ++part) f(part);
  }

 private:
  int threads_;
};
#endif

}  // namespace gptq
