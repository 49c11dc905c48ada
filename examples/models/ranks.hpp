// The processes that do a job together: on one host or several, with a GPU each or none.
//
// Every rank runs the same program and comes to the same calls in the same order. All that they exchange goes
// through send() and receive(); what is built on these is deterministic: what is added up is added in the
// order of the ranks, whichever is first.
//
//   auto const world = lm::join_ranks(argc, argv);        // one rank, unless mpirun has started several
//   lm::agree(*world, [&] { read_all_files(); });         // fails on all ranks or on none
//
// Without Eigen, JSON and files, for the device's part of the programs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace lm {

class ranks {
 public:
  virtual ~ranks() = default;
  virtual int rank() const = 0;  ///< 0 .. size() - 1; 0 prints and writes files
  virtual int size() const = 0;
  /// Sends bytes, which have to stay as they are until finish_sends(). What one rank sends another arrives in
  /// order.
  virtual void send(void const* data, std::size_t bytes, int to) = 0;
  /// Waits until everything sent has been taken.
  virtual void finish_sends() = 0;
  /// Waits for the bytes that `from` sends, as many as it does.
  virtual void receive(void* data, std::size_t bytes, int from) = 0;
  /// Ends all ranks, with this exit status.
  [[noreturn]] virtual void abort(int status) = 0;
};

/// One rank that has nobody to talk to.
std::shared_ptr<ranks> alone();

/// The ranks that mpirun has started; alone() where it has not started this program, which then has nothing
/// to do with MPI. The output of all ranks but the first is thrown away, not their errors. MPI ends when the
/// result is destroyed. Throws std::runtime_error when several were started and the program was built without
/// MPI.
std::shared_ptr<ranks> join_ranks(int& argc, char**& argv);

/// What a rank has of its host.
struct host_share {
  int local_rank = 0;  ///< among the ranks of this host
  int local_size = 1;
  int threads = 0;  ///< cores that it may use, shared equally among the ranks that may use the same; alone: 0
};
host_share find_host_share(ranks& world);

/// All ranks get the bytes of rank `from`.
void broadcast(ranks& world, std::span<std::byte> bytes, int from);
/// Likewise of a text, whose length only `from` knows.
void broadcast(ranks& world, std::string& text, int from);
/// Every rank's text, in their order, on all of them.
std::vector<std::string> gather(ranks& world, std::string const& mine);
/// Rows of floats from every rank, joined in their order, on the ranks `to`; elsewhere nothing.
std::vector<float> join(ranks& world, std::span<float const> mine, std::span<int const> to);
/// The sum of a number of every rank, added in their order, on all of them.
double sum(ranks& world, double mine);

/// parts[0] + parts[1] + ... over all ranks' parts, in their order and one after the other, so that the bits
/// depend on the parts alone and not on which rank has them; afterwards in `total` on the ranks `to`. Each
/// rank passes the sum so far to the next one, a piece at a time, so all of them are busy at once.
/// @param parts  of equal size on all ranks, any number of them, but at least one on rank 0
/// @param total  of that size; may be parts[0]; elsewhere than on `to` it is scratch
void add_in_order(ranks& world, std::span<std::span<float const> const> parts, std::span<float> total,
                  std::span<int const> to);

/// What agree() throws on all ranks when one of them has failed.
struct agreed_failure : std::runtime_error {
  agreed_failure(std::string const& message, int exit_status)
      : std::runtime_error(message), status(exit_status) {}
  int status;  ///< of the program
};

/// What a program says of an exception, and its exit status: 2 for gptq::error, 130 or 143 where it was
/// interrupted, otherwise 1.
struct failure {
  std::string message;
  int status = 0;
};
failure describe(std::exception_ptr const& e);

/// Calls `work`, which does not talk to other ranks, and waits for those; throws agreed_failure on all of
/// them if it has thrown on one, as the first of these says. A single rank just calls it.
void agree(ranks& world, std::function<void()> const& work);

/// Things [first, first + count) of some.
struct range {
  std::ptrdiff_t first = 0;
  std::ptrdiff_t count = 0;
};

/// What of some windows each rank computes, and which of those windows are added up on their own.
class window_shares {
 public:
  /// Shares that windows are cut into so that no number of ranks changes a sum.
  static constexpr std::ptrdiff_t fixed = 16;

  /// @param deterministic  `fixed` shares, whatever the number of ranks; otherwise one a rank
  window_shares(std::ptrdiff_t windows, ranks const& world, bool deterministic);

  /// Windows of this rank.
  range mine() const;
  /// Each share of this rank, counted from its own first window; none of them is empty.
  std::vector<range> const& parts() const { return parts_; }
  std::ptrdiff_t windows() const { return windows_; }

 private:
  std::ptrdiff_t windows_;
  std::ptrdiff_t first_ = 0;
  std::vector<range> parts_;
};

}  // namespace lm
