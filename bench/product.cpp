#include "product.hpp"

#include <algorithm>
#include <cmath>
#include <random>

#include <gptq/parallel.hpp>
#include <gptq/reference.hpp>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bench {
namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t cold_bytes = std::size_t{512} << 20;  // what cold matrices exceed

/// The first `bytes` of the memory for all matrices, filled with random bytes.
std::uint8_t* memory(std::size_t bytes) {
  constexpr std::size_t capacity = cold_bytes + (std::size_t{256} << 20);
  static auto* const start = [] {
    auto* const p = static_cast<std::uint8_t*>(::operator new (capacity, std::align_val_t{huge_page}));
#if defined(__linux__)
    madvise(p, capacity, MADV_HUGEPAGE);
#endif
    return p;
  }();
  static std::size_t filled = 0;
  static std::mt19937_64 random;
  if (bytes > capacity) throw gptq::error("bench: matrices exceed the memory set aside for them");
  for (; filled < bytes; filled += sizeof(std::uint64_t)) {
    std::uint64_t const value = random();
    std::memcpy(start + filled, &value, sizeof value);
  }
  return start;
}

std::vector<float> random_values(index_t count) {
  std::minstd_rand bits;
  std::vector<float> values(static_cast<std::size_t>(count));
  std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
  for (float& v : values) v = uniform(bits);
  return values;
}

/// f.template operator()<Format>() with the format of the subject.
template <class F>
decltype(auto) with_format_of(subject const& s, F&& f) {
  return gptq::with_format<cases::formats>(
      {.scheme = std::string(s.run.scheme), .bits = s.run.bits, .group_size = s.run.group_size}, f);
}

constexpr index_t aligned(index_t bytes) { return (bytes + 63) / 64 * 64; }

/// A precision's name, and how far from the truth the norm of a result may be with it.
std::string_view name_of(precision p) {
  constexpr std::string_view names[] = {"int8", "int15", "int23", "float32"};
  return names[static_cast<int>(p)];
}
double tolerance_of(precision p) { return p == precision::int8 ? 1e-2 : p == precision::int15 ? 5e-5 : 3e-6; }

struct architecture {
  std::string_view name;
  kernel_table table;
};

/// Compiled in and supported by this CPU, best first.
template <class... Isas>
std::vector<architecture> architectures(gptq::isa::list<Isas...>) {
  std::vector<architecture> all;
  auto const note = [&]<class Isa>() {
    auto const table = kernels_for<Isa>();
    if (!table.kernels.empty() && Isa::supported()) all.push_back({Isa::name, table});
  };
  (note.template operator()<Isas>(), ...);
  return all;
}

}  // namespace

std::string subject::situation() const {
  return std::string(name_of(run.x)) + '/' + std::string(isa) + (cold ? "/cold" : "/hot") +
         "/out:" + std::to_string(out) + "/in:" + std::to_string(in) +
         (tokens == 1 ? "" : "/tokens:" + std::to_string(tokens)) + "/threads:" + std::to_string(threads);
}

std::string subject::name() const {
  std::string const group = run.group_size == gptq::whole_row ? "whole_row" : std::to_string(run.group_size);
  return std::string(run.scheme) + '/' + std::to_string(run.bits) + '/' + group + '/' + situation();
}

std::vector<subject> all_subjects(std::vector<index_t> const& tokens, std::vector<shape> const& shapes) {
  std::vector<int> threads{1};
  if (spin_pool::cores() > 1) threads.push_back(spin_pool::cores());
  std::vector<subject> all;
  for (auto const& [isa, table] : architectures(gptq::isa::all{})) {
    for (kernel const& k : table.kernels) {
      for (bool const cold : {false, true}) {
        for (auto const& [out, in] : shapes) {
          for (index_t const t : tokens) {
            for (int const n : threads) all.push_back({isa, k, out, in, t, n, cold});
          }
        }
      }
    }
  }
  return all;
}

