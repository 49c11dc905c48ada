// Several ranks: what they exchange and add up, who does what, and the model that they make together.
#include "ranks.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "models/thread_ranks.hpp"
#include "packed_model.hpp"
#include "plan.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "shared_layers.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using test::contains;
using test::run_ranks;
using test::scratch;

// Catch's checks are of one thread: ranks leave what they have here.
template <class T>
std::vector<T> of_each(int size, std::function<T(lm::ranks&)> const& work) {
  std::vector<T> results(static_cast<std::size_t>(size));
  run_ranks(size, [&](std::shared_ptr<lm::ranks> const& world) {
    results[static_cast<std::size_t>(world->rank())] = work(*world);
  });
  return results;
}

}  // namespace

TEST_CASE("what one rank has, others get") {
  for (int const size : {1, 2, 3, 5}) {
    for (int const from : {0, size / 2, size - 1}) {
      CAPTURE(size, from);
      std::string const sent = from == 1 ? "" : std::string(std::size_t{9} << 20, 'x') + "end";
      auto const texts = of_each<std::string>(size, [&](lm::ranks& world) {
        std::string text = world.rank() == from ? sent : "something else";
        broadcast(world, text, from);
        return text;
      });
      CHECK(std::count(texts.begin(), texts.end(), sent) == size);
    }
    auto const gathered = of_each<std::vector<std::string>>(size, [](lm::ranks& world) {
      return gather(world, std::string(static_cast<std::size_t>(world.rank()), 'r'));
    });
    for (auto const& all : gathered) {
      REQUIRE(all.size() == static_cast<std::size_t>(size));
      for (std::size_t r = 0; r < all.size(); ++r) CHECK(all[r].size() == r);
    }
    CHECK(of_each<double>(size, [](lm::ranks& world) { return sum(world, 1.0 + world.rank()); }).back() ==
          size * (size + 1) / 2);
  }
}

TEST_CASE("rows of all ranks are joined in their order") {
  auto const joined = of_each<std::vector<float>>(4, [](lm::ranks& world) {
    std::vector<float> const mine(static_cast<std::size_t>(world.rank() % 3),
                                  static_cast<float>(world.rank()));
    return join(world, mine, std::vector<int>{1, 3});
  });
  CHECK(joined[0].empty());
  CHECK(joined[1] == std::vector<float>{1, 2, 2});
  CHECK(joined[2].empty());
  CHECK(joined[3] == joined[1]);
}

TEST_CASE("parts are added in their order, whoever has them") {
  constexpr std::size_t shares = 6;
  for (std::size_t const count : {std::size_t{0}, std::size_t{1}, std::size_t{2500003}}) {
    std::vector<std::vector<float>> parts(shares);
    std::mt19937 random(3);
    for (auto& part : parts) {
      for (std::size_t i = 0; i < count; ++i) {
        part.push_back(std::ldexp(static_cast<float>(random() % 1000), static_cast<int>(random() % 20)));
      }
    }
    std::vector<float> expected = parts[0];
    for (std::size_t p = 1; p < shares; ++p) {
      for (std::size_t i = 0; i < count; ++i) expected[i] += parts[p][i];
    }
    for (int const size : {1, 2, 3, 8}) {
      for (std::vector<int> const& to : {std::vector{0}, {size - 1}, {size / 2}, {0, size - 1}}) {
        CAPTURE(count, size, to.front(), to.back());
        auto const totals = of_each<std::vector<float>>(size, [&](lm::ranks& world) {
          std::vector<std::span<float const>> mine;  // the first ranks have more of them, some none
          auto const rank = static_cast<std::size_t>(world.rank());
          auto const of = static_cast<std::size_t>(size);
          for (std::size_t p = 0; p < shares; ++p) {
            if (p * of / shares == rank) mine.emplace_back(parts[p]);
          }
          std::vector<float> total(count, -1.0F);
          add_in_order(world, mine, total, to);
          return total;
        });
        for (int const r : to) CHECK(totals[static_cast<std::size_t>(r)] == expected);
      }
    }
  }
}

TEST_CASE("ranks fail together") {
  for (int const failing : {0, 1, 2}) {
    auto const failures = of_each<std::string>(3, [&](lm::ranks& world) -> std::string {
      try {
        agree(world, [&] {
          if (world.rank() == failing) throw gptq::error("no such file");
        });
      } catch (lm::agreed_failure const& f) {
        return fmt::format("{} {}", f.status, f.what());
      }
      return "nothing";
    });
    for (auto const& f : failures) CHECK(f == fmt::format("2 rank {}: no such file", failing));
  }
  auto const all = of_each<std::string>(2, [&](lm::ranks& world) -> std::string {
    try {
      agree(world, [] { throw std::runtime_error("everywhere"); });
    } catch (lm::agreed_failure const& f) {
      return f.what();
    }
    return "nothing";
  });
  CHECK(all == std::vector<std::string>{"everywhere", "everywhere"});
  lm::agree(*lm::alone(), [] {});
  CHECK_THROWS_AS(lm::agree(*lm::alone(), [] { throw gptq::error("as it is"); }), gptq::error);
}

