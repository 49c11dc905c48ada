// Products of int8 activations: digits and bytes of codes as documented, sums as exact as said, bounds that
// hold.
#include <algorithm>
#include <cmath>
#include <limits>

#include <gptq/cuda/gemm.cuh>
#include <gptq/cuda/prepare.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

/// Digits and scales of x[tokens, in] in stored order, once more and plainly: [token, column] and [token,
/// chunk].
struct plain_digits {
  index_t in, chunks;
  std::vector<int> digits;
  std::vector<float> scales;

  plain_digits(std::vector<float> const& x, index_t columns, std::vector<std::int32_t> const& order)
      : in(columns), chunks((columns + 127) / 128), digits(x.size()) {
    for (index_t token = 0; token < static_cast<index_t>(x.size()) / in; ++token) {
      for (index_t chunk = 0; chunk < chunks; ++chunk) {
        index_t const first = 128 * chunk, last = std::min(first + 128, in);
        auto const at = [&](index_t p) {
          return x[test::at(token * in + (order.empty() ? p : index_t{order[test::at(p)]}))];
        };
        float largest = 0.0F;
        bool finite = true;
        for (index_t p = first; p < last; ++p) {
          finite = finite && std::isfinite(at(p));
          largest = std::max(largest, std::abs(at(p)));
        }
        bool const counts = finite && largest >= 0x1p-100F;
        scales.push_back(counts ? largest / 127.0F : finite ? 0.0F : std::numeric_limits<float>::quiet_NaN());
        float const steps = counts ? 127.0F / largest : 0.0F;
        for (index_t p = first; counts && p < last; ++p) {
          digits[test::at(token * in + p)] = static_cast<int>(std::nearbyint(at(p) * steps));
        }
      }
    }
  }
  float value(index_t token, index_t p) const {
    return scales[test::at(token * chunks + p / 128)] * static_cast<float>(digits[test::at(token * in + p)]);
  }
};

/// Activations with magnitudes that differ from token to token and chunk to chunk.
template <class X>
std::vector<test::host_number<X>> random_activations(index_t tokens, index_t in, test::random& random) {
  std::vector<test::host_number<X>> x;
  for (index_t i = 0; i < tokens * in; ++i) {
    float const size = 0.125F * static_cast<float>(1 + (i / in * 7 + i % in / 128 * 3) % 16);
    x.push_back(test::host_number<X>(size * random.normal()));
  }
  return x;
}
template <class T>
std::vector<float> floats(std::vector<T> const& x) {
  std::vector<float> values;
  for (T const v : x) values.push_back(static_cast<float>(v));
  return values;
}

template <class Format>
struct prepared_product {
  gptq::packed_matrix<Format> packed;
  cuda::prepacked_matrix<Format> w;
  prepared_product(index_t out, index_t in, bool permuted, test::random& random)
      : packed(test::random_matrix<Format>(out, in, permuted, random)), w(packed.view()) {}

  /// y[tokens, out] and, behind it, bytes that have to stay poisoned.
  template <class X, class Y>
  std::vector<test::host_number<Y>> multiply(std::vector<test::host_number<X>> const& x, index_t tokens,
                                             int splits) const {
    test::device_vector<test::host_number<X>> const device_x(x);
    test::device_vector<std::uint8_t> const memory(cuda::activation_bytes(w.view().in, tokens));
    auto const a =
        cuda::prepare(w.view(), reinterpret_cast<X const*>(device_x.data()), tokens, memory.data());
    auto const count = test::at(tokens * w.view().out);
    test::device_vector<test::host_number<Y>> const y(count + 64);
    auto* const to = reinterpret_cast<Y*>(y.data());
    if (splits == 0) {  // as gemm() decides
      test::device_vector<std::uint8_t> const space(cuda::int8_workspace_bytes(w.view(), tokens));
      cuda::gemm(w.view(), a, to, {.workspace = space.data(), .workspace_bytes = space.size()});
    } else {
      test::device_vector<std::uint8_t> const space(4 * test::at(splits) * count);
      cuda::detail::run_int8_gemm(w.view(), a, cuda::detail::plain_results(to, w.view().out),
                                  {splits % 2 == 0 ? 1 : cuda::detail::int8_row_tiles<Format>, splits},
                                  {.workspace = space.data(), .workspace_bytes = space.size()});
    }
    auto result = y.host();
    for (std::size_t i = count; i < result.size(); ++i) CHECK(std::isnan(static_cast<float>(result[i])));
    result.resize(count);
    return result;
  }
};