packed_matrices::packed_matrices(subject const& s) : out_(s.out), in_(s.in) {
  with_format_of(s, [&]<class Format>() {
    gptq::packed_layout<Format> const layout{out_, in_};
    code_bytes_ = layout.code_bytes();
    scale_bytes_ = layout.scale_count() * index_t{sizeof(typename Format::scale)};
    zero_bytes_ = layout.zero_bytes();
  });
  auto const size =
      static_cast<std::size_t>(aligned(code_bytes_) + aligned(scale_bytes_) + aligned(zero_bytes_));
  count_ = s.cold ? cold_bytes / size + 1 : 1;
  start_ = memory(count_ * size);

  // Any bytes are codes and zeros, but not scales.
  std::vector<gptq::float16> scales;
  for (float const value : random_values(1021)) scales.emplace_back(0.01F + 0.005F * value);
  for (std::size_t i = 0; i < count_; ++i) {
    auto* const target = const_cast<void*>((*this)[i].scales);
    for (index_t done = 0; done < scale_bytes_;) {
      index_t const part = std::min(scale_bytes_ - done, index_t{1021 * sizeof(gptq::float16)});
      std::memcpy(static_cast<char*>(target) + done, scales.data(), static_cast<std::size_t>(part));
      done += part;
    }
  }
}

matrix packed_matrices::operator[](std::size_t index) const {
  index_t const size = aligned(code_bytes_) + aligned(scale_bytes_) + aligned(zero_bytes_);
  std::uint8_t const* const codes = start_ + static_cast<index_t>(index) * size;
  std::uint8_t const* const scales = codes + aligned(code_bytes_);
  return {codes, scales, zero_bytes_ == 0 ? nullptr : scales + aligned(scale_bytes_), out_, in_};
}

void packed_matrices::read(roofline::reader reader, std::size_t index, index_t first_row,
                           index_t last_row) const {
  matrix const w = (*this)[index];
  auto const share = [&](void const* part, index_t bytes) {
    auto const* const p = static_cast<std::uint8_t const*>(part);
    if (bytes != 0) reader(p + bytes * first_row / out_, p + bytes * last_row / out_);
  };
  share(w.codes, code_bytes_);
  share(w.scales, scale_bytes_);
  share(w.zeros, zero_bytes_);
}

product::product(subject const& s, spin_pool& pool)
    : s_(s),
      pool_(pool),
      matrices_(s),
      x_(random_values(s.tokens * s.in)),
      y_(static_cast<std::size_t>(s.tokens * s.out)) {
  if (s.tokens == 1) return;
  with_format_of(s, [&]<class Format>() {
    gptq::packed_layout<Format> const layout{s.out, s.in};
    workspace_.resize(
        s.run.x == precision::int8    ? gptq::workspace_bytes<precision::int8>(layout, s.tokens)
        : s.run.x == precision::int15 ? gptq::workspace_bytes<precision::int15>(layout, s.tokens)
        : s.run.x == precision::int23 ? gptq::workspace_bytes<precision::int23>(layout, s.tokens)
                                      : gptq::workspace_bytes<precision::float32>(layout, s.tokens));
  });
}

void product::multiply() {
  matrix const w = matrices_[next()];
  int const threads = pool_.threads();
  if (s_.tokens == 1) {
    pool_.run([&](int thread) {
      auto const rows = gptq::row_share(w.out, thread, threads);
      s_.run.gemv(w, x_.data(), y_.data(), rows.first, rows.last);
    });
    return;
  }
  pool_.run([&](int thread) {
    auto const tokens = gptq::token_share(s_.tokens, thread, threads);
    s_.run.prepare(w, x_.data(), s_.tokens, workspace_.data(), tokens.first, tokens.last);
  });
  pool_.run([&](int thread) {
    auto const rows = gptq::row_share(w.out, thread, threads);
    s_.run.gemm(w, s_.tokens, workspace_.data(), y_.data(), rows.first, rows.last);
  });
}

