#include "plan.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

namespace lm {

solving_plan make_plan(std::span<solving_task const> tasks, int ranks) {
  auto const factor = [](solving_task const& t) {
    auto const k = static_cast<double>(t.in);
    return k * k * k;
  };
  auto const rows = [](solving_task const& t) {
    auto const k = static_cast<double>(t.in);
    return 3.0 * static_cast<double>(t.out) * k * k;
  };
  solving_plan plan{std::vector<int>(tasks.size()), std::vector<double>(static_cast<std::size_t>(ranks))};
  std::vector<std::size_t> order(tasks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return factor(tasks[a]) + rows(tasks[a]) > factor(tasks[b]) + rows(tasks[b]);
  });
  std::set<std::pair<int, int>> factors;  // rank and input of those that are made anyway
  for (std::size_t const t : order) {
    auto const with = [&](int rank) {
      bool const made = factors.contains({rank, tasks[t].input});
      return plan.cost[static_cast<std::size_t>(rank)] + rows(tasks[t]) + (made ? 0.0 : factor(tasks[t]));
    };
    int best = ranks - 1;
    for (int r = ranks - 2; r >= 0; --r) {
      if (with(r) < with(best)) best = r;
    }
    plan.cost[static_cast<std::size_t>(best)] = with(best);
    plan.owner[t] = best;
    factors.insert({best, tasks[t].input});
  }
  return plan;
}

}  // namespace lm
