// What a contestant of compare.py is: a process for one case,
//
//   <program> <out> <in> <tokens> <threads> hot|cold
//
// that gets its data ready, says "ready <name> <bytes of one weight matrix>", and then answers every line
// "run" with the median microseconds of a call, repeated for a while; at the end of its input it exits. A
// call is y = x W' with float x and y, preparation of x included. "cold" takes another matrix in every call,
// so many that no cache has what comes next. Between lines it leaves the cores alone.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

namespace contestant {

struct contest {
  long out = 0;
  long in = 0;
  long tokens = 0;
  int threads = 0;
  bool cold = false;

  /// How many matrices of that size it takes.
  std::size_t copies(std::size_t bytes) const { return cold ? (std::size_t{512} << 20) / bytes + 2 : 1; }
};

inline contest parse(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: " << argv[0] << " <out> <in> <tokens> <threads> hot|cold\n";
    std::exit(2);
  }
  return {std::atol(argv[1]), std::atol(argv[2]), std::atol(argv[3]), std::atoi(argv[4]),
          std::string(argv[5]) == "cold"};
}

/// Uniform in -1..1.
inline std::vector<float> random(long count, unsigned seed) {
  std::minstd_rand bits(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& v : values)
    v = static_cast<float>(bits()) / static_cast<float>(std::minstd_rand::max()) * 2 - 1;
  return values;
}

/// Whether y[tokens, out] is what 4-bit weights make of x[tokens, in], looked at in 64 rows of the last
/// token. Ends the program if not: a kernel that reads a layout it does not know is fast, too.
inline void check(contest const& c, float const* weights, float const* x, float const* y) {
  double error = 0.0;
  double size = 0.0;
  for (long i = 0; i < 64; ++i) {
    long const row = i * c.out / 64;
    double sum = 0.0;
    for (long k = 0; k < c.in; ++k) sum += double{weights[row * c.in + k]} * x[(c.tokens - 1) * c.in + k];
    error += std::pow(y[(c.tokens - 1) * c.out + row] - sum, 2);
    size += sum * sum;
  }
  if (!(error < 0.03 * size)) {
    std::cerr << "wrong result: relative error " << std::sqrt(error / size) << '\n';
    std::exit(1);
  }
}

/// Median microseconds of call(0), call(1), ..., for 0.15 s and at least three calls.
template <class Call>
double measure(Call&& call) {
  using clock = std::chrono::steady_clock;
  static std::size_t index = 0;  // cold matrices go on where the last turn stopped
  std::vector<double> times;
  auto const start = clock::now();
  for (auto before = start; times.size() < 3 || before - start < std::chrono::milliseconds(150);) {
    call(index++);
    auto const after = clock::now();
    times.push_back(std::chrono::duration<double, std::micro>(after - before).count());
    before = after;
  }
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

/// Answers until the input ends. turn() is what measure() returns.
template <class Turn>
int serve(std::string const& name, std::size_t bytes, Turn&& turn) {
  std::cout << "ready " << name << ' ' << bytes << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "run") std::cout << turn() << std::endl;
  }
  return 0;
}

}  // namespace contestant