TEST_CASE("every window is some rank's") {
  for (std::ptrdiff_t const windows : {0, 1, 5, 16, 17, 128}) {
    for (bool const deterministic : {false, true}) {
      std::vector<std::ptrdiff_t> boundaries;  // of shares, however many ranks there are
      for (int const size : {1, 2, 3, 16, 20}) {
        CAPTURE(windows, deterministic, size);
        std::ptrdiff_t next = 0;
        std::vector<std::ptrdiff_t> begins;
        for (int rank = 0; rank < size; ++rank) {
          test::post_office office;
          test::thread_rank const world(office, rank, size);
          lm::window_shares const shares(windows, world, deterministic);
          if (shares.mine().count > 0) CHECK(shares.mine().first == next);
          if (rank == 0) CHECK(shares.parts().empty() == (windows == 0));
          for (lm::range const part : shares.parts()) {
            CHECK(shares.mine().first + part.first == next);
            CHECK(part.count > 0);
            begins.push_back(next);
            next += part.count;
          }
          CHECK(shares.mine().first + shares.mine().count == std::max(next, shares.mine().first));
        }
        CHECK(next == windows);
        if (!deterministic) {
          CHECK(begins.size() == static_cast<std::size_t>(std::min<std::ptrdiff_t>(windows, size)));
        } else if (boundaries.empty()) {
          boundaries = begins;
        } else {
          CHECK(begins == boundaries);
        }
      }
    }
  }
}

TEST_CASE("layers are shared out by what they cost") {
  // Llama 3 8B: k, v, q; o; up, gate; down.
  std::vector<lm::solving_task> const tasks{{1024, 4096, 0}, {1024, 4096, 0},  {4096, 4096, 0},
                                            {4096, 4096, 1}, {14336, 4096, 2}, {14336, 4096, 2},
                                            {4096, 14336, 3}};
  auto const one = lm::make_plan(tasks, 1);
  CHECK(one.owner == std::vector<int>(7, 0));
  auto const k = [](double n) { return n * n; };
  CHECK(one.cost.front() == k(4096) * (3 * 4096 + 3.0 * (1024 + 1024 + 4096 + 4096 + 2 * 14336)) +
                                k(14336) * (14336 + 3.0 * 4096));
  auto const two = lm::make_plan(tasks, 2);
  CHECK(two.owner == std::vector<int>{0, 0, 0, 0, 0, 0, 1});  // down costs most, and its sum arrives there
  CHECK(two.cost[0] + two.cost[1] == one.cost[0]);
  auto const many = lm::make_plan(tasks, 9);
  CHECK(std::set<int>(many.owner.begin(), many.owner.end()).size() == 7);
  auto const alike = lm::make_plan(std::vector<lm::solving_task>(8, {48, 32, 0}), 3).owner;
  for (std::size_t i = 0; i < alike.size(); ++i) CHECK(alike[i] == 2 - static_cast<int>(i % 3));
  CHECK(lm::make_plan({}, 3).owner.empty());
}

namespace {

/// All bytes that ranks have made of a model, by linear layer, and the reports of the first.
struct outcome {
  std::map<std::string, std::string> packed;
  std::vector<lm::linear_report> reports;
  std::ptrdiff_t passed = 0;  ///< windows, on all ranks
};

class small_run {
 public:
  explicit small_run(fs::path directory, std::size_t windows = 7)
      : directory_(std::move(directory)), source_(directory_) {
    tokens_ = test::random_tokens(windows * 24, static_cast<lm::token>(source_.config().vocab_size));
    windows_ = lm::cut_windows(tokens_, 24, 0);
    how.quantize.format = {"asymmetric", 4, 32, gptq::scale_type::float16};
    how.quantize.options.quality = gptq::quality::plain;
    how.threads = how.quantize.options.threads = 1;
  }

  /// @param stop  when so many linear layers are done, fails on rank 0
  outcome operator()(int size, fs::path const& saved = {}, std::size_t stop = 1000) const {
    outcome result;
    std::mutex mutex;
    run_ranks(size, [&](std::shared_ptr<lm::ranks> const& world) {
      lm::model m(directory_);
      lm::quantization mine = how;
      mine.world = world;
      lm::quantization_events events;
      std::vector<lm::linear_report> reports;
      events.done = [&](lm::linear_report const& r) { reports.push_back(r); };
      events.advance = [&] {
        std::scoped_lock const lock(mutex);
        ++result.passed;
        if (world->rank() == 0 && reports.size() >= stop) throw gptq::error("stopped");
      };
      std::optional<lm::unfinished_run> unfinished;
      if (world->rank() == 0 && !saved.empty())
        unfinished.emplace(saved, nlohmann::ordered_json::object(), true);
      lm::quantize_model(m, windows_, mine, events, unfinished ? &*unfinished : nullptr);
      broadcast_packed(*world, m);
      auto packed = bytes_of(m);
      std::scoped_lock const lock(mutex);
      if (!result.packed.empty() && result.packed != packed) throw std::logic_error("ranks differ");
      result.packed = std::move(packed);
      if (world->rank() == 0) result.reports = std::move(reports);
    });
    // Experts are quantized as many at a time as there are ranks.
    std::sort(result.reports.begin(), result.reports.end(),
              [](auto const& a, auto const& b) { return a.name < b.name; });
    return result;
  }