void product::read(roofline::reader reader) {
  std::size_t const index = next();
  pool_.run([&](int thread) {
    auto const rows = gptq::row_share(s_.out, thread, pool_.threads());
    matrices_.read(reader, index, rows.first, rows.last);
  });
}

std::string product::check() {
  std::fill(y_.begin(), y_.end(), 0.0F);
  multiply();
  matrix const w = matrices_[index_];
  double error = 0.0;
  double size = 0.0;
  with_format_of(s_, [&]<class Format>() {
    gptq::packed_layout<Format> const layout{w.out, w.in};
    for (int thread = 0; thread < pool_.threads(); ++thread) {
      auto const rows = gptq::row_share(w.out, thread, pool_.threads());
      if (rows.first == rows.last) continue;
      for (index_t const block : {rows.first / gptq::packed_rows, rows.last / gptq::packed_rows - 1}) {
        // A row block is a matrix, too.
        gptq::packed_view<Format> const part{
            w.codes + layout.code_offset(block, 0),
            static_cast<typename Format::scale const*>(w.scales) + layout.scale_offset(block, 0),
            w.zeros == nullptr ? nullptr : w.zeros + layout.zero_offset(block, 0),
            nullptr,
            gptq::packed_rows,
            w.in};
        for (index_t const token : {index_t{0}, s_.tokens - 1}) {
          double exact[gptq::packed_rows];
          gptq::reference::gemv(part, x_.data() + token * w.in, exact);
          float const* const y = y_.data() + token * w.out + block * gptq::packed_rows;
          for (index_t r = 0; r < gptq::packed_rows; ++r) {
            error += std::pow(y[r] - exact[r], 2);
            size += std::pow(exact[r], 2);
          }
        }
      }
    }
  });
  double const relative = std::sqrt(error / size);
  if (relative <= tolerance_of(s_.run.x)) return {};
  return "wrong result: relative error " + std::to_string(relative);
}

std::vector<double> medians(std::vector<std::function<void()>> const& calls) {
  std::vector<std::vector<double>> times(calls.size());
  double spent = 0.0;
  for (int turn = 0; turn < 3 || spent < 0.5; ++turn) {
    spent += roofline::seconds_of([&] {
      for (std::size_t i = 0; i < calls.size(); ++i) {
        calls[i]();
        times[i].push_back(roofline::seconds_of(calls[i]));
      }
    });
  }
  std::vector<double> result;
  for (auto& t : times) {
    auto const middle = t.begin() + static_cast<std::ptrdiff_t>(t.size() / 2);
    std::nth_element(t.begin(), middle, t.end());
    result.push_back(*middle);
  }
  return result;
}

void time(benchmark::State& state, subject const& s) {
  spin_pool pool(s.threads);
  product p(s, pool);
  if (auto const error = p.check(); !error.empty()) return state.SkipWithError(error.c_str());
  // Reading as the best architecture can, whichever multiplies.
  auto const best = architectures(gptq::isa::all{}).front();
  std::vector<std::function<void()>> calls;
  for (roofline::reader const reader : best.table.readers) {
    calls.emplace_back([&p, reader] { p.read(reader); });
  }
  calls.emplace_back([&p] { p.multiply(); });
  for (auto _ : state) {
    auto const seconds = medians(calls);
    double const reading = *std::min_element(seconds.begin(), seconds.end() - 1);
    double const multiplying = seconds.back();
    auto& counters = state.counters;
    counters["weights_per_second"] = s.weights() / multiplying;
    counters["bytes_per_second"] = static_cast<double>(p.bytes()) / multiplying;
    counters["read_share"] = reading / multiplying;
    if (s.tokens > 1) counters["gflops"] = 2e-9 * s.weights() * static_cast<double>(s.tokens) / multiplying;
    state.SetIterationTime(multiplying);
  }
}

void add(std::string const& name, std::function<void(benchmark::State&)> run) {
  // An iteration is half a second of turns.
  benchmark::RegisterBenchmark(name.c_str(), std::move(run))
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace bench
