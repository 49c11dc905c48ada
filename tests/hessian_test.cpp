// Accumulating, merging, saving and loading Hessians.
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>

#include <gptq/hessian.hpp>

#include "catch.hpp"
#include "layers.hpp"
#include "support.hpp"

using gptq::hessian;
using gptq::index_t;
using gptq::matrix;
using test::contains;
using test::error_of;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// sum of weight x x' in double.
Eigen::MatrixXd sum_of(matrix const& x, std::vector<float> const& weights = {}) {
  Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(x.cols(), x.cols());
  for (index_t t = 0; t < x.rows(); ++t) {
    double const weight = weights.empty() ? 1.0 : static_cast<double>(weights[static_cast<std::size_t>(t)]);
    Eigen::VectorXd const row = x.row(t).transpose().cast<double>();
    sum += weight * row * row.transpose();
  }
  return sum;
}

/// The largest difference of the lower triangles, over the size of the diagonal.
double distance(hessian const& h, Eigen::MatrixXd const& expected) {
  Eigen::MatrixXd const have = h.sum().cast<double>();
  double worst = 0.0;
  for (index_t j = 0; j < expected.cols(); ++j) {
    for (index_t i = j; i < expected.rows(); ++i) {
      worst = std::max(worst, std::abs(have(i, j) - expected(i, j)) /
                                  (1e-30 + std::sqrt(expected(i, i) * expected(j, j))));
    }
  }
  return worst;
}

bool same_lower(hessian const& a, hessian const& b) {
  Eigen::MatrixXf const x = a.sum().triangularView<Eigen::Lower>();
  Eigen::MatrixXf const y = b.sum().triangularView<Eigen::Lower>();
  return x == y && a.tokens() == b.tokens() && a.sequences() == b.sequences();
}

std::string saved(hessian const& h) {
  std::ostringstream out;
  h.save(out);
  return out.str();
}

hessian loaded(std::string const& bytes) {
  std::istringstream in(bytes);
  return hessian::load(in);
}

/// Overwrites `bytes` at `offset`.
template <class T>
std::string damaged(std::string bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return bytes;
}

}  // namespace

TEST_CASE("a Hessian is the sum of x x'", "[hessian]") {
  test::random random(11);
  for (index_t const in : {1, 7, 64, 300}) {  // 300: more than one tile of the rank update
    CAPTURE(in);
    hessian h(in);
    CHECK(h.in_features() == in);
    CHECK(h.tokens() == 0.0);
    CHECK(h.scale() == 0.0);
    Eigen::MatrixXd expected = Eigen::MatrixXd::Zero(in, in);
    for (index_t const tokens : {1, 40, 33}) {
      matrix const x = test::correlated_inputs(tokens, in, random);
      h.add(x);
      expected += sum_of(x);
    }
    CHECK(distance(h, expected) < 1e-5);
    CHECK(h.tokens() == 74.0);
    CHECK(h.sequences() == 3);
    CHECK(h.scale() == 2.0 / 3.0);
  }
}

TEST_CASE("activations of any type and layout", "[hessian]") {
  test::random random(12);
  constexpr index_t tokens = 21, in = 30;
  matrix const x = test::correlated_inputs(tokens, in, random);
  hessian from_matrix(in), from_pointer(in), from_columns(in), from_part(in);
  from_matrix.add(x);
  from_pointer.add(x.data(), tokens);
  from_columns.add(Eigen::MatrixXf(x));
  matrix wide = matrix::Constant(tokens, in + 5, not_a_number);
  wide.middleCols(2, in) = x;
  from_part.add(wide.middleCols(2, in));
  CHECK(same_lower(from_matrix, from_pointer));
  CHECK(same_lower(from_matrix, from_columns));
  CHECK(same_lower(from_matrix, from_part));

  auto const check_16_bits = [&]<class T>(T) {
    std::vector<T> narrow;
    matrix widened(tokens, in);
    for (index_t i = 0; i < x.size(); ++i) {
      narrow.push_back(T(x.data()[i]));
      widened.data()[i] = narrow.back();
    }
    std::vector<float> weights(static_cast<std::size_t>(tokens), 1.0F);
    weights[4] = 0.0F;
    hessian a(in), b(in);
    a.add(narrow.data(), tokens);
    b.add(widened);
    CHECK(same_lower(a, b));
    a.add(narrow.data(), tokens, weights);
    b.add(widened, weights);
    CHECK(same_lower(a, b));
    narrow[static_cast<std::size_t>(2 * in + 3)] = T(infinity);
    CHECK(contains(error_of([&] { a.add(narrow.data(), tokens); }), "token 2, input 3 is inf"));
    CHECK(same_lower(a, b));
  };
  check_16_bits(gptq::float16{});
  check_16_bits(gptq::bfloat16{});
}

