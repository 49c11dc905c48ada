// Ranks that mpirun has started.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mpi.h>
#include <sched.h>
#include <thread>

#include "ranks.hpp"

namespace lm {
namespace {

class mpi_ranks final : public ranks {
 public:
  mpi_ranks(int& argc, char**& argv) {
    // Errors end all ranks, with a message of MPI's own: none of them could go on.
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
  }
  ~mpi_ranks() override { MPI_Finalize(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void send(void const* data, std::size_t bytes, int to) override {
    auto const* next = static_cast<char const*>(data);
    for_each_message(bytes, [&](std::size_t first, int count) {
      MPI_Isend(next + first, count, MPI_BYTE, to, 0, MPI_COMM_WORLD, &sends_.emplace_back());
    });
  }
  void finish_sends() override {
    for (MPI_Request& request : sends_) wait(request);
    sends_.clear();
  }
  void receive(void* data, std::size_t bytes, int from) override {
    auto* next = static_cast<char*>(data);
    for_each_message(bytes, [&](std::size_t first, int count) {
      MPI_Request request = MPI_REQUEST_NULL;
      MPI_Irecv(next + first, count, MPI_BYTE, from, 0, MPI_COMM_WORLD, &request);
      wait(request);
    });
  }
  void abort(int status) override {
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, status);
    std::_Exit(status);
  }

 private:
  /// MPI counts in int.
  template <class Piece>
  static void for_each_message(std::size_t bytes, Piece const& piece) {
    constexpr std::size_t most = std::size_t{1} << 30;
    for (std::size_t first = 0; first < bytes; first += most) {
      piece(first, static_cast<int>(std::min(most, bytes - first)));
    }
  }

  /// MPI's own waiting takes a whole core for as long as another rank computes, which may be minutes.
  static void wait(MPI_Request& request) {
    using clock = std::chrono::steady_clock;
    auto const start = clock::now();
    for (int done = 0;;) {
      MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      if (done != 0) return;
      if (clock::now() - start < std::chrono::milliseconds(2)) {
        sched_yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    }
  }

  int rank_ = 0;
  int size_ = 1;
  std::deque<MPI_Request> sends_;
};

/// How the starters of several MPI implementations tell a process that it is one of several.
bool started_by_mpi() {
  for (char const* const name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

}  // namespace

std::shared_ptr<ranks> join_ranks(int& argc, char**& argv) {
  if (!started_by_mpi()) return alone();
  auto world = std::make_shared<mpi_ranks>(argc, argv);
  if (world->rank() > 0 && std::freopen("/dev/null", "w", stdout) == nullptr) world->abort(1);
  return world;
}

}  // namespace lm
