#include "accuracy_layers.hpp"

#include <cmath>
#include <numbers>
#include <random>

#include <fmt/format.h>

#include "forward.hpp"
#include "threads.hpp"

namespace accuracy {
namespace {

using gptq::index_t;
using gptq::matrix;

/// Normal numbers that are the same on every platform, which those of std::normal_distribution are not.
class normal {
 public:
  explicit normal(std::uint32_t seed) : engine_(seed) {}
  float operator()() {
    double const radius = std::sqrt(-2.0 * std::log(unit()));
    return static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * unit()));
  }
  matrix operator()(index_t rows, index_t columns) {
    matrix m(rows, columns);
    for (index_t i = 0; i < m.size(); ++i) m.data()[i] = (*this)();
    return m;
  }

 private:
  double unit() { return (static_cast<double>(engine_()) + 0.5) * 0x1p-32; }
  std::mt19937 engine_;
};

}  // namespace

std::vector<layer> layers_of(lm::model const& m, int threads) {
  std::vector<layer> layers;
  std::size_t input = 0;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    lm::float_layer decoder = m.load(i, threads);
    lm::decoder_description const& description = m.config().layer(i);
    if (description.experts) throw gptq::error("layers of experts are not measured one by one");
    for (lm::stage const s : lm::stages) {
      for (std::size_t const place : description.linears_of(s)) {
        layers.push_back({description.linears[place].name, std::move(decoder.weights[place]), input});
      }
      ++input;
    }
  }
  return layers;
}

std::vector<gptq::hessian> hessians_of(lm::model const& m, std::span<lm::token_window const> windows,
                                       int threads) {
  auto const angles = lm::make_rotations(m.config(), static_cast<std::int64_t>(windows.front().size()));
  lm::context const ctx{m.config(), angles};
  std::vector<matrix> x;
  for (lm::token_window const window : windows) x.push_back(m.embed(window));
  std::vector<lm::stage_input> input(x.size());
  auto const for_each_window = [&](auto&& piece) {
    lm::for_each(static_cast<std::ptrdiff_t>(x.size()), threads,
                 [&](std::ptrdiff_t w) { piece(static_cast<std::size_t>(w)); });
  };
  std::vector<gptq::hessian> hessians;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    lm::float_layer const decoder = m.load(i, threads);
    for (lm::stage const s : lm::stages) {
      for_each_window([&](std::size_t w) { lm::run_stage(ctx, decoder, s, x[w], input[w]); });
      gptq::hessian& h = hessians.emplace_back(m.config().layer(i).input_size(s), threads);
      for (lm::stage_input const& sequence : input) h.add(sequence.x);
    }
    for_each_window([&](std::size_t w) { lm::finish(ctx, decoder, x[w], input[w]); });
  }
  return hessians;
}

std::string synthetic_layer::name() const {
  return fmt::format("synthetic {} x {}, spectrum i^-{:g}, {} outliers x {:g}", out, in, decay, outliers,
                     outlier);
}

matrix synthetic_layer::weight(std::uint32_t seed) const {
  normal random(seed);
  matrix w = random(out, in) / std::sqrt(static_cast<float>(in));
  for (index_t row = 0; row < out; row += 4) {
    for (index_t column = 0; column < in; ++column) w(row, column) *= 1.0F + 0.5F * std::abs(random());
  }
  return w;
}

gptq::hessian synthetic_layer::inputs(index_t tokens, std::uint32_t seed) const {
  // Of the layer, not of the tokens: directions by rotations of pairs of inputs, and where the outliers are.
  normal shape(1);
  std::vector<std::pair<float, float>> turns;
  for (index_t i = 0; i < 8 * in; ++i) {
    float const angle = shape() * static_cast<float>(std::numbers::pi);
    turns.emplace_back(std::cos(angle), std::sin(angle));
  }
  std::vector<index_t> large;
  for (index_t i = 0; i < outliers; ++i) large.push_back((7 + 101 * i * i) % in);

  normal random(seed);
  matrix x = random(tokens, in);
  for (index_t i = 0; i < in; ++i) x.col(i) *= std::pow(static_cast<float>(i + 1), -0.5F * decay);
  for (index_t i = 0; i < 8 * in; ++i) {
    index_t const a = i % in;
    index_t const b = (a + (index_t{1} << (i / in))) % in;
    auto const [cos, sin] = turns[static_cast<std::size_t>(i)];
    Eigen::VectorXf const turned = cos * x.col(a) - sin * x.col(b);
    x.col(b) = sin * x.col(a) + cos * x.col(b);
    x.col(a) = turned;
  }
  for (index_t const column : large) x.col(column) *= outlier;
  gptq::hessian h(in);
  h.add(x);
  return h;
}

}  // namespace accuracy
