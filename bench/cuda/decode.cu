// Text of a packed model on the GPU, with random codes: tokens a second and the share of the bandwidth that their
// bytes allow, and the share of the matrix rate that a prompt gets. Both limits are measured in the same run. The
// shape is that of Llama 3 8B unless options say otherwise; 4 bits, groups of 128, the output layer in float16.
//
//   bench_cuda_decode [--layers n] [--prompt n] [--tokens n] [--context n]... [--temperature x]
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cublas_v2.h>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gptq/packed.hpp>

#include "device/text_decoder.hpp"
#include "floor.cuh"

namespace {

using lm::device::host_matrix;
using lm::device::index_t;
using lm::device::linear_source;
using q4 = gptq::format<gptq::fixed_zero, 4, 128>;

struct arguments {
  index_t layers = 32, hidden = 4096, intermediate = 14336, heads = 32, key_value_heads = 8, head_dim = 128,
          vocabulary = 128256;
  index_t prompt = 2048, tokens = 256;
  std::vector<index_t> contexts;
  double temperature = 0.0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class random_model {
 public:
  explicit random_model(arguments const& args, index_t positions)
      : args_(args), matrix_(static_cast<std::size_t>(args.vocabulary * args.hidden)) {
    std::mt19937_64 random(1);
    auto const largest = static_cast<std::size_t>(args.hidden * args.intermediate);
    codes_.resize(largest / 2 / 8);
    for (auto& word : codes_) word = random();
    scales_.assign(largest / 128, gptq::float16(0.004F));
    for (std::size_t i = 0; i < matrix_.size(); i += 4) {
      std::uint64_t bits = random();
      for (std::size_t j = i; j < i + 4 && j < matrix_.size(); ++j, bits >>= 16) {
        matrix_[j] = gptq::float16((static_cast<float>(bits & 0xffff) - 32767.5F) * 1e-6F);
      }
    }
    source.layers = args.layers, source.hidden = args.hidden;
    source.embedding = {matrix_.data(), lm::device::number::float16, args.vocabulary, args.hidden, nullptr};
    lm::device::rope_table rope;
    rope.rotated = args.head_dim;
    for (index_t p = 0; p < positions; ++p) {
      for (index_t i = 0; i < args.head_dim / 2; ++i) {
        double const angle =
            static_cast<double>(p) *
            std::pow(500000.0, -2.0 * static_cast<double>(i) / static_cast<double>(args.head_dim));
        rope.cos.push_back(static_cast<float>(std::cos(angle)));
        rope.sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    source.ropes.push_back(std::move(rope));
    source.load = [this](index_t) { return load(); };
    source.final_norm.assign(static_cast<std::size_t>(args.hidden), 1.0F);
    source.epsilon = 1e-5F;
    source.output = source.embedding;
  }

  lm::device::model_source source;

 private:
  linear_source linear(char const* name, index_t out, index_t in) const {
    gptq::packed_layout<q4> const layout{out, in};
    lm::packed_parts parts{out, in, {}, {}, {}, {}};
    parts.codes = std::as_bytes(std::span(codes_)).first(static_cast<std::size_t>(layout.code_bytes()));
    parts.scales =
        std::as_bytes(std::span(scales_)).first(static_cast<std::size_t>(layout.scale_count() * 2));
    linear_source l{name, {nullptr, lm::device::number::float32, out, in, nullptr}, {}, {}};
    l.packed = lm::device::packed_source{gptq::to_spec<q4>(), parts, {}};
    return l;
  }
  lm::device::layer_source load() const {
    lm::device::layer_source s;
    auto& a = s.arithmetic;
    a.hidden = args_.hidden, a.intermediate = args_.intermediate;
    a.heads = args_.heads, a.key_value_heads = args_.key_value_heads, a.head_dim = args_.head_dim;
    a.epsilon = 1e-5F, a.rope = 0;
    a.attention_scale = 1.0F / std::sqrt(static_cast<float>(a.head_dim));
    s.attention_norm.assign(static_cast<std::size_t>(a.hidden), 1.0F);
    s.mlp_norm = s.attention_norm;
    s.linears = {{{linear("q", a.query_size(), a.hidden), linear("k", a.key_value_size(), a.hidden),
                   linear("v", a.key_value_size(), a.hidden)},
                  {linear("o", a.hidden, a.query_size())},
                  {linear("gate", a.intermediate, a.hidden), linear("up", a.intermediate, a.hidden)},
                  {linear("down", a.hidden, a.intermediate)}}};
    return s;
  }

  arguments args_;
  std::vector<gptq::float16> matrix_;
  std::vector<std::uint64_t> codes_;
  std::vector<gptq::float16> scales_;
};

/// Bytes a second of merely reading.
double reading_rate() {
  std::size_t const bytes = std::size_t{256} << 20;
  int const copies = 4;
  char* memory = nullptr;
  unsigned* sink = nullptr;
  cudaStream_t stream;
  bench::check(cudaMalloc(&memory, copies * bytes), "allocating");
  bench::check(cudaMalloc(&sink, 4), "allocating");
  bench::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  bench::fill<<<1024, 256, 0, stream>>>(reinterpret_cast<std::uint64_t*>(memory), copies * bytes / 8, ~0ull,
                                        0);
  double const us = bench::reading(
      stream, gptq::cuda::device::current().multiprocessors, bytes, 8,
      [&](int i) { return memory + static_cast<std::size_t>(i % copies) * bytes; }, sink);
  cudaStreamDestroy(stream), cudaFree(memory), cudaFree(sink);
  return static_cast<double>(bytes) / (us * 1e-6);
}

/// Operations a second of cuBLAS in float16, of the prompt's largest product and of a large square one: the best.
double matrix_rate(arguments const& args) {
  cublasHandle_t blas;
  cudaStream_t stream;
  bench::check(cublasCreate(&blas), "cuBLAS");
  bench::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  bench::check(cublasSetStream(blas, stream), "cuBLAS");
  double best = 0.0;
  auto const measure = [&](index_t out, index_t tokens, index_t in) {
    std::size_t const numbers = static_cast<std::size_t>(std::max(out, tokens) * in + out * tokens);
    __half *w = nullptr, *x = nullptr, *y = nullptr;
    bench::check(cudaMalloc(&w, numbers * 2), "allocating");
    bench::check(cudaMalloc(&x, numbers * 2), "allocating");
    bench::check(cudaMalloc(&y, numbers * 2), "allocating");
    for (__half* const p : {w, x}) {
      bench::fill<<<1024, 256, 0, stream>>>(reinterpret_cast<std::uint64_t*>(p), numbers / 4,
                                            0x83ff83ff83ff83ffull, 0x3000300030003000ull);
    }
    float const one = 1.0F, zero = 0.0F;
    double const us = bench::microseconds(
        stream, 4,
        [&](int) {
          bench::check(
              cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(out), static_cast<int>(tokens),
                           static_cast<int>(in), &one, w, CUDA_R_16F, static_cast<int>(in), x, CUDA_R_16F,
                           static_cast<int>(in), &zero, y, CUDA_R_16F, static_cast<int>(out),
                           CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
              "cuBLAS");
        },
        9);
    best = std::max(best, 2.0 * static_cast<double>(out) * static_cast<double>(tokens) *
                              static_cast<double>(in) / (us * 1e-6));
    cudaFree(w), cudaFree(x), cudaFree(y);
  };
  measure(2 * args.intermediate, args.prompt, args.hidden);
  measure(8192, 8192, 8192);
  cublasDestroy(blas), cudaStreamDestroy(stream);
  return best;
}

void run(arguments const& args) {
  std::printf("%s, %td layers, hidden %td, intermediate %td, %td/%td heads of %td, vocabulary %td\n",
              lm::device::make_cuda_accelerator()->name().c_str(), args.layers, args.hidden,
              args.intermediate, args.heads, args.key_value_heads, args.head_dim, args.vocabulary);
  double const bytes_a_second = reading_rate(), operations_a_second = matrix_rate(args);
  std::printf("reading   %8.2f TB/s\nmatrices  %8.1f TFLOP/s\n", bytes_a_second * 1e-12,
              operations_a_second * 1e-12);
  std::fflush(stdout);
  index_t longest = args.prompt;
  for (index_t const context : args.contexts) longest = std::max(longest, context);
  index_t const capacity = longest + args.tokens;
  auto const on = lm::device::make_cuda_accelerator();
  auto start = std::chrono::steady_clock::now();
  random_model const model(args, capacity);
  lm::device::text_decoder decoder(*on, model.source, capacity);
  std::printf("loading   %8.2f s, %.2f GB on the device\n", seconds_since(start),
              1e-9 * static_cast<double>(on->most_bytes()));
  lm::device::text_decoder::choice how;
  how.temperature = args.temperature, how.top_p = 0.95;
  std::mt19937 random(2);
  for (index_t i = 0; i < args.tokens; ++i) how.random.push_back(static_cast<double>(random()) * 0x1p-32);
  std::vector<std::int32_t> prompt;
  for (index_t i = 0; i < longest; ++i) {
    prompt.push_back(static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(args.vocabulary)));
  }

  double best = 1e30;
  for (int repeat = 0; repeat < 4; ++repeat) {
    start = std::chrono::steady_clock::now();
    decoder.begin(std::span(prompt).first(static_cast<std::size_t>(args.prompt)), how);
    (void)decoder.token(0);
    best = std::min(best, seconds_since(start));
  }
  (void)on->take_times();
  decoder.begin(std::span(prompt).first(static_cast<std::size_t>(args.prompt)), how);
  auto const times = on->take_times();
  double const width = static_cast<double>(args.heads * args.head_dim);
  double const weights = static_cast<double>(
      args.layers * (args.hidden * (2 * args.heads + 2 * args.key_value_heads) * args.head_dim +
                     3 * args.hidden * args.intermediate));
  double const tokens = static_cast<double>(args.prompt);
  double const operations =
      2.0 * weights * tokens + 2.0 * static_cast<double>(args.layers) * width * tokens * tokens;
  std::printf("prompt    %8td tokens in %.2f ms: %.0f tokens/s, %.1f TFLOP/s, %.1f %% of the matrix rate\n",
              args.prompt, best * 1e3, tokens / best, operations / best * 1e-12,
              100.0 * operations / best / operations_a_second);
  std::printf("          of which attention %.1f ms, all else %.1f ms\n",
              1e3 * times.of[static_cast<std::size_t>(lm::device::activity::attention)],
              1e3 * times.of[static_cast<std::size_t>(lm::device::activity::forward)]);
  std::fflush(stdout);

  for (index_t const context : args.contexts) {
    decoder.begin(std::span(prompt).first(static_cast<std::size_t>(context)), how);
    constexpr index_t warm = 8, ahead = 4;
    for (index_t i = 0; i < warm; ++i) decoder.step();
    (void)decoder.token(warm);
    start = std::chrono::steady_clock::now();
    double bytes = 0.0;
    index_t const count = args.tokens - warm - 1;
    for (index_t i = 0; i < count; ++i) {
      decoder.step();
      bytes += decoder.bytes_a_token(context + decoder.chosen() - 1);
      if (decoder.chosen() > ahead) (void)decoder.token(decoder.chosen() - 1 - ahead);
    }
    (void)decoder.token(decoder.chosen() - 1);
    double const seconds = seconds_since(start), n = static_cast<double>(count);
    std::printf(
        "decode    after %5td tokens: %.1f tokens/s, %.1f us a token, %.3f GB a token, %.2f TB/s, %.1f %% of "
        "reading\n",
        context, n / seconds, seconds / n * 1e6, bytes / n * 1e-9, bytes / seconds * 1e-12,
        100.0 * bytes / seconds / bytes_a_second);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  arguments args;
  for (int i = 1; i < argc; ++i) {
    auto const is = [&](char const* name) { return i + 1 < argc && std::strcmp(argv[i], name) == 0; };
    if (is("--layers")) {
      args.layers = std::atol(argv[++i]);
    } else if (is("--prompt")) {
      args.prompt = std::atol(argv[++i]);
    } else if (is("--tokens")) {
      args.tokens = std::atol(argv[++i]);
    } else if (is("--context")) {
      args.contexts.push_back(std::atol(argv[++i]));
    } else if (is("--temperature")) {
      args.temperature = std::atof(argv[++i]);
    } else {
      std::fprintf(stderr,
                   "usage: %s [--layers n] [--prompt n] [--tokens n] [--context n]... [--temperature x]\n",
                   argv[0]);
      return 2;
    }
  }
  if (args.contexts.empty()) args.contexts = {16, 1024};
  if (args.layers < 1 || args.prompt < 1 || args.tokens < 16) {
    std::fprintf(stderr, "%s: at least one layer, one token of a prompt, and 16 new tokens\n", argv[0]);
    return 2;
  }
  run(args);
} catch (std::exception const& error) {
  std::fprintf(stderr, "bench_cuda_decode: %s\n", error.what());
  return 1;
}
