// How fast checkpoints are read: opening a file, and GPTQ tensors on their way into the packed layout against
// copying their codes.
//
//   bench_checkpoint --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
//
// Counters: copy_gbps is the best rate of the run at which the same threads copy the same bytes with memcpy,
// gbps that of reading qweight and writing codes, scales and zero points, both in bytes of qweight a second;
// of_copy their ratio. All memory has been written before.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <unistd.h>
#include <vector>

#include <benchmark/benchmark.h>

#include <gptq/checkpoint/gptq.hpp>
#include <gptq/checkpoint/safetensors.hpp>

#include "roofline.hpp"
#include "spin_pool.hpp"

namespace {

using gptq::index_t;
using namespace gptq::checkpoint;

/// A file of 1 GiB in 256 tensors, its data a hole.
void open_file(benchmark::State& state) {
  constexpr std::size_t count = 256;
  constexpr std::size_t bytes = (std::size_t{1} << 30) / count;
  auto const path =
      std::filesystem::temp_directory_path() / ("bench_checkpoint_" + std::to_string(::getpid()));
  nlohmann::json header;
  for (std::size_t i = 0; i < count; ++i) {
    header["model.layers." + std::to_string(i) + ".mlp.up_proj.weight"] = {
        {"dtype", "F16"},
        {"shape", {bytes / 2 / 4096, 4096}},
        {"data_offsets", {i * bytes, (i + 1) * bytes}}};
  }
  std::string const text = header.dump();
  std::uint64_t const size = text.size();
  std::ofstream(path, std::ios::binary)
      << std::string(reinterpret_cast<char const*>(&size), sizeof size) << text;
  std::filesystem::resize_file(path, sizeof size + text.size() + count * bytes);
  for (auto _ : state) benchmark::DoNotOptimize(safetensors_file(path).tensors().size());
  std::filesystem::remove(path);
}

/// Tensors with random codes and the zero points of sym: true.
template <class Format>
gptq_tensors random_tensors(index_t out, index_t in, bool act_order) {
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  gptq_tensors t;
  std::uint32_t state = 1;
  auto const next = [&] { return state = state * 1664525 + 1013904223; };
  t.qweight.resize(at(in * Format::bits / 32 * out));
  std::generate(t.qweight.begin(), t.qweight.end(), next);
  index_t const groups = Format::groups(in);
  t.scales.assign(at(groups * out), gptq::float16(0.5F));
  // Version 2: one bit in each entry, its highest.
  t.qzeros.resize(at(groups * (out * Format::bits / 32)));
  for (index_t bit = Format::bits - 1; bit < groups * out * Format::bits; bit += Format::bits) {
    t.qzeros[at(bit / 32)] |= 1U << (bit % 32);
  }
  for (index_t c = 0; c < in; ++c) {
    t.g_idx.push_back(static_cast<std::int32_t>((act_order ? 1237 * c % in : c) / Format::group_columns(in)));
  }
  return t;
}

template <class Format>
void convert(benchmark::State& state, index_t out, index_t in, bool act_order) {
  auto const threads = static_cast<int>(state.range(0));
  if (spin_pool::cores() < threads) return state.SkipWithError("fewer cores than threads");
  constexpr int layers = 8;  // more than the caches hold
  std::vector<gptq_tensors> const tensors(layers, random_tensors<Format>(out, in, act_order));
  std::vector<gptq::packed_matrix<Format>> packed(layers, gptq::packed_matrix<Format>(out, in));
  index_t const bytes = in * Format::bits / 8 * out;
  index_t const blocks = packed[0].layout().row_blocks();
  spin_pool pool(threads);
  double best_copy = 0.0;
  double best = 0.0;
  for (auto _ : state) {
    double const copied = roofline::seconds_of([&] {
      for (std::size_t l = 0; l < layers; ++l) {
        pool.run([&](int part) {
          index_t const first = bytes * part / threads;
          std::memcpy(packed[l].codes() + first,
                      reinterpret_cast<std::uint8_t const*>(tensors[l].qweight.data()) + first,
                      static_cast<std::size_t>(bytes * (part + 1) / threads - first));
        });
      }
    });
    double const converted = roofline::seconds_of([&] {
      for (std::size_t l = 0; l < layers; ++l) {
        gptq_packer<Format> const packer(as_view(tensors[l], out, in), gptq_version::v2);
        packed[l].order() = packer.order();
        pool.run([&](int part) {
          packer.pack(blocks * part / threads, blocks * (part + 1) / threads, packed[l].codes(),
                      packed[l].scales(), packed[l].zeros());
        });
      }
    });
    state.SetIterationTime(converted);
    best_copy = std::max(best_copy, static_cast<double>(layers * bytes) / copied);
    best = std::max(best, static_cast<double>(layers * bytes) / converted);
  }
  state.counters["copy_gbps"] = best_copy * 1e-9;
  state.counters["gbps"] = best * 1e-9;
  state.counters["of_copy"] = best / best_copy;
}

template <class Format>
void add(char const* name) {
  for (bool const act_order : {false, true}) {
    benchmark::RegisterBenchmark(
        (std::string("convert/") + name + (act_order ? "/act_order" : "")).c_str(),
        [act_order](benchmark::State& state) { convert<Format>(state, 4096, 11008, act_order); })
        ->ArgName("threads")
        ->Arg(1)
        ->Arg(2)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RegisterBenchmark("open/1GiB", open_file)->Unit(benchmark::kMillisecond);
  add<gptq::format<gptq::fixed_zero, 4, 128>>("fixed_zero_4_128");
  add<gptq::format<gptq::asymmetric, 4, 128>>("asymmetric_4_128");
  add<gptq::format<gptq::asymmetric, 2, 128>>("asymmetric_2_128");
  add<gptq::format<gptq::asymmetric, 3, 128>>("asymmetric_3_128");
  add<gptq::format<gptq::asymmetric, 8, 128>>("asymmetric_8_128");
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