TEST_CASE("token weights", "[hessian]") {
  test::random random(13);
  constexpr index_t tokens = 24, in = 20;
  matrix const x = test::correlated_inputs(tokens, in, random);
  std::vector<float> weights;
  for (index_t t = 0; t < tokens; ++t) weights.push_back(2.0F * random.unit());
  hessian weighted(in);
  weighted.add(x, weights);
  CHECK(distance(weighted, sum_of(x, weights)) < 1e-5);
  CHECK(weighted.tokens() == Approx(std::accumulate(weights.begin(), weights.end(), 0.0)));
  CHECK(weighted.sequences() == 1);

  // A mask leaves tokens out as if they had not been there.
  std::vector<float> mask(static_cast<std::size_t>(tokens), 1.0F);
  std::fill(mask.begin() + 15, mask.end(), 0.0F);
  hessian masked(in), shorter(in);
  masked.add(x, mask);
  shorter.add(x.topRows(15));
  CHECK(distance(masked, test::full_hessian(shorter) / shorter.scale()) < 1e-6);
  CHECK(masked.tokens() == 15.0);
}

TEST_CASE("two halves add up", "[hessian]") {
  test::random random(14);
  constexpr index_t in = 40;
  hessian whole(in), first(in), second(in);
  for (int i = 0; i < 6; ++i) {
    matrix const x = test::correlated_inputs(10 + i, in, random);
    whole.add(x);
    (i % 2 == 0 ? first : second).add(x);
  }
  first.merge(second);
  CHECK(distance(first, test::full_hessian(whole) / whole.scale()) < 1e-6);
  CHECK(first.tokens() == whole.tokens());
  CHECK(first.sequences() == whole.sequences());
  first.merge(hessian(in));  // one that has seen nothing changes nothing
  CHECK(first.sequences() == whole.sequences());
  CHECK(contains(error_of([&] { first.merge(hessian(in + 1)); }), "width of 41 into one of 40"));
}

TEST_CASE("any number of threads gives the same bits", "[hessian]") {
  test::random random(15);
  matrix const x = test::correlated_inputs(50, 530, random);
  hessian one(530, 1);
  one.add(x);
  for (int const threads : {0, 2, 3, 7}) {
    hessian h(530, threads);
    h.add(x);
    CHECK(same_lower(h, one));
  }
}

TEST_CASE("a Hessian that somebody else accumulated", "[hessian]") {
  test::random random(16);
  matrix const x = test::correlated_inputs(60, 12, random);
  hessian own(12);
  own.add(x);
  Eigen::MatrixXf const given = test::full_hessian(own).cast<float>();
  hessian const h = hessian::from_matrix(given, 60, 4);
  CHECK(h.tokens() == 60.0);
  CHECK(h.sequences() == 4);
  CHECK((test::full_hessian(h) - given.cast<double>()).norm() < 1e-6 * static_cast<double>(given.norm()));
  CHECK(contains(error_of([] { hessian::from_matrix(Eigen::MatrixXf::Zero(3, 4), 1, 1); }),
                 "3 x 4 is not square"));
  CHECK(contains(error_of([&] { hessian::from_matrix(given, 0, 1); }), "must be positive"));
  CHECK(contains(error_of([&] { hessian::from_matrix(given, 1, 0); }), "must be positive"));
  CHECK(!error_of([] { hessian::from_matrix(Eigen::MatrixXf(0, 0), 1, 1); }).empty());
}

TEST_CASE("a sum that somebody else accumulated", "[hessian]") {
  test::random random(17);
  hessian own(12);
  own.add(test::correlated_inputs(60, 12, random));
  CHECK(same_lower(hessian::from_sum(own.sum(), 60.0, 1), own));
  hessian const h = hessian::from_sum(own.sum(), 59.5, 4);
  CHECK(h.tokens() == 59.5);
  CHECK(h.sequences() == 4);
  CHECK(h.scale() == 0.5);
  CHECK(contains(error_of([] { hessian::from_sum(Eigen::MatrixXf::Zero(3, 4), 1.0, 1); }),
                 "3 x 4 is not square"));
  CHECK(contains(error_of([&] { hessian::from_sum(own.sum(), 0.0, 1); }), "must be positive"));
  CHECK(contains(error_of([&] { hessian::from_sum(own.sum(), 1.0, 0); }), "must be positive"));
}

TEST_CASE("saved and loaded", "[hessian]") {
  test::random random(17);
  for (index_t const in : {1, 5, 67}) {
    hessian h(in);
    h.add(test::correlated_inputs(9, in, random));
    h.add(test::correlated_inputs(4, in, random), std::vector<float>{1.0F, 0.25F, 0.0F, 1.0F});
    std::string const bytes = saved(h);
    CHECK(bytes.size() == static_cast<std::size_t>(40 + 2 * in * (in + 1)));
    hessian back = loaded(bytes);
    CHECK(same_lower(back, h));
    CHECK(saved(back) == bytes);
    matrix const more = test::correlated_inputs(8, in, random);
    back.add(more);
    h.add(more);
    CHECK(same_lower(back, h));
  }
  std::istringstream two(saved(hessian(3)) + saved(hessian(4)));  // one after the other in a stream
  CHECK(hessian::load(two).in_features() == 3);
  CHECK(hessian::load(two).in_features() == 4);
}

