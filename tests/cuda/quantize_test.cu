// GPTQ on the GPU against GPTQ on the CPU: codes, grids, losses; and what is refused.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include <gptq/cuda/quantize.cuh>

#include "catch.hpp"
#include "quantize_on_cpu.hpp"
#include "support.cuh"

using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

constexpr auto plain = gptq::quality::plain;
constexpr auto fast = gptq::quality::fast;
constexpr auto best = gptq::quality::best;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// S of correlated inputs of decaying size, some of them dead.
std::vector<float> random_sum(index_t tokens, index_t in, test::random& random) {
  std::vector<float> activations = random.normals(at(tokens * in));
  for (index_t t = 0; t < tokens; ++t) {
    float* const x = activations.data() + t * in;
    float const common = random.normal();
    for (index_t i = 0; i < in; ++i) {
      float const size = 1.0F / (1.0F + static_cast<float>(i * 37 % 101) / 10.0F);
      x[i] = i % 61 == 7 ? 0.0F : size * (x[i] + common);
    }
  }
  return test::sum_on_cpu(activations, in);
}

/// Such inputs; weights with a few outliers.
test::layer_input random_input(index_t out, index_t in, test::random& random, index_t tokens = 0) {
  if (tokens == 0) tokens = 2 * in + 16;
  test::layer_input input{out, in, tokens, random.normals(at(out * in)), {}, {}};
  for (float& w : input.weight) w *= random.below(500) == 0 ? 0.2F : 0.02F;
  input.sum = random_sum(tokens, in, random);
  return input;
}

/// The layer on the device, with the CPU's own sums.
struct on_device {
  explicit on_device(cuda::context& ctx, test::layer_input const& input)
      : weight(input.weight),
        h(cuda::hessian::from_sum(ctx, input.sum.data(), input.in, static_cast<double>(input.tokens), 1)),
        out(input.out) {
    if (!input.held_out.empty()) {
      held_out.emplace(cuda::hessian::from_sum(ctx, input.held_out.data(), input.in,
                                               static_cast<double>(input.tokens), 1));
    }
  }
  cuda::hessian const* others() const { return held_out ? &*held_out : nullptr; }
  cuda::weight_view view() const { return {weight.data(), out}; }

  test::device_vector<float> weight;
  cuda::hessian h;
  std::optional<cuda::hessian> held_out;
  index_t out;
};

struct agreement {
  double equal = 0.0;
  double all = 0.0;

  double share() const { return equal / all; }
  void add(std::vector<std::uint8_t> const& a, std::vector<std::uint8_t> const& b) {
    REQUIRE(a.size() == b.size());
    all += static_cast<double>(a.size());
    for (std::size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1.0 : 0.0;
  }
};

/// Of many layers together.
struct totals {
  agreement codes;
  double losses = 0.0;  ///< as multiples of the CPU's, weighted by rows
  double rows = 0.0;
  double farthest = 0.0, loss_error = 0.0, output_error_error = 0.0;
  int ties = 0;

