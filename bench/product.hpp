// Matrix products to be timed: kernels, threads and memory for them.
//
//   spin_pool pool(threads);
//   product y_is_w_x(subject, pool);
//   y_is_w_x.check();                       // what is wrong with the result, or nothing
//   auto const times = medians({[&] { y_is_w_x.read(reader); }, [&] { y_is_w_x.multiply(); }});
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <gptq/layout/aligned.hpp>

#include "kernels.hpp"
#include "shapes.hpp"
#include "spin_pool.hpp"

namespace bench {

/// What is timed: one kernel in one situation.
struct subject {
  std::string_view isa;
  kernel run;
  index_t out = 0;
  index_t in = 0;
  index_t tokens = 1;
  int threads = 1;
  bool cold = false;

  /// "int8/avx2/hot/out:4096/in:4096/threads:2", with tokens when there are several.
  std::string situation() const;
  /// "fixed_zero/4/128/" and the situation.
  std::string name() const;
  double weights() const { return static_cast<double>(out) * static_cast<double>(in); }
};

/// All kernels in this program that this CPU can run, for every one of these shapes, on one thread and on all
/// cores, hot and cold.
std::vector<subject> all_subjects(std::vector<index_t> const& tokens, std::vector<shape> const& shapes);

/// The shapes where no model is named.
inline std::vector<shape> const usual_shapes = {{4096, 4096}, {11008, 4096}, {4096, 11008}};

/// Random packed matrices of a shape: one, or with `cold` so many that no cache holds what comes next.
/// They lie in memory that is allocated once in the life of the program, in huge pages as an inference engine
/// has it, and always begin where it begins: matrices of other widths share it, so that one that is hot
/// leaves the other hot, too. All but the scales is random bytes, so that those of one may be codes of the
/// other.
class packed_matrices {
 public:
  explicit packed_matrices(subject const& s);
  matrix operator[](std::size_t index) const;
  std::size_t count() const { return count_; }
  /// Bytes of codes, scales and zeros of one.
  index_t bytes() const { return code_bytes_ + scale_bytes_ + zero_bytes_; }
  /// Reads the share of rows first_row..last_row-1 of one.
  void read(roofline::reader reader, std::size_t index, index_t first_row, index_t last_row) const;

 private:
  std::uint8_t* start_;
  std::size_t count_;
  index_t out_, in_;
  index_t code_bytes_, scale_bytes_, zero_bytes_;
};

/// One token is multiplied as it is, by every thread for its rows; several are prepared first, every thread
/// some of them.
class product {
 public:
  product(subject const& s, spin_pool& pool);

  /// By the next matrix; the only one, if hot.
  void multiply();
  /// Reads what multiply() reads, thread by thread.
  void read(roofline::reader reader);
  /// Multiplies and compares some rows of every thread's share with gptq::reference. Empty, or an error.
  std::string check();

  index_t bytes() const { return matrices_.bytes(); }

 private:
  std::size_t next() { return index_ = (index_ + 1) % matrices_.count(); }

  subject s_;
  spin_pool& pool_;
  packed_matrices matrices_;
  std::size_t index_ = 0;
  std::vector<float> x_;
  std::vector<float> y_;
  gptq::detail::aligned_vector<char> workspace_;
};

/// Median seconds of each of the calls, which take turns for half a second and at least three times. Each is
/// made twice in a turn and timed the second time, when what came before it was itself.
std::vector<double> medians(std::vector<std::function<void()>> const& calls);

/// The benchmark of a subject, in turns with reading its matrices: what README.md says of counters. To those
/// `gflops` is added for several tokens.
void time(benchmark::State& state, subject const& s);

/// Has the benchmark `name` run by RunSpecifiedBenchmarks().
void add(std::string const& name, std::function<void(benchmark::State&)> run);

/// What is left of main() when all is added.
int run(int argc, char** argv);

}  // namespace bench
