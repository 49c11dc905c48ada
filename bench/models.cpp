// How near the example programs come to what the kernels below them allow, both measured in turns.
//
//   bench_models DIRECTORY [--tokens N] [--windows N] [--threads N]
//
// A packed model: decoding, against the time that gemv alone takes for the same matrices in the same order
// (threads that wait awake) and merely reading the output layer and the cached keys and values. A float32
// model: the forward pass of calibration, against this machine's SGEMM.
#include <algorithm>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/error.hpp>
#include <gptq/parallel.hpp>

#include "cli.hpp"
#include "forward.hpp"
#include "generation.hpp"
#include "sgemm.hpp"
#include "spin_pool.hpp"
#include "threads.hpp"

namespace {

constexpr int rounds = 15;

struct arguments {
  std::filesystem::path model;
  std::int64_t tokens = 128;
  std::int64_t windows = 128;  // as quantize_model has them
  int threads = 0;
};

double median(std::vector<double> values) {
  auto const middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<lm::token> some_tokens(lm::model const& m, std::int64_t count) {
  std::vector<lm::token> tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<lm::token>(3 + i * 7919 % (m.config().vocab_size - 3)));
  }
  return tokens;
}

/// Reads bytes on the threads of a pool.
void read(spin_pool& pool, std::span<std::byte const> bytes, roofline::reader reader) {
  auto const* const first = reinterpret_cast<std::uint8_t const*>(bytes.data());
  pool.run([&](int index) {
    auto const share = gptq::token_share(static_cast<gptq::index_t>(bytes.size()), index, pool.threads());
    reader(first + share.first, first + share.last);
  });
}

void decode(lm::model const& m, arguments const& args) {
  lm::config const& c = m.config();
  int const threads = gptq::linalg::thread_count(args.threads);
  std::vector<std::unique_ptr<lm::decoder_layer>> layers;
  std::vector<lm::packed_layer::entry> products;
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    layers.push_back(m.load(i, lm::arithmetic::int8, threads));
    auto const& weights = dynamic_cast<lm::packed_layer const&>(*layers.back()).weights;
    products.insert(products.end(), weights.begin(), weights.end());
  }
  std::vector<float> const x(static_cast<std::size_t>(std::max(c.hidden_size, c.intermediate_size)), 0.5F);
  std::vector<float> y(x.size());
  auto const gemv_seconds = [&](spin_pool& pool) {
    return roofline::seconds_of([&] {
      for (auto const& product : products) {
        pool.run([&](int index) {
          auto const rows = gptq::row_share(product.weight.out, index, pool.threads());
          product.gemv(product.weight, x.data(), y.data(), rows.first, rows.last);
        });
      }
    });
  };

  auto const prompt = some_tokens(m, 1);
  double bytes = 0.0;
  double linear_bytes = 0.0;
  for (auto const& product : products) linear_bytes += static_cast<double>(product.weight.bytes());
  std::vector<std::byte> const output(m.output_bytes(), std::byte{1});  // as much as the output layer takes
  std::vector<double> predicted;
  std::vector<double> measured;
  std::vector<double> shares;  // of a round's: the machine's speed changes from one to the next
  for (int round = 0; round < rounds; ++round) {
    auto const text = lm::generate(m, prompt, args.tokens, {}, {lm::arithmetic::int8, threads, true});
    if (text.tokens.size() < 2) throw gptq::error("bench_models: the model ends its text at once");
    measured.push_back(1.0 / text.tokens_a_second());
    bytes = text.bytes_a_token;

    // As a token does: all linear layers, then the rest, whatever of it the caches still have.
    spin_pool pool(threads);
    double const others = (bytes - linear_bytes) / static_cast<double>(output.size());
    double least = std::numeric_limits<double>::infinity();
    for (roofline::reader const reader : roofline::readers<void>) {
      std::vector<double> seconds;
      for (int repeat = 0; repeat < 5; ++repeat) {
        double const gemv = gemv_seconds(pool);
        seconds.push_back(gemv + others * roofline::seconds_of([&] { read(pool, output, reader); }));
      }
      least = std::min(least, median(std::move(seconds)));
    }
    predicted.push_back(least);
    shares.push_back(least / measured.back());
  }
  double const took = median(measured);
  double const least = median(predicted);
  fmt::print(
      "decoding, {} threads: {:.1f} tokens/s, {:.2f} MB a token, {:.2f} GB/s; gemv and reading alone: "
      "{:.1f} tokens/s, {:.2f} GB/s; {:.1f} %\n",
      threads, 1.0 / took, bytes * 1e-6, bytes / took * 1e-9, 1.0 / least, bytes / least * 1e-9,
      100.0 * median(shares));
}

void forward(lm::model const& m, arguments const& args) {
  lm::config const& c = m.config();
  lm::set_blas_threads(args.threads);
  auto const angles = lm::make_rotations(c, args.tokens);
  lm::context const ctx{c, angles};
  auto const weights = m.load(0, args.threads);
  lm::matrix const embedded = m.embed(some_tokens(m, args.tokens));
  double parameters = 0.0;
  for (lm::matrix const& weight : weights.weights) parameters += static_cast<double>(weight.size());
  auto const tokens = static_cast<double>(args.tokens);
  // Every token with all tokens up to itself: scores, and the values they weigh.
  double const attention = tokens * tokens * static_cast<double>(c.query_size()) * 2.0;
  double const operations = static_cast<double>(args.windows) * (2.0 * tokens * parameters + attention);

  roofline::sgemm limit;
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    limit.measure();
    std::vector<lm::matrix> x(static_cast<std::size_t>(args.windows), embedded);
    seconds.push_back(roofline::seconds_of([&] {
      lm::for_each(args.windows, args.threads,
                   [&](std::ptrdiff_t w) { lm::run_layer(ctx, weights, x[static_cast<std::size_t>(w)]); });
    }));
  }
  double const rate = operations / median(seconds);
  fmt::print(
      "forward pass of a decoder layer, {} windows of {} tokens: {:.1f} GFLOP/s, SGEMM {:.1f}; {:.1f} %\n",
      args.windows, args.tokens, rate * 1e-9, limit.best() * 1e-9, 100.0 * rate / limit.best());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    arguments args;
    CLI::App app("Decoding speed of a packed model, or calibration speed of a float32 one.", "bench_models");
    app.add_option("MODEL", args.model, "Directory of the model")->required()->type_name("");
    app.add_option("--tokens", args.tokens, "Tokens to decode, or of a window")
        ->check(CLI::Range(2, 1 << 20).description(""))
        ->capture_default_str();
    app.add_option("--windows", args.windows, "Windows of calibration")
        ->check(CLI::PositiveNumber.description(""))
        ->capture_default_str();
    lm::add_threads_option(app, args.threads);
    if (!lm::parse_options(app, argc, argv)) return 0;
    lm::model const m(args.model);
    m.has_kernels() ? decode(m, args) : forward(m, args);
    return 0;
  } catch (std::exception const& e) {
    fmt::print(stderr, "bench_models: {}\n", e.what());
    return 1;
  }
}
