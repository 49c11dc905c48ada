// Work on several windows at once.
#pragma once

#include <Eigen/Core>

#include <gptq/linalg/threads.hpp>
#include <gptq/parallel.hpp>

// OpenBLAS's own controls; null with another BLAS or none.
extern "C" {
[[gnu::weak]] int openblas_get_num_threads();
[[gnu::weak]] void openblas_set_num_threads(int);
}

namespace lm {

/// Keeps OpenBLAS from starting threads of its own inside ours for as long as it lives.
class serial_blas {
 public:
  serial_blas() {
    Eigen::setNbThreads(1);  // with OpenMP, Eigen's own products would start threads, too
    if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
  }
  ~serial_blas() {
    if (openblas_set_num_threads != nullptr) openblas_set_num_threads(threads_);
  }
  serial_blas(serial_blas const&) = delete;
  serial_blas& operator=(serial_blas const&) = delete;

 private:
  int threads_ = openblas_get_num_threads != nullptr ? openblas_get_num_threads() : 1;
};

/// Calls piece(i) for i in 0..count-1 on `threads` threads (0: one a core), each matrix product on the thread
/// that asks for it: windows are independent, so no thread ever waits for another within a product.
template <class Piece>
void for_each(std::ptrdiff_t count, int threads, Piece&& piece) {
  serial_blas const one_thread_a_product;
  gptq::linalg::parallel_for(count, threads, piece);
}

/// Calls piece(0) ... piece(parts - 1), for pieces so short that starting threads would take longer: on
/// OpenMP's, which wait for the next call. Without OpenMP this thread does it all.
template <class Piece>
void run_parts(int parts, Piece const& piece) {
#if defined(_OPENMP)
  gptq::openmp{parts}(parts, piece);
#else
  for (int part = 0; part < parts; ++part) piece(part);
#endif
}

/// BLAS threads for what is not spread over windows, such as the Hessian (0: one a core).
inline void set_blas_threads(int threads) {
  Eigen::setNbThreads(1);
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(gptq::linalg::thread_count(threads));
}

}  // namespace lm
