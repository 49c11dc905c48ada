// How columns are cut into chunks, and that prepared activations are as precise as activations.hpp states.
// Their bytes are in kernels_test.cpp, for every architecture.
#include <limits>

#include <gptq/packed.hpp>
#include <gptq/prepare.hpp>

#include "activation_model.hpp"
#include "catch.hpp"
#include "support.hpp"

using gptq::index_t;
using gptq::precision;

namespace {

constexpr int group_size = 200;  // a chunk of 128 and one of 72
using any_format = gptq::format<gptq::symmetric, 4, group_size>;
constexpr gptq::packed_layout<any_format> constant_layout{16, 300};
static_assert(gptq::workspace_bytes(constant_layout) == 3 * (128 + 12 + 4));
static_assert(gptq::workspace_bytes<precision::int23>(constant_layout, 5) == 15 * (3 * (128 + 12) + 4));
static_assert(gptq::workspace_bytes<precision::float32>(constant_layout, 2) == 6 * 128 * 4);
static_assert(std::is_trivially_copyable_v<gptq::activations<precision::int8>>);
static_assert(sizeof(gptq::digit_sums) == 12);

/// x' of x[tokens, in], from the digits of prepare().
template <precision P>
std::vector<double> precise_values(std::vector<float> const& x, index_t in) {
  gptq::packed_view<any_format> view;
  view.out = 16;
  view.in = in;
  auto const tokens = static_cast<index_t>(x.size()) / in;
  std::vector<std::uint8_t> workspace(gptq::workspace_bytes<P>(view.layout(), tokens));
  auto const a = gptq::prepare<P>(view, x.data(), tokens, workspace.data());
  auto const chunks = test::chunks_of(in, group_size);
  std::vector<double> values(x.size());
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    for (index_t token = 0; token < tokens; ++token) {
      index_t const cell = static_cast<index_t>(c) * tokens + token;
      for (index_t i = 0; i < chunks[c].columns; ++i) {
        double sum = 0.0;
        for (int p = 0; p < gptq::digit_planes(P); ++p) {
          index_t const row = cell * gptq::digit_planes(P) + p;
          sum += std::ldexp(static_cast<double>(a.digits[row * a.chunks.stride() + i]), 8 * p);
        }
        values[static_cast<std::size_t>(token * in + chunks[c].first + i)] =
            sum * static_cast<double>(a.scales[cell]);
      }
    }
  }
  return values;
}

/// The largest |x' - x| as a share of what is stated, which must not be more than 1.
template <precision P>
double share_of_stated_error(std::vector<float> const& x, index_t in) {
  auto const precise = precise_values<P>(x, in);
  double worst = 0.0;
  for (index_t token = 0; token < static_cast<index_t>(x.size()) / in; ++token) {
    for (auto const& chunk : test::chunks_of(in, group_size)) {
      auto const first = static_cast<std::size_t>(token * in + chunk.first);
      double amax = 0.0;
      for (index_t i = 0; i < chunk.columns; ++i) {
        amax = std::max(amax, static_cast<double>(std::abs(x[first + static_cast<std::size_t>(i)])));
      }
      double const stated = amax * test::stated_error(P) + 0x1p-100;
      for (index_t i = 0; i < chunk.columns; ++i) {
        std::size_t const at = first + static_cast<std::size_t>(i);
        worst = std::max(worst, std::abs(precise[at] - static_cast<double>(x[at])) / stated);
      }
    }
  }
  return worst;
}

template <precision P>
void check_precision(double at_least) {
  test::random random(static_cast<std::uint32_t>(P));
  double worst = 0.0;
  for (int round = 0; round < 40; ++round) {
    index_t const in = 1 + random.below(700);
    auto x = random.normals(static_cast<std::size_t>(3 * in));
    // Magnitudes from below those that count to the largest.
    float const magnitude =
        std::ldexp(1.0F, round % 8 == 7 ? -102 + random.below(6) : random.below(220) - 95);
    for (float& v : x) v *= magnitude;
    if (round == 1) x[0] = std::numeric_limits<float>::max();
    double const share = share_of_stated_error<P>(x, in);
    CAPTURE(round, in, magnitude);
    CHECK(share <= 1.0);
    worst = std::max(worst, share);
  }
  // Halfway between two digits is as far off as it gets; a bound that is never approached would be a slack
  // one.
  CHECK(worst > at_least);
}

}  // namespace

TEST_CASE("chunks", "[activations]") {
  test::random random(1);
  for (int round = 0; round < 500; ++round) {
    index_t const in = random.below(900);
    index_t const group = round % 5 == 0 ? std::max<index_t>(in, 1) : 8 * (1 + random.below(70));
    gptq::chunk_layout const layout{in, group};
    auto const chunks = test::chunks_of(in, group);
    CAPTURE(in, group);
    REQUIRE(layout.count() == static_cast<index_t>(chunks.size()));
    CHECK(layout.columns() == std::min<index_t>(group, 128));
    CHECK(layout.stride() == test::stride_of(group));
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      auto const at = static_cast<index_t>(c);
      CHECK(layout.group(at) == chunks[c].group);
      CHECK(layout.columns(at) == chunks[c].columns);
      CHECK(layout.group(at) * group + layout.offset_in_group(at) == chunks[c].first);
    }
  }
  CHECK(gptq::chunk_layout{0, 0}.count() == 0);
  CHECK(gptq::workspace_bytes(
            gptq::packed_layout<gptq::format<gptq::symmetric, 4, gptq::whole_row>>{16, 0}) == 0);
}

TEST_CASE("as precise as stated", "[activations]") {
  check_precision<precision::int8>(0.98);
  check_precision<precision::int15>(0.98);
  check_precision<precision::int23>(0.6);
}

TEST_CASE("known digits", "[activations]") {
  gptq::packed_view<any_format> view;
  view.in = 5;
  std::vector<float> const x{32512.0F, 128.0F, -128.0F, -129.0F, 255.5F};
  std::vector<std::uint8_t> workspace(gptq::workspace_bytes<precision::int15>(view.layout()));
  auto const a = gptq::prepare<precision::int15>(view, x.data(), 1, workspace.data());
  CHECK(a.scales[0] == 1.0F);
  // 127 * 256; 256 - 128; -128; -256 + 127; 256
  std::int8_t const low[] = {0, -128, -128, 127, 0}, high[] = {127, 1, 0, -1, 1};
  for (int i = 0; i < 5; ++i) {
    CAPTURE(i);
    CHECK(int{a.digits[i]} == int{low[i]});
    CHECK(int{a.digits[128 + i]} == int{high[i]});
  }
  CHECK(a.sums[0].all == 129);
  CHECK(a.sums[1].all == -128);
  CHECK(a.sums[0].of_pairs[0][0] == 128);
  CHECK(a.sums[0].of_pairs[0][1] == 1);
}

TEST_CASE("shares of prepared tokens return the same", "[activations]") {
  test::random random(2);
  auto const x = random.normals(7 * 300);
  gptq::packed_view<any_format> view;
  view.in = 300;
  std::vector<std::uint8_t> workspace(gptq::workspace_bytes<precision::int8>(view.layout(), 7));
  auto const whole = gptq::prepare(view, x.data(), 7, workspace.data());
  auto const share = gptq::prepare(view, x.data(), 7, workspace.data(), {3, 5});
  CHECK((whole.digits == share.digits && whole.sums == share.sums && whole.scales == share.scales));
  CHECK((whole.tokens == 7 && share.tokens == 7));
}
