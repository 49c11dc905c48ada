#include "ranks.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sched.h>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "interrupt.hpp"

namespace lm {
namespace {

/// Bytes that are passed on while the next ones arrive.
constexpr std::size_t piece_bytes = std::size_t{4} << 20;

class single_rank final : public ranks {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void send(void const*, std::size_t, int) override {}
  void finish_sends() override {}
  void receive(void*, std::size_t, int) override {}
  void abort(int status) override { std::exit(status); }
};

template <class T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

}  // namespace

std::shared_ptr<ranks> alone() { return std::make_shared<single_rank>(); }

host_share find_host_share(ranks& world) {
  if (world.size() == 1) return {};
  std::string host;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), host);
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  (void)sched_getaffinity(0, sizeof allowed, &allowed);
  std::string cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) cores += CPU_ISSET(i, &allowed) ? '1' : '0';
  auto const hosts = gather(world, host), allowed_cores = gather(world, host + cores);
  host_share share;
  share.local_size = static_cast<int>(std::count(hosts.begin(), hosts.end(), host));
  share.local_rank = static_cast<int>(std::count(hosts.begin(), hosts.begin() + world.rank(), host));
  auto const sharing = static_cast<int>(std::count(allowed_cores.begin(), allowed_cores.end(), host + cores));
  share.threads = std::max(1, CPU_COUNT(&allowed) / sharing);
  return share;
}

void broadcast(ranks& world, std::span<std::byte> bytes, int from) {
  int const size = world.size();
  if (size == 1) return;
  int const next = (world.rank() + 1) % size;
  for (std::size_t done = 0; done < bytes.size(); done += piece_bytes) {
    auto const piece = bytes.subspan(done, std::min(piece_bytes, bytes.size() - done));
    if (world.rank() != from) world.receive(piece.data(), piece.size(), (world.rank() + size - 1) % size);
    if (next != from) world.send(piece.data(), piece.size(), next);
  }
  world.finish_sends();
}

void broadcast(ranks& world, std::string& text, int from) {
  std::uint64_t length = text.size();
  broadcast(world, bytes_of(length), from);
  text.resize(length);
  broadcast(world, std::as_writable_bytes(std::span(text)), from);
}

std::vector<std::string> gather(ranks& world, std::string const& mine) {
  std::vector<std::string> all(static_cast<std::size_t>(world.size()));
  all[static_cast<std::size_t>(world.rank())] = mine;
  for (int r = 0; r < world.size(); ++r) broadcast(world, all[static_cast<std::size_t>(r)], r);
  return all;
}

std::vector<float> join(ranks& world, std::span<float const> mine, std::span<int const> to) {
  bool const wanted = std::find(to.begin(), to.end(), world.rank()) != to.end();
  std::uint64_t const count = mine.size();
  for (int const r : to) {
    if (r == world.rank()) continue;
    world.send(&count, sizeof count, r);
    world.send(mine.data(), mine.size_bytes(), r);
  }
  std::vector<float> joined;
  for (int r = 0; wanted && r < world.size(); ++r) {
    if (r == world.rank()) {
      joined.insert(joined.end(), mine.begin(), mine.end());
      continue;
    }
    std::uint64_t more = 0;
    world.receive(&more, sizeof more, r);
    joined.resize(joined.size() + more);
    world.receive(joined.data() + (joined.size() - more), more * sizeof(float), r);
  }
  world.finish_sends();
  return joined;
}

double sum(ranks& world, double mine) {
  if (world.size() == 1) return mine;
  double total = 0.0;
  for (int r = 0; r < world.size(); ++r) {
    double other = mine;
    broadcast(world, bytes_of(other), r);
    total += other;
  }
  return total;
}

void add_in_order(ranks& world, std::span<std::span<float const> const> parts, std::span<float> total,
                  std::span<int const> to) {
  int const rank = world.rank(), last = world.size() - 1;
  bool const wanted = std::find(to.begin(), to.end(), rank) != to.end();
  std::size_t constexpr most = piece_bytes / sizeof(float);
  for (std::size_t done = 0; done < total.size(); done += most) {
    auto const piece = total.subspan(done, std::min(most, total.size() - done));
    std::size_t first = 0;
    std::vector<float> before;
    if (rank > 0) {
      before.resize(piece.size());
      world.receive(before.data(), before.size() * sizeof(float), rank - 1);
    } else {
      auto const begin = parts.front().begin() + static_cast<std::ptrdiff_t>(done);
      before.assign(begin, begin + static_cast<std::ptrdiff_t>(piece.size()));
      first = 1;
    }
    for (std::size_t p = first; p < parts.size(); ++p) {
      float const* const x = parts[p].data() + done;
      for (std::size_t i = 0; i < before.size(); ++i) before[i] += x[i];
    }
    std::copy(before.begin(), before.end(), piece.begin());
    if (rank < last) {
      world.send(piece.data(), piece.size_bytes(), rank + 1);
      continue;
    }
    for (int const r : to) {
      if (r != rank) world.send(piece.data(), piece.size_bytes(), r);
    }
  }
  world.finish_sends();  // before what is passed on is overwritten by the whole sum
  if (!wanted || rank == last) return;
  for (std::size_t done = 0; done < total.size(); done += most) {
    auto const piece = total.subspan(done, std::min(most, total.size() - done));
    world.receive(piece.data(), piece.size_bytes(), last);
  }
}

failure describe(std::exception_ptr const& e) {
  try {
    std::rethrow_exception(e);
  } catch (agreed_failure const& f) {
    return {f.what(), f.status};
  } catch (interrupted const& i) {
    return {i.what(), interrupt_status()};
  } catch (gptq::error const& g) {
    return {g.what(), 2};
  } catch (std::exception const& other) {
    return {other.what(), 1};
  }
}

void agree(ranks& world, std::function<void()> const& work) {
  if (world.size() == 1) return work();
  failure mine;
  try {
    work();
  } catch (std::exception const&) {
    mine = describe(std::current_exception());
  }
  auto const all = gather(world, mine.status == 0 ? "" : fmt::format("{} {}", mine.status, mine.message));
  auto const succeeded = std::count(all.begin(), all.end(), std::string());
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r].empty()) continue;
    auto const space = all[r].find(' ');
    throw agreed_failure((succeeded > 0 ? fmt::format("rank {}: ", r) : "") + all[r].substr(space + 1),
                         std::stoi(all[r].substr(0, space)));
  }
}

window_shares::window_shares(std::ptrdiff_t windows, ranks const& world, bool deterministic)
    : windows_(windows) {
  std::ptrdiff_t const shares = deterministic ? fixed : world.size();
  std::ptrdiff_t const rank = world.rank(), size = world.size();
  // Rounded up, so that the first rank has some if there are any.
  auto const up_to = [](std::ptrdiff_t i, std::ptrdiff_t count, std::ptrdiff_t of) {
    return (i * count + of - 1) / of;
  };
  std::ptrdiff_t const begin = up_to(rank, shares, size), end = up_to(rank + 1, shares, size);
  first_ = up_to(begin, windows, shares);
  for (std::ptrdiff_t i = begin; i < end; ++i) {
    std::ptrdiff_t const first = up_to(i, windows, shares), next = up_to(i + 1, windows, shares);
    if (next > first) parts_.push_back({first - first_, next - first});
  }
}

range window_shares::mine() const {
  return {first_, parts_.empty() ? 0 : parts_.back().first + parts_.back().count};
}

}  // namespace lm
