// Derivatives of every decoder layer that there is, against differences of the function itself in double.
//
// Central differences along a random direction: (f(p + h v) - f(p - h v)) / 2h is the derivative along v
// but for h^2 f''' / 6, some 1e-10 for h = 1e-5, and for the rounding of f, 1e-16 |f| / h, some 1e-11. 1e-6
// of the largest of the derivatives is far above both and far below what any missing term makes.
#include "gradient.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "catch.hpp"
#include "forward.hpp"
#include "model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
namespace gradient = lm::gradient;
using Eigen::Index;
using real_matrix = gradient::matrix_of<double>;
using real_row = gradient::row_of<double>;
using lm::norm_kinds;

/// One of each architecture without experts.
std::vector<fs::path> dense_models() {
  std::vector<fs::path> paths;
  for (auto const& entry : fs::directory_iterator(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data")) {
    if (entry.is_directory() && lm::read_config(entry.path()).num_experts == 0) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

template <class Matrix>
void fill(test::random& random, Matrix& m, double size = 1.0) {
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = size * static_cast<double>(random.normal());
}

real_matrix random_matrix(test::random& random, Index rows, Index columns, double size = 1.0) {
  real_matrix m(rows, columns);
  fill(random, m, size);
  return m;
}

/// One decoder layer of a model in double, with nothing left at a value that hides a term, such as a bias
/// of 0.
struct layer_in_double {
  lm::config const& c;
  lm::decoder_description const& description;
  gradient::parameters<double> p;
  gradient::angles_of<double> angles;

  layer_in_double(lm::model const& m, std::int64_t i, Index tokens, test::random& random)
      : c(m.config()), description(c.layer(i)), p(gradient::parameters_of<double>(m.load(i, 1))) {
    if (description.rope >= 0) {
      auto const all = lm::make_rotations(c, tokens);
      auto const& own = all[static_cast<std::size_t>(description.rope)];
      angles = {own.cos.cast<double>(), own.sin.cast<double>()};
    }
    each(p, [&](auto& values) {
      std::remove_reference_t<decltype(values)> noise = values;
      fill(random, noise, 0.1);
      values += noise;
    });
  }

  gradient::layer_view<double> view() const { return {c, description, p, angles}; }
  real_matrix output(real_matrix const& x) const {
    gradient::tape<double> tape;
    return gradient::forward<double>(view(), x, tape);
  }

  template <class Parameters, class F>
  static void each(Parameters& parameters, F const& f) {
    for (auto& weight : parameters.weights) f(weight);
    for (auto& bias : parameters.biases) f(bias);
    for (auto& norm : parameters.norms) f(norm);
  }
};

/// The derivatives of (output . `along`) by all there is, from backward().
struct derivatives {
  gradient::parameters<double> p;
  real_matrix x;
};

/// Of several sequences, which have the same parameters.
std::vector<derivatives> derive(layer_in_double const& layer, std::vector<real_matrix> const& x,
                                std::vector<real_matrix> const& along) {
  std::vector<gradient::tape<double>> tapes(x.size());
  std::vector<gradient::output_gradients<double>> outputs(x.size());
  std::vector<derivatives> result(x.size());
  gradient::parameters<double> sum;
  sum.weights.resize(layer.p.weights.size());
  sum.biases.resize(layer.p.biases.size());
  for (std::size_t n = 0; n < norm_kinds; ++n) sum.norms[n] = real_row::Zero(layer.p.norms[n].size());
  for (std::size_t s = 0; s < x.size(); ++s) {
    gradient::forward<double>(layer.view(), x[s], tapes[s]);
    result[s].x = along[s];
    gradient::backward<double>(layer.view(), tapes[s], result[s].x, sum.norms, outputs[s]);
  }
  for (std::size_t place = 0; place < sum.weights.size(); ++place) {
    gradient::weight_gradient<double>(layer.view(), place, tapes, outputs, sum);
  }
  result.front().p = std::move(sum);
  return result;
}

double along(real_matrix const& a, real_matrix const& b) { return a.cwiseProduct(b).sum(); }

/// The derivative of `f` by `values` in a random direction, by differences, beside what `gradient` says.
template <class Values, class F>
void check_derivative(test::random& random, Values& values, Values const& gradient, F const& f) {
  REQUIRE(gradient.rows() == values.rows());
  REQUIRE(gradient.cols() == values.cols());
  Values const before = values;
  Values direction = values;
  fill(random, direction);
  constexpr double h = 1e-5;
  values = before + h * direction;
  double const above = f();
  values = before - h * direction;
  double const below = f();
  values = before;
  double const scale = std::sqrt(gradient.squaredNorm());
  CHECK(std::abs((above - below) / (2 * h) - gradient.cwiseProduct(direction).sum()) <= 1e-6 * (1.0 + scale));
  CHECK(scale > 1e-6);  // there is something to be found
}

}  // namespace

TEST_CASE("derivatives of a decoder layer are those that differences show") {
  auto const seed = GENERATE(1U, 2U);
  for (fs::path const& path : dense_models()) {
    INFO(path.filename() << ", seed " << seed);
    lm::model const m(path);
    test::random random(seed);
    for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
      layer_in_double layer(m, i, 21, random);
      std::vector<real_matrix> x, weights;
      for (Index const tokens : {Index{21}, Index{1}, Index{9}}) {  // windows of 8 are smaller, and of 16
        x.push_back(random_matrix(random, tokens, m.config().hidden_size));
        weights.push_back(random_matrix(random, tokens, m.config().hidden_size));
      }
      auto const loss = [&] {
        double sum = 0.0;
        for (std::size_t s = 0; s < x.size(); ++s) sum += along(layer.output(x[s]), weights[s]);
        return sum;
      };
      auto const found = derive(layer, x, weights);
      for (std::size_t s = 0; s < x.size(); ++s) check_derivative(random, x[s], found[s].x, loss);
      auto const& p = found.front().p;
      for (std::size_t l = 0; l < layer.p.weights.size(); ++l) {
        INFO(layer.description.linears[l].name);
        check_derivative(random, layer.p.weights[l], p.weights[l], loss);
        if (layer.p.biases[l].size() > 0) check_derivative(random, layer.p.biases[l], p.biases[l], loss);
      }
      for (std::size_t n = 0; n < norm_kinds; ++n) {
        INFO("norm " << n);
        if (layer.p.norms[n].size() > 0) check_derivative(random, layer.p.norms[n], p.norms[n], loss);
      }
    }
  }
}

TEST_CASE("derivatives over more queries than are multiplied at once") {
  constexpr Index tokens = gradient::query_block + 40;
  for (char const* const name : {"llama", "gemma2"}) {  // the second with windows and caps
    INFO(name);
    lm::model const m(fs::path(GPTQ_SOURCE_DIR) / "tests/models/data" / name);
    test::random random(3);
    for (std::int64_t i = 0; i < 2; ++i) {
      layer_in_double layer(m, i, tokens, random);
      std::vector<real_matrix> x{random_matrix(random, tokens, m.config().hidden_size)};
      std::vector<real_matrix> const weights{random_matrix(random, tokens, m.config().hidden_size)};
      auto const found = derive(layer, x, weights);
      auto const loss = [&] { return along(layer.output(x[0]), weights[0]); };
      check_derivative(random, x[0], found[0].x, loss);
      for (std::size_t l = 0; l < layer.p.weights.size(); ++l) {
        check_derivative(random, layer.p.weights[l], found[0].p.weights[l], loss);
      }
    }
  }
}

TEST_CASE("what is differentiated is the forward pass") {
  constexpr Index tokens = gradient::query_block + 40;
  for (fs::path const& path : dense_models()) {
    INFO(path.filename());
    lm::model const m(path);
    lm::config const& c = m.config();
    auto const angles = lm::make_rotations(c, tokens);
    test::random random(4);
    for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
      lm::float_layer const layer = m.load(i, 1);
      auto const p = gradient::parameters_of<float>(layer);
      gradient::angles_of<float> own;
      if (layer.description->rope >= 0) {
        auto const& rope = angles[static_cast<std::size_t>(layer.description->rope)];
        own = {rope.cos, rope.sin};
      }
      gptq::matrix const x = random_matrix(random, tokens, c.hidden_size).cast<float>();
      gptq::matrix expected = x;
      lm::run_layer({c, angles}, layer, expected);
      gradient::tape<float> tape;
      gptq::matrix const y = gradient::forward<float>({c, *layer.description, p, own}, x, tape);
      // A few dozen products and sums of float32, 6e-8 each, in another order.
      CHECK((y - expected).cwiseAbs().maxCoeff() < 2e-5F * (1.0F + expected.cwiseAbs().maxCoeff()));
    }
  }
}