  void print(char const* what) const {
    std::printf(
        "%s: %.4f %% of the codes equal to the CPU's, loss %+.1e; %d codes other than in float64, "
        "by %.1e of a step at most; loss within %.1e, output error within %.1e\n",
        what, 100.0 * codes.share(), losses / rows - 1.0, ties, farthest, loss_error, output_error_error);
  }
};

double relative_difference(double a, double b) { return std::abs(a - b) / std::abs(b); }
bool close(double a, double b, double tolerance) { return relative_difference(a, b) <= tolerance; }

/// Quantizes and compares. Where a tie goes the other way, a row's later codes are others, and its loss may
/// be: what the CPU gets with its own roundings says little about a layer of a few rows. So everything is
/// also held against float64, which follows the codes that were chosen.
template <class Format>
void same_as_cpu(test::layer_input const& input, test::exact_hessian const& exact,
                 gptq::quantize_options const& options, cuda::context& ctx, totals& total) {
  INFO(gptq::to_string(gptq::to_spec<Format>())
       << ", " << input.out << " x " << input.in << ", act_order " << options.act_order << ", static "
       << options.static_groups << ", mse " << options.mse << ", grid " << static_cast<int>(options.grid));
  auto const expected = test::quantize_on_cpu<Format>(input, options);
  on_device const device(ctx, input);
  auto const layers =
      cuda::quantize<Format>({device.view()}, device.h, cuda::quantize_options::from(options));
  auto const layer = layers.host(0);
  CHECK_NOTHROW(gptq::check(layer));
  CHECK(layer.order == expected.order);
  CHECK(layer.report.damping == expected.report.damping);
  CHECK(layer.report.dead_columns == expected.report.dead_columns);
  if (options.static_groups && !options.mse) {
    CHECK(layer.scales == expected.scales);
    CHECK(layer.zeros == expected.zeros);
  }

  auto const found = test::examine(input, exact, options, layer);
  CHECK(found.farthest < 1e-3);
  CHECK(found.wrong_grids == 0);
  // The roundings of a handful of codes do not average out.
  double const tolerance = input.out * input.in < 100 ? 1e-4 : 1e-5;
  CHECK(close(layer.report.loss, found.loss, tolerance));
  CHECK(close(layer.report.output_error, found.output_error, tolerance));
  CHECK(close(layer.report.loss_per_token, found.loss / static_cast<double>(input.tokens), tolerance));
  total.farthest = std::max(total.farthest, found.farthest);
  total.ties += found.other_codes;
  total.loss_error = std::max(total.loss_error, relative_difference(layer.report.loss, found.loss));
  total.output_error_error =
      std::max(total.output_error_error, relative_difference(layer.report.output_error, found.output_error));

  agreement codes;
  codes.add(layer.codes, expected.codes);
  total.codes.add(layer.codes, expected.codes);
  if (input.out < 70) return;
  CHECK(codes.share() > 0.98);
  double const rows = static_cast<double>(input.out);
  total.losses += rows * layer.report.loss / expected.report.loss;
  total.rows += rows;
}

template <class Format>
std::vector<gptq::quantize_options> interesting_options() {
  std::vector<gptq::quantize_options> all{
      {.quality = plain},
      {.quality = plain, .act_order = true},
      {.quality = plain, .act_order = true, .static_groups = true},
      {.quality = plain, .static_groups = true, .damping = 0.1},
      {.quality = plain, .mse = true, .act_order = true},
      {.quality = plain, .mse = true, .static_groups = true},
  };
  if (!Format::has_zero_point) {
    all.push_back({.quality = plain, .grid = gptq::grid_rule::amax});
    all.push_back({.quality = plain, .grid = gptq::grid_rule::signed_amax, .act_order = true});
  }
  return all;
}

}  // namespace

TEST_CASE("codes agree with the CPU's in 99.9 %, and losses within 0.1 %", "[slow]") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  totals total;
  test::for_each_format(test::cuda_formats{}, [&]<class Format>() {
    for (auto const& options : interesting_options<Format>()) {
      auto const input = random_input(70, 300, random);
      same_as_cpu<Format>(input, test::exact_hessian(input, options), options, ctx, total);
    }
  });
  total.print("small layers");
  CHECK(total.codes.share() > 0.999);
  CHECK(close(total.losses, total.rows, 1e-3));
}

/// Quality fast and best: what is found there is no sweep's codes any more, so that float64 says what they
/// have lost, and the CPU's codes and losses what they should be.
template <class Format>
void searched_as_cpu(test::layer_input const& input, test::exact_hessian const& exact,
                     gptq::quantize_options const& options, cuda::context& ctx, totals& total) {
  INFO(gptq::to_string(gptq::to_spec<Format>())
       << ", " << input.out << " x " << input.in << ", quality " << static_cast<int>(options.quality)
       << ", mse " << options.mse << ", grid " << static_cast<int>(options.grid));
  auto const expected = test::quantize_on_cpu<Format>(input, options);
  on_device const device(ctx, input);
  auto const layer =
      cuda::quantize<Format>({device.view()}, device.h, cuda::quantize_options::from(options)).host(0);
  CHECK_NOTHROW(gptq::check(layer));
  CHECK(layer.order.empty());
  CHECK(layer.report.damping == expected.report.damping);
  CHECK(layer.report.dead_columns == expected.report.dead_columns);
  auto const found = test::examine(input, exact, {.static_groups = true}, layer);
  CHECK(close(layer.report.loss, found.loss, 1e-4));
  CHECK(close(layer.report.output_error, found.output_error, 1e-4));
  total.loss_error = std::max(total.loss_error, relative_difference(layer.report.loss, found.loss));
  total.output_error_error =
      std::max(total.output_error_error, relative_difference(layer.report.output_error, found.output_error));
  total.codes.add(layer.codes, expected.codes);
  double const rows = static_cast<double>(input.out);
  total.losses += rows * layer.report.loss / expected.report.loss;
  total.rows += rows;
  if (input.out < 70) return;
  CHECK(close(layer.report.loss, expected.report.loss, 0.02));
}

