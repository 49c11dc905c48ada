// Ranks that are threads of one process: what several ranks do, without MPI.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "ranks.hpp"

namespace test {

/// What is under way between the ranks. A message is copied when it is received, not when it is sent, so that
/// one that changes before finish_sends() does not go unnoticed.
struct post_office {
  struct message {
    void const* data;
    std::size_t bytes;
    bool* taken;
  };
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, std::deque<message>> under_way;  ///< by sender and receiver

  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, Ready const& ready) {
    if (!changed.wait_for(lock, std::chrono::minutes(2), ready)) {
      throw std::logic_error("a rank waits for what no other one does");
    }
  }
};

class thread_rank final : public lm::ranks {
 public:
  thread_rank(post_office& office, int rank, int size) : office_(office), rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void send(void const* data, std::size_t bytes, int to) override {
    std::scoped_lock const lock(office_.mutex);
    office_.under_way[{rank_, to}].push_back({data, bytes, &taken_.emplace_back(false)});
    office_.changed.notify_all();
  }
  void finish_sends() override {
    std::unique_lock lock(office_.mutex);
    office_.wait(lock, [&] { return std::all_of(taken_.begin(), taken_.end(), [](bool t) { return t; }); });
    taken_.clear();
  }
  void receive(void* data, std::size_t bytes, int from) override {
    std::unique_lock lock(office_.mutex);
    auto& messages = office_.under_way[{from, rank_}];
    office_.wait(lock, [&] { return !messages.empty(); });
    if (messages.front().bytes != bytes) throw std::logic_error("a message of another length");
    if (bytes > 0) std::memcpy(data, messages.front().data, bytes);
    *messages.front().taken = true;
    messages.pop_front();
    office_.changed.notify_all();
  }
  void abort(int) override { std::terminate(); }

 private:
  post_office& office_;
  int rank_;
  int size_;
  std::deque<bool> taken_;
};

/// Calls work(rank) for `size` ranks at once. Throws what the first of those that failed has thrown.
inline void run_ranks(int size, std::function<void(std::shared_ptr<lm::ranks>)> const& work) {
  post_office office;
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      try {
        work(std::make_shared<thread_rank>(office, r, size));
      } catch (...) {
        failures[static_cast<std::size_t>(r)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (auto const& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace test