TEST_CASE("the divergence of two distributions and its derivative") {
  test::random random(5);
  lm::config c;
  c.vocab_size = 37;
  c.hidden_size = 12;
  bool const capped = GENERATE(false, true);
  if (capped) {
    c.logit_scale = 0.7;
    c.logit_softcap = 3.0;
  }
  constexpr Index tokens = 70;  // more than are multiplied at once
  real_matrix const output = random_matrix(random, c.vocab_size, c.hidden_size);
  real_matrix x = random_matrix(random, tokens, c.hidden_size);
  real_matrix const exact = random_matrix(random, tokens, c.hidden_size);
  auto const logits = [&](real_matrix const& hidden, Index t, Index v) {
    double const z = hidden.row(t).dot(output.row(v)) * c.logit_scale;
    return capped ? c.logit_softcap * std::tanh(z / c.logit_softcap) : z;
  };
  double expected = 0.0;
  for (Index t = 0; t < tokens; ++t) {
    double p_sum = 0.0, q_sum = 0.0;
    for (Index v = 0; v < c.vocab_size; ++v) {
      p_sum += std::exp(logits(exact, t, v));
      q_sum += std::exp(logits(x, t, v));
    }
    for (Index v = 0; v < c.vocab_size; ++v) {
      double const p = std::exp(logits(exact, t, v)) / p_sum;
      expected += p * std::log(p / (std::exp(logits(x, t, v)) / q_sum));
    }
  }
  real_matrix dx;
  CHECK(gradient::divergence<double>(c, x, exact, output, &dx) == Approx(expected).epsilon(1e-12));
  CHECK(gradient::divergence<double>(c, x, exact, output, nullptr) == Approx(expected).epsilon(1e-12));
  check_derivative(random, x, dx, [&] { return gradient::divergence<double>(c, x, exact, output, nullptr); });
  CHECK(std::abs(gradient::divergence<double>(c, exact, exact, output, &dx)) < 1e-12);
  CHECK(dx.cwiseAbs().maxCoeff() < 1e-14);
}