TEST_CASE("quality fast: codes and losses are close to the CPU's") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  test::for_each_format(test::cuda_formats{}, [&]<class Format>() {
    totals total;
    std::vector<gptq::quantize_options> all{{}, {.mse = true, .damping = 0.1}, {.act_order = true}};
    if (!Format::has_zero_point) all.push_back({.grid = gptq::grid_rule::signed_amax});
    for (auto const& options : all) {
      auto const input = random_input(70, 300, random);
      test::exact_hessian const exact(input, {.damping = options.damping});
      searched_as_cpu<Format>(input, exact, options, ctx, total);
    }
    total.print(gptq::to_string(gptq::to_spec<Format>()).c_str());
    CHECK(total.codes.share() > 0.99);
    CHECK(close(total.losses, total.rows, 1e-3));
  });
}

TEST_CASE("quality best: codes and losses are close to the CPU's") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  test::for_each_format(test::cuda_formats{}, [&]<class Format>() {
    totals total;
    index_t const shapes[][2] = {{70, 300}, {90, 700}};
    for (auto const& [out, in] : shapes) {
      auto const input = random_input(out, in, random);
      test::exact_hessian const exact(input, {});
      searched_as_cpu<Format>(input, exact, {.quality = best}, ctx, total);
    }
    total.print((gptq::to_string(gptq::to_spec<Format>()) + ", best").c_str());
    CHECK(total.codes.share() > 0.98);
    CHECK(close(total.losses, total.rows, 1e-3));
  });
}

TEST_CASE("held-out tokens: what is chosen by them is what the CPU chooses") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::asymmetric, 4, 32>;
  int fell_back = 0, damped = 0;
  auto const compare = [&](test::layer_input const& input, gptq::quantize_options const& options) {
    INFO("quality " << static_cast<int>(options.quality) << ", act_order " << options.act_order << ", "
                    << input.tokens << " tokens");
    auto const expected = test::quantize_on_cpu<format>(input, options);
    on_device const device(ctx, input);
    auto const layer = cuda::quantize<format>({device.view()}, device.h,
                                              cuda::quantize_options::from(options), device.others())
                           .host(0);
    CHECK_NOTHROW(gptq::check(layer));
    CHECK(layer.report.fell_back == expected.report.fell_back);
    CHECK(layer.report.damping == expected.report.damping);
    CHECK(layer.order == expected.order);
    CHECK(close(layer.report.held_out_error, expected.report.held_out_error, 0.01));
    CHECK(close(layer.report.output_error, expected.report.output_error, 0.01));
    agreement codes;
    codes.add(layer.codes, expected.codes);
    CHECK(codes.share() > 0.95);
    fell_back += layer.report.fell_back ? 1 : 0;
    damped += layer.report.damping > options.damping ? 1 : 0;
  };
  // Many tokens; few, of which too much is made without damping; and those of which plain GPTQ makes the
  // best.
  for (index_t const tokens : {900, 340}) {
    auto input = random_input(80, 256, random, tokens);
    input.held_out = random_sum(tokens, 256, random);
    for (gptq::quality const quality : {plain, fast, best}) compare(input, {.quality = quality});
    compare(input, {.quality = best, .act_order = true});
  }
  // Of few rows, and tokens that are nothing like those of the calibration, plain GPTQ often makes more.
  for (int trial = 0; trial < 12; ++trial) {
    auto input = random_input(1 + trial % 4, 96, random, 60);
    input.held_out = random_sum(200, 96, random);
    index_t const seen = 1 + trial % 3;  // inputs that they are not zero in, the last ones
    for (index_t i = 0; i < 96 * 96; ++i) {
      if (i % 96 < 96 - seen || i / 96 < 96 - seen) input.held_out[at(i)] = 0.0F;
    }
    for (gptq::quality const quality : {fast, best}) compare(input, {.quality = quality, .act_order = true});
  }
  std::printf("held-out tokens: plain was better %d times, more damping %d times\n", fell_back, damped);
  CHECK(fell_back > 0);
  CHECK(damped > 0);
}

