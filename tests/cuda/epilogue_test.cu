// Steps on the device: done once to each result, with its token and row, in their order; strides; gated
// pairs.
#include <array>
#include <cmath>

#include <gptq/cuda/epilogue.cuh>
#include <gptq/cuda/prepare.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

/// A step of somebody's own: counts how often each result comes by.
struct count_results {
  int* seen;
  index_t stride;
  GPTQ_HOST_DEVICE void operator()(float*, index_t token, index_t row, index_t count) const noexcept {
    for (index_t i = 0; i < count; ++i) ++seen[token * stride + row + i];
  }
};

__global__ void apply_functions(float const* x, float* y, int count) {
  int const i = static_cast<int>(threadIdx.x);
  if (i >= count) return;
  auto const apply = [&](auto const& step, int which) {
    float v = x[i];
    step(&v, 0, 0, 1);
    y[which * count + i] = v;
  };
  apply(gptq::relu{}, 0);
  apply(gptq::silu{}, 1);
  apply(gptq::gelu{}, 2);
  apply(gptq::clamp_to{-0.5F, 2.0F}, 3);
}

using q4 = format<gptq::symmetric, 4, 128>;

struct stepped_product {
  index_t out, in, tokens, x_stride, y_stride;
  gptq::packed_matrix<q4> packed;
  cuda::prepacked_matrix<q4> w;
  test::device_vector<gptq::float16> x;
  std::vector<float> bias, residual;

  stepped_product(index_t rows, index_t columns, index_t n, test::random& random)
      : out(rows),
        in(columns),
        tokens(n),
        x_stride(columns + 8),
        y_stride(rows + 3),
        packed(test::random_matrix<q4>(rows, columns, false, random)),
        w(packed.view()),
        x([&] {
          std::vector<gptq::float16> values;
          for (index_t i = 0; i < n * (columns + 8); ++i) values.push_back(gptq::float16(random.normal()));
          return values;
        }()),
        bias(random.normals(test::at(rows))),
        residual(random.normals(test::at(n * (rows + 3)))) {}

  /// Calls multiply(x, y, options, steps...) without steps and with them, and compares.
  void check(auto&& multiply, std::size_t workspace_bytes) const {
    test::device_vector<std::uint8_t> const workspace(workspace_bytes);
    cuda::product_options const options{.workspace = workspace.data(), .workspace_bytes = workspace.size()};
    gptq::input<__half> const from{reinterpret_cast<__half const*>(x.data()), x_stride};
    auto const size = test::at(tokens * y_stride);
    test::device_vector<float> const plain(size), y(size), device_bias(bias), device_residual(residual);
    test::device_vector<int> const seen(std::vector<int>(size, 0));
    multiply(from, gptq::output{plain.data(), y_stride}, options);
    multiply(from, gptq::output{y.data(), y_stride}, options, gptq::scale_by{0.75F},
             gptq::add_bias{device_bias.data()}, gptq::add_residual{device_residual.data(), y_stride},
             count_results{seen.data(), y_stride});
    auto const sums = plain.host(), results = y.host();
    auto const times = seen.host();
    int wrong = 0, written = 0, counted = 0;
    for (index_t token = 0; token < tokens; ++token) {
      for (index_t row = 0; row < y_stride; ++row) {
        auto const i = test::at(token * y_stride + row);
        counted += times[i] != (row < out ? 1 : 0);
        if (row >= out) {
          written += !std::isnan(results[i]) + !std::isnan(sums[i]);
          continue;
        }
        float volatile expected = sums[i] * 0.75F;  // each rounded
        expected = expected + bias[test::at(row)];
        expected = expected + residual[i];
        wrong += results[i] != expected;
      }
    }
    CHECK(wrong == 0);
    CHECK(written == 0);
    CHECK(counted == 0);
  }
};

}  // namespace

TEST_CASE("functions of steps are those of the host") {
  if (!test::have_gpu()) return;
  std::vector<float> const x = {-100.0F, -3.0F, -0.5F, -0.0F, 0.0F, 1e-3F, 1.0F, 2.0F, 30.0F, NAN, INFINITY};
  auto const count = static_cast<int>(x.size());
  test::device_vector<float> const in(x), out(4 * x.size());
  apply_functions<<<1, 32>>>(in.data(), out.data(), count);
  auto const y = out.host();
  auto const check = [&](auto const& step, std::size_t which) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      float v = x[i];
      step(&v, 0, 0, 1);
      INFO("function " << which << " of " << x[i]);
      CHECK(((std::isnan(v) && std::isnan(y[which * x.size() + i])) ||
             y[which * x.size() + i] == Approx(v).epsilon(1e-5).margin(1e-6)));
    }
  };
  check(gptq::relu{}, 0);
  check(gptq::silu{}, 1);
  check(gptq::gelu{}, 2);
  check(gptq::clamp_to{-0.5F, 2.0F}, 3);
}