  lm::quantization how;

 private:
  static std::map<std::string, std::string> bytes_of(lm::model const& m) {
    std::map<std::string, std::string> all;
    for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
      auto const& linears = m.config().layer(i).linears;
      for (std::size_t place = 0; place < linears.size(); ++place) {
        auto const parts = m.packed(i, place)->parts();
        std::string& bytes = all[linears[place].name];
        for (auto const piece : {parts.codes, parts.scales, parts.zeros, std::as_bytes(parts.order)}) {
          bytes.append(reinterpret_cast<char const*>(piece.data()), piece.size());
        }
      }
    }
    return all;
  }

  fs::path directory_;
  lm::model source_;
  std::vector<lm::token> tokens_;
  std::vector<lm::token_window> windows_;
};

/// The loss of the first linear layer, whose inputs do not depend on how others were quantized.
double first_loss(outcome const& o) {
  auto const first = std::find_if(o.reports.begin(), o.reports.end(), [](auto const& r) {
    return contains(r.name, "layers.0.self_attn.k_proj");
  });
  return first->quality.loss;
}

double loss_of(outcome const& o) {
  return std::accumulate(o.reports.begin(), o.reports.end(), 0.0,
                         [](double all, auto const& r) { return all + r.quality.loss; });
}

}  // namespace

TEST_CASE("ranks quantize a model together") {
  // Every linear layer of a dense one, and experts, most of which see too few tokens.
  std::string const name = GENERATE("llama", "qwen3_moe");
  bool const sequential = GENERATE(false, true);
  CAPTURE(name, sequential);
  small_run run(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data" / name);
  run.how.true_sequential = sequential;
  SECTION("as one does, up to the order of sums") {
    auto const one = run(1);
    run.how.quantize.options.act_order = true;
    run.how.held_out_windows = 2;
    auto const one_with_order = run(1);
    auto const three_with_order = run(3);
    CHECK(loss_of(three_with_order) == Approx(loss_of(one_with_order)).epsilon(0.05));
    CHECK(three_with_order.reports.back().quality.held_out_error ==
          Approx(one_with_order.reports.back().quality.held_out_error).epsilon(0.2));
    run.how.quantize.options.act_order = false;
    run.how.held_out_windows = 0;
    for (int const size : {2, 3, 9}) {  // the last with more ranks than windows
      auto const several = run(size);
      REQUIRE(several.reports.size() == one.reports.size());
      CHECK(several.passed == one.passed);
      CHECK(first_loss(several) == Approx(first_loss(one)).epsilon(1e-4));
      CHECK(loss_of(several) == Approx(loss_of(one)).epsilon(0.05));  // a tie may change what follows
      for (std::size_t i = 0; i < one.reports.size(); ++i) {
        CHECK(several.reports[i].expert_tokens ==
              Approx(one.reports[i].expert_tokens).epsilon(0.1).margin(3.0));
        CHECK(several.reports[i].packed_bytes == one.reports[i].packed_bytes);
      }
      CHECK(run(size).packed == several.packed);  // whoever is first
    }
  }
  SECTION("with the same bytes, however many they are") {
    run.how.deterministic_reduction = true;
    run.how.held_out_windows = 2;
    if (GENERATE(false, true)) run.how.propagate = 0.7;
    auto const one = run(1);
    for (int const size : {2, 3, 7}) CHECK(run(size).packed == one.packed);
  }
}

TEST_CASE("ranks go on where others stopped") {
  small_run run(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data/llama");
  run.how.deterministic_reduction = true;
  auto const whole = run(1);
  REQUIRE(whole.reports.size() >= 14);
  scratch const dir;
  CHECK_THROWS_WITH(run(2, dir.path, 10), "rank 0: stopped");
  CHECK(lm::unfinished_run(dir.path, nlohmann::ordered_json::object(), true).finished() == 1);
  auto const resumed = run(3, dir.path);
  CHECK(resumed.packed == whole.packed);
  CHECK(resumed.reports.size() == whole.reports.size());
}

TEST_CASE("what the worst layers need stays on the first rank") {
  small_run run(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data/llama");
  run.how.deterministic_reduction = true;
  run.how.observe.emplace();
  run.how.observe->top_k = 3;
  auto const one = run(1);
  CHECK(run(3).packed == one.packed);
  run.how.observe.reset();
  CHECK(run(3).packed != one.packed);
}