bool have_int8() {
  if (!test::have_gpu()) return false;
  using q4 = format<gptq::symmetric, 4, 128>;
  return cuda::device::current().capability == 90 &&
         cuda::detail::compiled_for(
             cuda::detail::int8_gemm<q4, cuda::detail::results<__half>, cuda::detail::int8_block<1>>,
             cuda::detail::int8_block<1>::threads);
}

template <class Format, class X, class Y>
void check_int8(index_t out, index_t in, index_t tokens, int splits, bool permuted, test::random& random) {
  INFO(gptq::to_string(gptq::to_spec<Format>())
       << ", " << out << " x " << in << ", " << tokens << " tokens of " << sizeof(X) << " to " << sizeof(Y)
       << " bytes, " << splits << " splits" << (permuted ? ", permuted" : ""));
  prepared_product<Format> product(out, in, permuted, random);
  auto const x = random_activations<X>(tokens, in, random);
  auto const y = product.template multiply<X, Y>(x, tokens, splits);
  auto const values = floats(x);
  plain_digits const digits(values, in, product.packed.order());
  std::vector<double> weights(test::at(out * in));
  gptq::reference::dequantize(product.packed.view(), weights.data());
  std::vector<double> expected;
  int beyond = 0;
  for (index_t token = 0; token < tokens; ++token) {
    for (index_t row = 0; row < out; ++row) {
      double sum = 0.0, exact = 0.0, bound = 0.0;
      for (index_t p = 0; p < in; ++p) {
        index_t const column = permuted ? index_t{product.packed.order()[test::at(p)]} : p;
        double const weight = weights[test::at(row * in + column)];
        sum += weight * static_cast<double>(digits.value(token, p));
        exact += weight * static_cast<double>(values[test::at(token * in + column)]);
        bound += std::abs(weight) * 127.0 / 253.0 *
                 static_cast<double>(digits.scales[test::at(token * digits.chunks + p / 128)]);
      }
      expected.push_back(sum);
      double const rounding = 10.0 * test::tolerance<Y> * (std::abs(exact) + bound) + 1e-30;
      beyond += !(std::abs(static_cast<double>(static_cast<float>(y[test::at(token * out + row)])) - exact) <=
                  bound + rounding);
    }
  }
  CHECK(beyond == 0);
  test::check_close(y, expected);
}