TEST_CASE("held-out tokens: each of several layers chooses for itself") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::asymmetric, 4, 32>;
  auto input = random_input(90, 256, random, 300);
  input.held_out = random_sum(300, 256, random);
  for (std::size_t i = 0; i < at(40 * 256); ++i) input.weight[i] = 0.001F * static_cast<float>(i % 7);
  on_device const device(ctx, input);
  float const* const w = device.weight.data();
  index_t const first[] = {0, 40, 90};
  auto const layers =
      cuda::quantize<format>({{w, 40}, {w + 40 * 256, 50}}, device.h, {.quality = best}, device.others());
  for (index_t i = 0; i < 2; ++i) {
    auto const layer = layers.host(i);
    CHECK_NOTHROW(gptq::check(layer));
    auto const alone = cuda::quantize<format>({{w + first[i] * 256, first[i + 1] - first[i]}}, device.h,
                                              {.quality = best}, device.others())
                           .host(0);
    CHECK(layer.report.damping == alone.report.damping);
    CHECK(layer.report.fell_back == alone.report.fell_back);
    CHECK(close(layer.report.held_out_error, alone.report.held_out_error, 0.01));
  }
}

TEST_CASE("held-out tokens that do not fit are an error") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::symmetric, 4, 32>;
  auto const input = random_input(12, 64, random);
  on_device const device(ctx, input);
  auto const quantize = [&](cuda::hessian const& held_out) {
    (void)cuda::quantize<format>({device.view()}, device.h, {}, &held_out);
  };
  cuda::hessian const empty(ctx, 64);
  CHECK_THROWS_AS(quantize(empty), cuda::invalid_argument);
  auto const other = random_input(12, 72, random);
  on_device const wider(ctx, other);
  CHECK_THROWS_AS(quantize(wider.h), cuda::invalid_argument);
  auto spoilt = input.sum;
  spoilt[63 * 64 + 63] = std::numeric_limits<float>::infinity();
  auto const bad = cuda::hessian::from_sum(ctx, spoilt.data(), 64, 10.0, 1);
  CHECK(test::contains(test::error_of([&] { quantize(bad); }),
                       "entry (63, 63) of the held-out hessian is inf"));
}

TEST_CASE("quality fast: odd shapes, and several outer blocks of columns", "[slow]") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  totals total;
  for (auto const& [out, in] : {std::pair<index_t, index_t>{1, 8}, {17, 129}, {5, 1027}}) {
    auto const input = random_input(out, in, random);
    test::exact_hessian const exact(input, {});
    test::for_each_format(test::cuda_formats{},
                          [&]<class Format>() { searched_as_cpu<Format>(input, exact, {}, ctx, total); });
  }
  auto const input = random_input(24, 1152, random);  // in steps of update_sm90.cuh
  searched_as_cpu<gptq::format<gptq::symmetric, 4, 128>>(input, {input, {}}, {}, ctx, total);
  total.print("quality fast, several outer blocks");
  CHECK(total.codes.share() > 0.98);
  CHECK(close(total.losses, total.rows, 1e-3));
}

TEST_CASE("quality fast: layers that share an input are what each is alone") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::asymmetric, 4, 32>;
  auto const input = random_input(300, 640, random);
  on_device const device(ctx, input);
  float const* const w = device.weight.data();
  index_t const first[] = {0, 130, 131, 300};
  auto const layers = cuda::quantize<format>({{w, 130}, {w + 130 * 640, 1}, {w + 131 * 640, 169}}, device.h);
  REQUIRE(layers.size() == 3);
  for (index_t i = 0; i < 3; ++i) {
    auto const layer = layers.host(i);
    CHECK_NOTHROW(gptq::check(layer));
    auto const alone =
        cuda::quantize<format>({{w + first[i] * 640, first[i + 1] - first[i]}}, device.h).host(0);
    agreement codes;
    codes.add(layer.codes, alone.codes);
    CHECK(codes.share() > 0.98);
    CHECK(close(layer.report.loss, alone.report.loss, i == 1 ? 0.05 : 1e-3));
    CHECK(close(layer.report.output_error, alone.report.output_error, i == 1 ? 0.05 : 1e-3));
  }
}

TEST_CASE("the same for odd shapes, and for several outer blocks of columns", "[slow]") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  totals total;
  index_t const shapes[][2] = {{1, 8}, {17, 129}, {5, 1027}, {200, 1536}, {96, 2304}};
  for (auto const& [out, in] : shapes) {
    auto const input = random_input(out, in, random);
    gptq::quantize_options const options{.quality = plain, .act_order = in % 2 == 0};
    test::exact_hessian const exact(input, options);
    test::for_each_format(test::cuda_formats{},
                          [&]<class Format>() { same_as_cpu<Format>(input, exact, options, ctx, total); });
  }
  // The CPU's factor is float32: the more columns, the more of the rows have one where its rounding errors
  // decide a tie, and the rest of such a row follows.
  total.print("several outer blocks");
  CHECK(total.codes.share() > 0.995);
  CHECK(close(total.losses, total.rows, 1e-3));
}