TEST_CASE("truncated and damaged files", "[hessian]") {
  test::random random(18);
  hessian h(6);
  h.add(test::correlated_inputs(9, 6, random));
  std::string const good = saved(h);
  auto const error = [](std::string const& bytes) { return error_of([&] { loaded(bytes); }); };
  CHECK(error(good).empty());
  for (std::size_t length = 0; length < good.size(); ++length) {
    CAPTURE(length);
    CHECK(contains(error(good.substr(0, length)), length < 40 ? "not a saved hessian" : "ends in column"));
  }
  // The columns have 6, 5, 4, ... entries.
  CHECK(contains(error(good.substr(0, 40 + 4 * 6)), "ends in column 1 of 6"));
  CHECK(contains(error(good.substr(0, good.size() - 1)), "ends in column 5 of 6"));
  CHECK(contains(error(damaged(good, 0, 'G')), "not a saved hessian"));
  CHECK(contains(error(damaged(good, 7, '2')), "not a saved hessian"));
  for (std::int64_t const in : {std::int64_t{0}, std::int64_t{-6}, std::int64_t{1} << 40}) {
    CHECK(contains(error(damaged(good, 8, in)), "header is damaged"));
  }
  CHECK(contains(error(damaged(good, 8, std::int64_t{1} << 19)),
                 "ends in column"));  // without its TiB of memory
  CHECK(contains(error(damaged(good, 16, std::int64_t{-1})), "header is damaged"));
  CHECK(contains(error(damaged(good, 24, -1.0)), "header is damaged"));
  CHECK(contains(error(damaged(good, 24, std::numeric_limits<double>::quiet_NaN())), "header is damaged"));
  CHECK(contains(error(damaged(good, 24, std::numeric_limits<double>::infinity())), "header is damaged"));
  CHECK(contains(error(damaged(good, 40 + 4 * 7, not_a_number)), "entry (2, 1) is nan"));
  CHECK(contains(error(damaged(good, 40, infinity)), "entry (0, 0) is inf"));

  std::ostringstream full;
  full.setstate(std::ios::badbit);
  CHECK(contains(error_of([&] { h.save(full); }), "writing failed"));
}

TEST_CASE("what is wrong is named, and nothing is added", "[hessian]") {
  test::random random(19);
  constexpr index_t tokens = 5, in = 8;
  matrix const x = test::correlated_inputs(tokens, in, random);
  std::vector<float> const weights(static_cast<std::size_t>(tokens), 0.5F);
  hessian h(in);
  h.add(x);
  hessian const before = h;
  for (float const bad : {not_a_number, infinity, -infinity}) {
    matrix broken = x;
    broken(3, 6) = bad;
    CHECK(contains(error_of([&] { h.add(broken); }), "token 3, input 6 is " + std::to_string(bad)));
    CHECK(contains(error_of([&] { h.add(broken.data(), tokens); }), "token 3, input 6"));
    CHECK(contains(error_of([&] { h.add(broken, weights); }), "token 3, input 6"));
  }
  for (float const bad : {not_a_number, infinity, -0.5F}) {
    std::vector<float> broken = weights;
    broken[2] = bad;
    CHECK(contains(error_of([&] { h.add(x, broken); }), "weight of token 2 is "));
  }
  CHECK(contains(error_of([&] { h.add(x.leftCols(7)); }), "7 wide, not 8"));
  CHECK(contains(error_of([&] { h.add(x, std::span(weights).first(4)); }), "4 token weights for 5 tokens"));
  CHECK(same_lower(h, before));
  CHECK(contains(error_of([] { hessian(0); }), "in_features is 0, not positive"));
  CHECK(contains(error_of([] { hessian(-3); }), "in_features is -3, not positive"));
}

TEST_CASE("a batch of no tokens adds nothing", "[hessian]") {
  test::random random(40);
  matrix const x = test::correlated_inputs(20, 12, random);
  hessian h(12);
  auto const add_none = [&] {
    h.add(matrix(0, 12));
    h.add(x.topRows(0));
    h.add(matrix(0, 12), std::span<float const>());
    h.add(x.data(), 0);
    h.add(static_cast<float const*>(nullptr), 0);
    h.add(static_cast<gptq::float16 const*>(nullptr), 0);
    h.add(static_cast<gptq::bfloat16 const*>(nullptr), 0);
  };
  add_none();
  CHECK(h.sequences() == 0);
  CHECK(h.tokens() == 0.0);
  CHECK(h.scale() == 0.0);
  CHECK(h.sum().isZero(0.0F));
  h.add(x);
  Eigen::MatrixXf const before = h.sum();
  add_none();
  CHECK(h.sequences() == 1);
  CHECK(h.tokens() == 20.0);
  CHECK(h.sum() == before);
  // It is looked at all the same.
  CHECK(contains(error_of([&] { h.add(matrix(0, 11)); }), "11 wide"));
  std::vector<float> const one_weight(1, 1.0F);
  CHECK(contains(error_of([&] { h.add(matrix(0, 12), one_weight); }), "1 token weights for 0 tokens"));
  CHECK(contains(error_of([&] { h.add(x.data(), -1); }), "-1 tokens"));
}