/// Signed bytes of all lanes against the codes of the packed matrix.
template <class Format>
int wrong_bytes(test::random& random) {
  auto const packed = test::random_matrix<Format>(33, 264, false, random);
  cuda::prepacked_layout<Format> const layout{33, 264};
  std::vector<std::uint8_t> memory(test::at(layout.bytes(false)));
  auto const w = cuda::prepack(packed.view(), memory.data());
  int wrong = 0;
  auto const check_lane = [&](index_t tile, index_t chunk, int lane) {
    std::uint32_t words[2 * Format::bits];
    for (int i = 0; i < 2 * Format::bits; ++i) {
      words[i] = w.codes[(tile * layout.chunks() + chunk) * layout.chunk_words +
                         cuda::detail::word_offset<Format::bits>(lane, i)];
    }
    auto const check_bytes = [&]<int Step, bool Upper, int Half>() {
      index_t const row = 16 * tile + lane / 4 + (Upper ? 8 : 0);
      index_t const first = 128 * chunk + 32 * Step + 8 * (lane % 4) + 4 * Half;
      for (int i = 0; i < 4; ++i) {
        index_t const column = first + (i == 1 ? 2 : i == 2 ? 1 : i);
        if (row >= 33 || column >= 264) continue;
        float zero = Format::levels.zero;
        if constexpr (Format::has_zero_point) {
          zero = static_cast<float>(packed.view().grid(row, column / Format::group_columns(264)).zero);
        }
        std::uint32_t const word =
            cuda::detail::signed_bytes<Format, Step, Upper, Half>(words, static_cast<std::uint32_t>(zero));
        auto const byte = static_cast<std::int8_t>(word >> (8 * i) & 0xff);
        float const expected = static_cast<float>(packed.view().code(row, column)) - zero;
        wrong += cuda::detail::int8_levels<Format>::unit * static_cast<float>(byte) != expected;
      }
    };
    auto const check_step = [&]<int Step>() {
      check_bytes.template operator()<Step, false, 0>();
      check_bytes.template operator()<Step, false, 1>();
      check_bytes.template operator()<Step, true, 0>();
      check_bytes.template operator()<Step, true, 1>();
    };
    check_step.template operator()<0>();
    check_step.template operator()<1>();
    check_step.template operator()<2>();
    check_step.template operator()<3>();
  };
  for (index_t tile = 0; tile < layout.row_tiles(); ++tile) {
    for (index_t chunk = 0; chunk < layout.chunks(); ++chunk) {
      for (int lane = 0; lane < 32; ++lane) check_lane(tile, chunk, lane);
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("codes become signed bytes, their zero points taken off") {
  auto random = test::fresh_random();
  CHECK(wrong_bytes<format<gptq::symmetric, 4, 128>>(random) == 0);
  CHECK(wrong_bytes<format<gptq::half_step, 4, 128>>(random) == 0);
  CHECK(wrong_bytes<format<gptq::asymmetric, 4, 32>>(random) == 0);
  CHECK(wrong_bytes<format<gptq::symmetric, 3, 64>>(random) == 0);
  CHECK(wrong_bytes<format<gptq::asymmetric, 3, 128>>(random) == 0);
  CHECK(wrong_bytes<format<gptq::half_step, 2, 128>>(random) == 0);
  CHECK(wrong_bytes<format<gptq::asymmetric, 2, 128>>(random) == 0);
  CHECK(wrong_bytes<format<gptq::symmetric, 8, 128>>(random) == 0);
  STATIC_REQUIRE(!cuda::int8_format<format<gptq::asymmetric, 8, 128>>);
}

TEST_CASE("every digit has a place of its own, where the tensor cores look for its column") {
  std::vector<int> seen(128 * 128);
  for (int token = 0; token < 128; ++token) {
    for (int column = 0; column < 128; ++column) ++seen[test::at(cuda::detail::digit_place(token, column))];
  }
  CHECK(std::count(seen.begin(), seen.end(), 1) == 128 * 128);
  // Column 32k + 8t + 4h + i of token 3, as activations.cuh has it: unit 2k + h, digit 4t + {0, 2, 1, 3}[i].
  CHECK(cuda::detail::digit_place(3, 32 * 2 + 8 * 1 + 4 * 1 + 2) ==
        3 * 128 + 16 * ((2 * 2 + 1) ^ 3) + 4 * 1 + 1);
}

TEST_CASE("prepare has the digits and scales that it says") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  using q4 = format<gptq::symmetric, 4, 128>;
  auto const check = [&]<class X>(X, index_t tokens, index_t in, bool permuted, index_t shift) {
    INFO(tokens << " tokens, " << in << " columns of " << sizeof(X) << " bytes"
                << (permuted ? ", permuted" : ""));
    auto packed = test::random_matrix<q4>(16, in, permuted, random);
    cuda::prepacked_matrix<q4> const w(packed.view());
    auto x = random_activations<X>(tokens, in, random);
    x[0] = test::host_number<X>(std::numeric_limits<float>::infinity());
    x.back() = test::host_number<X>(std::numeric_limits<float>::quiet_NaN());
    for (index_t p = 0; p < std::min<index_t>(in, 128); ++p) x[test::at(in + p)] = test::host_number<X>(0.0F);
    auto shifted = x;
    shifted.insert(shifted.begin(), test::at(shift), test::host_number<X>(0.0F));
    test::device_vector<test::host_number<X>> const device_x(shifted);
    test::device_vector<std::uint8_t> const memory(cuda::activation_bytes(in, tokens) + 64);
    auto const a =
        cuda::prepare(w.view(), reinterpret_cast<X const*>(device_x.data() + shift), tokens, memory.data());
    auto const bytes = memory.host();
    plain_digits const expected(floats(x), in, packed.order());
    index_t const chunks = a.chunks();
    int wrong_digits = 0, wrong_scales = 0;
    for (index_t token = 0; token < 128 * a.token_blocks(); ++token) {
      for (index_t chunk = 0; chunk < chunks; ++chunk) {
        index_t const stage = token / 128 * chunks + chunk;
        for (int column = 0; column < 128; ++column) {
          index_t const p = 128 * chunk + column;
          int const digit = token < tokens && p < in ? expected.digits[test::at(token * in + p)] : 0;
          wrong_digits +=
              digit !=
              static_cast<std::int8_t>(bytes[test::at(
                  stage * 16384 + cuda::detail::digit_place(static_cast<int>(token % 128), column))]);
        }
        float scale = 0.0F;
        std::memcpy(&scale, bytes.data() + a.digit_bytes() + 4 * (stage * 128 + token % 128), 4);
        float const should = token < tokens ? expected.scales[test::at(token * chunks + chunk)] : 0.0F;
        wrong_scales += scale != should && !(std::isnan(scale) && std::isnan(should));
      }
    }
    CHECK(wrong_digits == 0);
    CHECK(wrong_scales == 0);
    for (std::size_t i = bytes.size() - 64; i < bytes.size(); ++i) CHECK(bytes[i] == 0xff);
  };
  check(__half{}, 3, 264, false, 0);
  check(__half{}, 130, 128, true, 0);
  check(__half{}, 2, 1001, false, 1);
  check(__nv_bfloat16{}, 129, 136, false, 0);
  check(float{}, 5, 392, false, 1);
  check(float{}, 5, 392, true, 0);
}

TEST_CASE("gemm of int8 activations is as exact as said") {
  if (!have_int8()) return;
  auto random = test::fresh_random();
  using gptq::whole_row;
  check_int8<format<gptq::symmetric, 4, 128>, __half, __half>(40, 264, 5, 0, false, random);
  check_int8<format<gptq::symmetric, 4, 128>, __half, float>(260, 1032, 130, 1, true, random);
  check_int8<format<gptq::symmetric, 4, 128>, __half, float>(300, 2056, 70, 3, false, random);
  check_int8<format<gptq::symmetric, 4, 128>, __half, float>(300, 2056, 70, 2, false, random);
  check_int8<format<gptq::asymmetric, 4, 128>, __half, float>(530, 1160, 33, 2, false, random);
  check_int8<format<gptq::asymmetric, 4, 32>, float, float>(100, 392, 129, 1, true, random);
  check_int8<format<gptq::half_step, 4, 64>, __nv_bfloat16, float>(100, 392, 17, 1, false, random);
  check_int8<format<gptq::symmetric, 3, whole_row>, __half, __nv_bfloat16>(64, 1000, 140, 2, false, random);
  check_int8<format<gptq::asymmetric, 3, 128>, __half, float>(64, 520, 40, 1, false, random);
  check_int8<format<gptq::half_step, 2, 128>, __half, float>(64, 520, 40, 1, false, random);
  check_int8<format<gptq::symmetric, 8, 128, float>, __half, float>(64, 1544, 40, 1, false, random);
}

TEST_CASE("gemm of int8 activations: what is not finite stays in its token") {
  if (!have_int8()) return;
  auto random = test::fresh_random();
  index_t const tokens = 131, in = 392, out = 70;
  prepared_product<format<gptq::asymmetric, 4, 128>> const product(out, in, false, random);
  auto x = random_activations<__half>(tokens, in, random);
  auto const inf = gptq::float16(std::numeric_limits<float>::infinity());
  x[0] = inf, x[test::at(64 * in + 200)] = inf,
  x.back() = gptq::float16(std::numeric_limits<float>::quiet_NaN());
  auto const y = product.multiply<__half, float>(x, tokens, 2);
  int wrong = 0;
  for (index_t i = 0; i < tokens * out; ++i) {
    index_t const token = i / out;
    bool const bad = token == 0 || token == 64 || token == tokens - 1;
    wrong += std::isnan(y[test::at(i)]) != bad;
  }
  CHECK(wrong == 0);
}

TEST_CASE("gemm of int8 activations refuses what cannot be, and does nothing where nothing is to do") {
  if (!have_int8()) return;
  using q4 = format<gptq::symmetric, 4, 128>;
  auto* const p = reinterpret_cast<std::uint32_t*>(256);
  cuda::prepacked_view<q4> w{
      .codes = p, .scales = reinterpret_cast<gptq::float16*>(p), .out = 128, .in = 4096};
  auto* const x = reinterpret_cast<__half*>(p);
  CHECK_THROWS_AS(cuda::prepare(w, x, 70000, p), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::prepare(w, x, -1, p), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::prepare(w, x, 4, reinterpret_cast<char*>(p) + 64), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::prepare(w, static_cast<__half*>(nullptr), 4, p), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::prepare(w, x, 4, nullptr), cuda::invalid_argument);
  cuda::int8_activations const a{.digits = reinterpret_cast<std::int8_t*>(p),
                                 .scales = reinterpret_cast<float*>(p),
                                 .in = 4096,
                                 .tokens = 300};
  CHECK(cuda::int8_workspace_bytes(w, 300) > 0);
  CHECK_THROWS_AS(cuda::gemm(w, a, x), cuda::invalid_argument);  // no workspace
  auto other = a;
  other.in = 4224;
  CHECK_THROWS_AS(cuda::gemm(w, other, x), cuda::invalid_argument);
  other = a;
  other.order = reinterpret_cast<std::int32_t*>(p);
  CHECK_THROWS_AS(cuda::gemm(w, other, x), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::gemm(w, a, static_cast<__half*>(nullptr)), cuda::invalid_argument);
  w.out = 0;
  CHECK_NOTHROW(cuda::gemm(w, a, x));
  CHECK_NOTHROW(cuda::gemm(w, cuda::prepare(w, x, 0, nullptr), x));
  w.out = 7, w.in = 0;
  test::device_vector<float> const y(7 * 3);
  cuda::gemm(w, cuda::prepare(w, x, 3, nullptr), y.data());
  CHECK(y.host() == std::vector<float>(7 * 3));
}