TEST_CASE("several outer blocks of a layer whose rows are padded") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  totals total;
  auto const input = random_input(5, 1203, random);
  gptq::quantize_options const options{.quality = plain, .act_order = true};
  test::exact_hessian const exact(input, options);
  same_as_cpu<gptq::format<gptq::asymmetric, 4, 32>>(input, exact, options, ctx, total);
  same_as_cpu<gptq::format<gptq::half_step, 4, 24>>(input, exact, options, ctx, total);
  same_as_cpu<gptq::format<test::five_levels, 3, 1024, float>>(input, exact, options, ctx, total);
}

TEST_CASE("layers that share an input share a factorization") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::asymmetric, 4, 32>;
  auto const input = random_input(150, 200, random);
  on_device const device(ctx, input);
  float const* const w = device.weight.data();
  cuda::quantize_options const options{.quality = plain, .act_order = true};
  auto const whole = cuda::quantize<format>({{w, 150}}, device.h, options).host(0);
  auto const parts =
      cuda::quantize<format>({{w, 30}, {w + 30 * 200, 1}, {w + 31 * 200, 119}}, device.h, options);
  REQUIRE(parts.size() == 3);
  std::vector<std::uint8_t> codes, zeros;
  std::vector<float> scales;
  double loss = 0.0;
  for (index_t i = 0; i < parts.size(); ++i) {
    auto const layer = parts.host(i);
    CHECK_NOTHROW(gptq::check(layer));
    codes.insert(codes.end(), layer.codes.begin(), layer.codes.end());
    zeros.insert(zeros.end(), layer.zeros.begin(), layer.zeros.end());
    scales.insert(scales.end(), layer.scales.begin(), layer.scales.end());
    loss += layer.report.loss;
    CHECK(layer.report.output_error > 0.0);
  }
  CHECK(codes == whole.codes);
  CHECK(scales == whole.scales);
  CHECK(zeros == whole.zeros);
  CHECK(close(loss, whole.report.loss, 1e-12));
}

TEST_CASE("the same bits every time; TF32 costs little", "[slow]") {
  if (!test::have_gpu()) return;
  auto const quality = GENERATE(plain, fast, best);
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::fixed_zero, 4, 128>;
  auto const input = random_input(300, 1300, random);
  on_device const device(ctx, input);
  cuda::quantize_options options{.quality = quality, .act_order = true};
  double exact = 0.0;
  for (bool const tf32 : {false, true}) {
    options.tf32 = tf32;
    auto const once = cuda::quantize<format>({device.view()}, device.h, options).host(0);
    cuda::context other;
    on_device const again(other, input);
    auto const twice = cuda::quantize<format>({again.view()}, again.h, options).host(0);
    CHECK(once.codes == twice.codes);
    CHECK(once.scales == twice.scales);
    CHECK(once.zeros == twice.zeros);
    CHECK(once.report.loss == twice.report.loss);
    if (!tf32) exact = once.report.loss;
    CHECK(close(once.report.loss, exact, 1e-3));
  }
}

TEST_CASE("default options are the CPU's, and work") {
  cuda::quantize_options const ours;
  gptq::quantize_options const theirs;
  CHECK(ours.quality == theirs.quality);
  CHECK(ours.grid == theirs.grid);
  CHECK(ours.mse == theirs.mse);
  CHECK(ours.act_order == theirs.act_order);
  CHECK(ours.static_groups == theirs.static_groups);
  CHECK(ours.damping == theirs.damping);
  CHECK(ours.measure_output_error == theirs.measure_output_error);
  auto const taken = cuda::quantize_options::from({.quality = gptq::quality::best,
                                                   .grid = gptq::grid_rule::amax,
                                                   .mse = true,
                                                   .act_order = true,
                                                   .static_groups = true,
                                                   .damping = 0.5,
                                                   .measure_output_error = false});
  CHECK(taken.quality == gptq::quality::best);
  CHECK(taken.grid == gptq::grid_rule::amax);
  CHECK((taken.mse && taken.act_order && taken.static_groups && !taken.measure_output_error && !taken.tf32));
  CHECK(taken.damping == 0.5);
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  auto const input = random_input(33, 256, random);
  on_device const device(ctx, input);
  auto const layers = cuda::quantize<gptq::format<gptq::symmetric, 4, 128>>({device.view()}, device.h);
  CHECK(layers.report(0).loss > 0.0);
  CHECK(layers.report(0).output_error > 0.0);
}

