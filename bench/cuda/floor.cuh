// The time that merely reading some bytes takes on this device, and graphs to measure with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include <gptq/cuda/device.cuh>

namespace bench {

using gptq::cuda::check;

/// Any bits.
__device__ inline std::uint64_t hash(std::uint64_t i) {
  std::uint64_t z = i + 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
static __global__ void fill(std::uint64_t* words, std::size_t count, std::uint64_t mask, std::uint64_t base) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    words[i] = (hash(i) & mask) | base;
  }
}

/// Reads `count` times 16 bytes, Unroll at a time, before the kernel ahead of it has ended.
template <int Unroll>
static __global__ void read(uint4 const* words, std::size_t count, unsigned* sink) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  std::size_t const stride = std::size_t{gridDim.x} * blockDim.x;
  unsigned seen = 0;
  bool first = true;
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count || first;
       i += stride * Unroll) {
    uint4 v[Unroll];
#pragma unroll
    for (int u = 0; u < Unroll; ++u) {
      v[u] = make_uint4(0, 0, 0, 0);
      if (i + u * stride < count) {
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v[u].x), "=r"(v[u].y), "=r"(v[u].z), "=r"(v[u].w)
                     : "l"(words + i + u * stride));
      }
    }
#if __CUDA_ARCH__ >= 900
    if (first) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    first = false;
#pragma unroll
    for (int u = 0; u < Unroll; ++u) seen ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (seen == 0x12345679u) *sink = seen;
}

/// Microseconds of one of `launches` calls of launch(i), in a graph: the median of `repeats` runs.
inline double microseconds(cudaStream_t stream, int launches, std::function<void(int)> const& launch,
                           int repeats = 21) {
  launch(0);
  check(cudaStreamSynchronize(stream), "a first run");
  cudaGraph_t graph;
  cudaGraphExec_t instance;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capturing");
  for (int i = 0; i < launches; ++i) launch(i);
  check(cudaStreamEndCapture(stream, &graph), "capturing");
  check(cudaGraphInstantiate(&instance, graph, 0), "making a graph");
  cudaEvent_t start, end;
  check(cudaEventCreate(&start), "an event");
  check(cudaEventCreate(&end), "an event");
  for (int i = 0; i < 2; ++i) check(cudaGraphLaunch(instance, stream), "a graph");
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    check(cudaEventRecord(start, stream), "an event");
    check(cudaGraphLaunch(instance, stream), "a graph");
    check(cudaEventRecord(end, stream), "an event");
    check(cudaEventSynchronize(end), "a graph");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, end), "an event");
    times.push_back(1e3 * ms / launches);
  }
  cudaEventDestroy(start), cudaEventDestroy(end), cudaGraphExecDestroy(instance), cudaGraphDestroy(graph);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

/// The least that reading `bytes` bytes takes, over ways to launch; at(i) is where the i-th of `copies` lies.
inline double reading(cudaStream_t stream, int multiprocessors, std::size_t bytes, int launches,
                      std::function<char const*(int)> const& at, unsigned* sink) {
  double best = 1e30;
  auto const attempt = [&]<int Unroll>(int blocks, int threads) {
    std::size_t const count = bytes / 16;
    auto const needed = static_cast<unsigned>((count + threads - 1) / threads);
    unsigned const grid =
        blocks == 0 ? needed / Unroll + 1 : std::min<unsigned>(needed, blocks * multiprocessors);
    best = std::min(best, microseconds(
                              stream, launches,
                              [&](int i) {
                                gptq::cuda::launch(
                                    read<Unroll>,
                                    {.grid = grid, .block = threads, .stream = stream, .overlap = true},
                                    reinterpret_cast<uint4 const*>(at(i)), count, sink);
                              },
                              7));
  };
  for (int const threads : {128, 256, 512}) {
    for (int const blocks : {0, 2, 4, 8}) {
      attempt.template operator()<2>(blocks, threads);
      attempt.template operator()<4>(blocks, threads);
      attempt.template operator()<8>(blocks, threads);
    }
  }
  return best;
}

}  // namespace bench
