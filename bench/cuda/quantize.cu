// How fast layers are calibrated and quantized on the GPU.
//
//   bench_cuda_quantize [--json FILE]
//
// 4 bits without a zero point in groups of 128, with act-order; of quality plain, and of fast. The weights
// and activations are random, on the device. A time is the median of several runs on the host's clock, from
// the call to the finished result on the device; the measurement of the output error is left out. `factor` is
// what passes before the first column, by the device's clock: the Cholesky factorization, and before it the
// order of the columns.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include <gptq/cuda/quantize.cuh>

namespace {

namespace cuda = gptq::cuda;
using gptq::index_t;
using q4 = gptq::format<gptq::fixed_zero, 4, 128>;

__device__ float uniform(std::uint64_t i) {
  i += 0x9e3779b97f4a7c15u;
  i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9u;
  i = (i ^ (i >> 27)) * 0x94d049bb133111ebu;
  i ^= i >> 31;
  return static_cast<float>(i >> 40) * 0x1p-23F - 1.0F;
}

/// Uniform in -1..1, in columns of decaying size.
template <class T>
__global__ void fill(T* x, index_t size, index_t columns, float decay, std::uint64_t seed) {
  for (index_t i = index_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size;
       i += index_t{gridDim.x} * blockDim.x) {
    float const value = uniform(static_cast<std::uint64_t>(i) ^ (seed << 40)) /
                        sqrtf(1.0F + decay * static_cast<float>(i % columns % 97));
    if constexpr (sizeof(T) == 2) {
      x[i].bits = static_cast<std::uint16_t>(__float_as_uint(value) >> 16);  // bfloat16, cut off
    } else {
      x[i] = value;
    }
  }
}

template <class T>
cuda::device_array<T> random_array(cuda::context& ctx, index_t rows, index_t columns, float decay,
                                   std::uint64_t seed) {
  cuda::device_array<T> x(ctx, rows * columns);
  cuda::launch(fill<T>, {.grid = 1024, .block = 256, .stream = ctx.stream()}, x.data(), x.size(), columns,
               decay, seed);
  return x;
}

/// Median milliseconds of what `run` does on the context's stream, from a device that waits.
template <class Run>
double milliseconds(cuda::context& ctx, int repetitions, Run&& run) {
  std::vector<double> times;
  for (int i = 0; i <= repetitions; ++i) {
    ctx.synchronize();
    auto const start = std::chrono::steady_clock::now();
    run();
    ctx.synchronize();
    if (i > 0)
      times.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct report {
  std::string json;
  void add(std::string const& entry) { json += (json.empty() ? "" : ",\n") + std::string("  ") + entry; }
};

void quantize(cuda::context& ctx, index_t out, index_t in, report& all) {
  int const repetitions = in > 20000 ? 3 : in > 10000 ? 7 : 15;
  cuda::hessian h(ctx, in);
  {
    index_t const tokens = 8192;
    for (std::uint64_t part = 0; part * 8192 < static_cast<std::uint64_t>(in + in / 2); ++part) {
      auto const x = random_array<gptq::bfloat16>(ctx, tokens, in, 1.0F, 7 + part);
      h.add(x.data(), tokens);
    }
  }
  auto const weight = random_array<float>(ctx, out, in, 0.0F, 3);
  cuda::quantize_options options{
      .quality = gptq::quality::plain, .act_order = true, .measure_output_error = false};
  double loss[2] = {}, time[2] = {};
  std::vector<double> factors;
  for (int const which : {0, 1}) {
    options.tf32 = which == 1;
    time[which] = milliseconds(ctx, repetitions, [&] {
      auto const report = cuda::quantize<q4>({{weight.data(), out}}, h, options).report(0);
      loss[which] = report.loss;
      factors.push_back(1e3 * report.seconds_factorization);
    });
  }
  std::sort(factors.begin(), factors.end());
  double const factor = factors[factors.size() / 2];
  options.quality = gptq::quality::fast;
  options.tf32 = false;
  double fast_loss = 0.0;
  double const fast_time = milliseconds(ctx, repetitions, [&] {
    fast_loss = cuda::quantize<q4>({{weight.data(), out}}, h, options).report(0).loss;
  });
  std::printf("%6td x %6td  %9.2f  %9.2f  %9.2f  %5.0f %%  %9.1e  %9.2f  %9.3f\n", out, in, time[0], time[1],
              factor, 100.0 * factor / time[0], loss[1] / loss[0] - 1.0, fast_time, fast_loss / loss[0]);
  std::fflush(stdout);
  char entry[400];
  std::snprintf(
      entry, sizeof entry,
      R"({"case": "quantize", "out": %td, "in": %td, "ms_float32": %.4f, "ms_tf32": %.4f, "ms_factor": %.4f, )"
      R"("ms_fast": %.4f, "loss_float32": %.6e, "loss_tf32": %.6e, "loss_fast": %.6e})",
      out, in, time[0], time[1], factor, fast_time, loss[0], loss[1], fast_loss);
  all.add(entry);
}

template <class T>
void hessian(cuda::context& ctx, char const* name, report& all) {
  index_t const tokens = 16384, in = 4096;
  auto const x = random_array<T>(ctx, tokens, in, 1.0F, 5);
  cuda::hessian h(ctx, in);
  double const time = milliseconds(ctx, 15, [&] { h.add(x.data(), tokens); });
  std::printf("Hessian of %td tokens x %td, %-8s  %8.3f ms\n", tokens, in, name, time);
  char entry[200];
  std::snprintf(entry, sizeof entry,
                R"({"case": "hessian", "tokens": %td, "in": %td, "type": "%s", "ms": %.4f})", tokens, in,
                name, time);
  all.add(entry);
}

}  // namespace

int main(int argc, char** argv) {
  char const* json = nullptr;
  if (argc == 3 && std::strcmp(argv[1], "--json") == 0) {
    json = argv[2];
  } else if (argc != 1) {
    std::fputs("usage: bench_cuda_quantize [--json FILE]\n", stderr);
    return 2;
  }
  try {
    cuda::context ctx;
    cudaDeviceProp properties{};
    cuda::check(cudaGetDeviceProperties(&properties, cuda::device::current().id),
                "asking for the device's name");
    std::printf("%s\n", properties.name);
    report all;
    hessian<gptq::bfloat16>(ctx, "bfloat16", all);
    hessian<float>(ctx, "float32", all);
    std::printf(
        "\n   out x in      float32 ms    TF32 ms  factor ms  share   TF32's loss    fast ms  fast's loss\n");
    quantize(ctx, 4096, 4096, all);
    quantize(ctx, 4096, 14336, all);
    quantize(ctx, 8192, 28672, all);
    if (json != nullptr) {
      std::ofstream file(json);
      file << "{\"device\": \"" << properties.name << "\", \"results\": [\n" << all.json << "\n]}\n";
      if (!file.flush()) throw gptq::error(std::string("cannot write ") + json);
    }
  } catch (std::exception const& e) {
    std::fprintf(stderr, "bench_cuda_quantize: %s\n", e.what());
    return 1;
  }
}