TEST_CASE("where all inputs were zero weights are rounded to nearest") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::asymmetric, 4, 32>;
  auto input = random_input(40, 200, random);
  std::fill(input.sum.begin(), input.sum.end(), 0.0F);
  on_device const device(ctx, input);
  for (bool const act_order : {false, true}) {
    for (bool const static_groups : {false, true}) {
      gptq::quantize_options const options{.quality = act_order != static_groups ? plain : fast,
                                           .act_order = act_order,
                                           .static_groups = static_groups};
      auto const expected = test::round_on_cpu<format>(input, options);
      auto const layer =
          cuda::quantize<format>({device.view()}, device.h, cuda::quantize_options::from(options)).host(0);
      CHECK_NOTHROW(gptq::check(layer));
      CHECK(layer.codes == expected.codes);
      CHECK(layer.scales == expected.scales);
      CHECK(layer.zeros == expected.zeros);
      CHECK(layer.order.empty());
      CHECK(layer.report.dead_columns == 200);
      CHECK(layer.report.loss == 0.0);
      CHECK(std::isnan(layer.report.output_error));
    }
  }
}

TEST_CASE("damping is raised while H is not positive definite") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::symmetric, 4, 128>;
  auto const input = random_input(20, 256, random, 30);  // of rank 30
  on_device const device(ctx, input);
  for (gptq::quality const quality : {plain, fast}) {
    auto const layer =
        cuda::quantize<format>({device.view()}, device.h, {.quality = quality, .damping = 0.0});
    CHECK(layer.report(0).damping_raised > 0);
    CHECK(layer.report(0).damping > 0.0);
  }
}

TEST_CASE("bad input is an error that names it") {
  if (!test::have_gpu()) return;
  auto const quality = GENERATE(plain, fast);
  auto random = test::fresh_random();
  cuda::context ctx;
  using format = gptq::format<gptq::symmetric, 4, 32>;
  auto const input = random_input(12, 64, random);
  float const nan = std::numeric_limits<float>::quiet_NaN();
  auto const error_of = [&](test::layer_input const& bad, auto&& spoil) {
    on_device device(ctx, bad);
    return test::error_of([&] {
      spoil(device);
      (void)cuda::quantize<format>({device.view()}, device.h, {.quality = quality});
    });
  };
  auto const nothing = [](on_device&) {};
  CHECK(error_of(input, nothing).empty());
  {
    auto bad = input;
    bad.weight[5 * 64 + 3] = nan;
    CHECK(test::contains(error_of(bad, nothing), "row 5, column 3 is"));
  }
  {
    auto bad = input;
    for (std::size_t c = 0; c < 64; ++c) bad.weight[2 * 64 + c] = 1e7F;
    CHECK(test::contains(error_of(bad, nothing), "scale of row 2"));
  }
  auto const with_sum = [&](std::size_t column, std::size_t row, float value) {
    return error_of(input, [&, column, row, value](on_device& d) {
      auto changed = input.sum;
      changed[column * 64 + row] = value;
      d.h = cuda::hessian::from_sum(ctx, changed.data(), input.in, 10.0, 1);
    });
  };
  CHECK(test::contains(with_sum(4, 4, nan), "entry (4, 4) of the hessian"));
  CHECK(test::contains(with_sum(4, 9, nan), "of the hessian is"));
  CHECK(test::contains(with_sum(4, 4, -1e9F), "not positive definite"));

  on_device const device(ctx, input);
  auto const refused_quality = [&](gptq::quality other, char const* name) {
    auto const error =
        test::error_of([&] { (void)cuda::quantize<format>({device.view()}, device.h, {.quality = other}); });
    CHECK(test::contains(error, name));
  };
  refused_quality(gptq::quality::reference, "quality reference");
  auto const refused = [&](cuda::quantize_options const& options,
                           std::vector<cuda::weight_view> const& weights) {
    CHECK_THROWS_AS(cuda::quantize<format>(weights, device.h, options), cuda::invalid_argument);
  };
  refused({.quality = gptq::quality::reference}, {device.view()});
  refused({.damping = -1.0}, {device.view()});
  refused({}, {});
  refused({}, {{device.weight.data(), 0}});
  refused({}, {{nullptr, 3}});
  cuda::hessian const empty(ctx, 64);
  CHECK_THROWS_AS(cuda::quantize<format>({device.view()}, empty), cuda::invalid_argument);
}