TEST_CASE("steps are done to every result once, with strides") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  // gemv, with 19 tokens in two parts; products by warps or warpgroups, with and without splits; no columns
  // at all.
  for (auto const& [out, in, tokens] : {std::array<index_t, 3>{40, 264, 1},
                                        {2200, 264, 3},
                                        {100, 1000, 19},
                                        {260, 136, 40},
                                        {50, 4104, 70},
                                        {7, 0, 3}}) {
    INFO(out << " x " << in << ", " << tokens << " tokens");
    stepped_product const p(out, in, tokens, random);
    p.check(
        [&](auto const& x, auto const& y, auto const& options, auto const&... steps) {
          if (tokens == 19) return cuda::gemv(p.w.view(), x, p.tokens, y, options, steps...);
          cuda::gemm(p.w.view(), x, p.tokens, y, options, steps...);
        },
        std::max(cuda::workspace_bytes<__half, float>(p.w.view(), tokens),
                 cuda::gemv_workspace_bytes<__half>(p.w.view(), tokens)));
  }
}

TEST_CASE("steps after products of int8") {
  if (!test::have_gpu()) return;
  if (cuda::device::current().capability != 90) return;
  auto random = test::fresh_random();
  for (auto const& [out, in, tokens] : {std::array<index_t, 3>{300, 264, 130}, {50, 4104, 70}}) {
    stepped_product const p(out, in, tokens, random);
    test::device_vector<std::uint8_t> const memory(cuda::activation_bytes(in, tokens));
    p.check(
        [&](auto const& x, auto const& y, auto const& options, auto const&... steps) {
          cuda::gemm(p.w.view(), cuda::prepare(p.w.view(), x, p.tokens, memory.data()), y, options, steps...);
        },
        cuda::int8_workspace_bytes(p.w.view(), tokens));
  }
}

TEST_CASE("a gated pair is the product of both, one through an activation") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  for (auto const& [out, in, tokens] :
       {std::array<index_t, 3>{40, 264, 1}, {264, 520, 30}, {300, 392, 130}}) {
    INFO(out << " x " << in << ", " << tokens << " tokens");
    auto const gate = test::random_matrix<q4>(out, in, false, random),
               up = test::random_matrix<q4>(out, in, false, random);
    cuda::prepacked_matrix<q4> const device_gate(gate.view()), device_up(up.view());
    std::vector<gptq::float16> x;
    for (index_t i = 0; i < tokens * in; ++i) x.push_back(gptq::float16(random.normal()));
    std::vector<double> gates(test::at(tokens * out)), expected(gates.size());
    gptq::reference::gemm(gate.view(), x.data(), tokens, gates.data());
    gptq::reference::gemm(up.view(), x.data(), tokens, expected.data());
    for (std::size_t i = 0; i < gates.size(); ++i) expected[i] *= gates[i] / (1.0 + std::exp(-gates[i]));
    test::device_vector<gptq::float16> const device_x(x), y(gates.size());
    test::device_vector<std::uint8_t> const workspace(
        cuda::gated_workspace_bytes<__half, __half>(device_up.view(), tokens));
    auto const* const from = reinterpret_cast<__half const*>(device_x.data());
    auto* const to = reinterpret_cast<__half*>(y.data());
    cuda::product_options options{.workspace = workspace.data(), .workspace_bytes = workspace.size() - 1};
    CHECK_THROWS_AS(cuda::gated_gemm(device_gate.view(), device_up.view(), from, tokens, gptq::output{to},
                                     gptq::silu{}, options),
                    cuda::invalid_argument);
    options.workspace_bytes = workspace.size();
    cuda::gated_gemm(device_gate.view(), device_up.view(), from, tokens, gptq::output{to}, gptq::silu{},
                     options);
    auto const result = y.host();
    double error = 0.0, size = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      double const off = static_cast<double>(static_cast<float>(result[i])) - expected[i];
      error += off * off, size += expected[i] * expected[i];
    }
    CHECK(std::sqrt(error) <= 3e-3 * std::sqrt(size));
  }
}

TEST_CASE("calls with strides refuse those that are too short") {
  if (!test::have_gpu()) return;
  auto* const p = reinterpret_cast<std::uint32_t*>(256);
  cuda::prepacked_view<q4> const w{
      .codes = p, .scales = reinterpret_cast<gptq::float16*>(p), .out = 128, .in = 256};
  auto* const x = reinterpret_cast<__half*>(p);
  CHECK_THROWS_AS(cuda::gemm(w, gptq::input<__half>{x, 255}, 2, gptq::output{x}), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::gemv(w, x, 2, gptq::output{x, 127}), cuda::invalid_argument);
}
