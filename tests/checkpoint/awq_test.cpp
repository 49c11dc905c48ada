// The tensors of AWQ checkpoints: written here by the published rule, in text, and read.
#include <cstring>
#include <functional>
#include <limits>

#include <gptq/checkpoint/awq.hpp>
#include <gptq/packed.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::format;
using gptq::index_t;
using gptq::whole_row;
using gptq::checkpoint::awq_view;
using gptq::checkpoint::from_awq;
using test::error_of;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A layer in numbers, and its tensors.
struct awq_case {
  index_t out = 16, in = 96, groups = 3;
  std::vector<int> codes;             // [in, out]
  std::vector<int> zeros;             // [groups, out]
  std::vector<gptq::float16> scales;  // [groups, out]
  std::vector<std::uint32_t> qweight, qzeros;

  awq_view view() const {
    return {out, in, std::as_bytes(std::span(qweight)), std::as_bytes(std::span(qzeros)),
            std::as_bytes(std::span(scales))};
  }
};

/// What AutoAWQ does with a matrix[rows, out]: for i in 0..7, word |= column order_map[i] << 4 i.
std::vector<std::uint32_t> gemm_words(std::vector<int> const& matrix, index_t out) {
  constexpr int order_map[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  std::vector<std::uint32_t> words(matrix.size() / 8);
  for (std::size_t w = 0; w < words.size(); ++w) {
    std::size_t const row = w / at(out / 8);
    std::size_t const first = row * at(out) + w % at(out / 8) * 8;
    for (int i = 0; i < 8; ++i) {
      words[w] |= static_cast<std::uint32_t>(matrix[first + at(order_map[i])]) << (4 * i);
    }
  }
  return words;
}

awq_case random_case(index_t out, index_t in, index_t groups) {
  test::random random(71);
  awq_case c{out, in, groups, {}, {}, {}, {}, {}};
  for (index_t i = 0; i < in * out; ++i) c.codes.push_back(random.below(16));
  for (index_t i = 0; i < groups * out; ++i) {
    c.zeros.push_back(random.below(16));
    c.scales.emplace_back(random.uniform());
  }
  c.qweight = gemm_words(c.codes, out);
  c.qzeros = gemm_words(c.zeros, out);
  return c;
}

/// Padding included.
template <class Format>
bool same_bytes(gptq::packed_view<Format> const& a, gptq::packed_view<Format> const& b) {
  auto const layout = a.layout();
  auto const same = [](auto const* p, auto const* q, index_t n) {
    return std::memcmp(p, q, at(n) * sizeof *p) == 0;
  };
  return a.out == b.out && a.in == b.in && same(a.codes, b.codes, layout.code_bytes()) &&
         same(a.scales, b.scales, layout.scale_count()) && same(a.zeros, b.zeros, layout.zero_bytes());
}

template <class Format>
void check_read(awq_case const& c) {
  auto const layer = from_awq<Format>(c.view());
  check(layer);
  for (int const parts : {1, 3}) {
    auto const one_by_one = [](int n, auto const& f) {
      for (int part = 0; part < n; ++part) f(part);
    };
    auto const packed = gptq::checkpoint::to_packed<Format>(c.view(), one_by_one, parts);
    CHECK(same_bytes(packed.view(), gptq::pack(layer).view()));
  }
  CHECK(layer.order.empty());
  std::vector<float> weights(at(c.out * c.in));
  dequantize(gptq::pack(layer).view(), weights.data());
  index_t const group_size = c.in / c.groups;
  int wrong = 0;
  for (index_t k = 0; k < c.in; ++k) {
    for (index_t n = 0; n < c.out; ++n) {
      auto const grid = at(k / group_size * c.out + n);
      float const expected =
          static_cast<float>(c.scales[grid]) * static_cast<float>(c.codes[at(k * c.out + n)] - c.zeros[grid]);
      wrong += weights[at(n * c.in + k)] != expected;
    }
  }
  CHECK(wrong == 0);
}

using a32 = format<gptq::asymmetric, 4, 32>;

}  // namespace

TEST_CASE("AWQ tensors decode to the weights that they were made of", "[checkpoint]") {
  check_read<a32>(random_case(16, 96, 3));
  check_read<format<gptq::asymmetric, 4, 64, float>>(random_case(40, 128, 2));
  check_read<format<gptq::asymmetric, 4, whole_row>>(random_case(8, 72, 1));
  check_read<format<gptq::asymmetric, 4, whole_row>>(random_case(200, 77, 1));
}

TEST_CASE("AWQ words have the published order", "[checkpoint]") {
  // One input, outputs 0..7 with codes 0..7: nibbles 0, 2, 4, 6, 1, 3, 5, 7 from the lowest.
  std::uint32_t const qweight = 0x75316420;
  std::uint32_t const qzeros = 0x0000000f;  // that of output 0
  std::vector<gptq::float16> const scales(8, gptq::float16(1.0F));
  auto const layer = from_awq<format<gptq::asymmetric, 4, whole_row>>(
      {8, 1, std::as_bytes(std::span(&qweight, 1)), std::as_bytes(std::span(&qzeros, 1)),
       std::as_bytes(std::span(scales))});
  CHECK(layer.codes == std::vector<std::uint8_t>{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(layer.zeros == std::vector<std::uint8_t>{15, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("tensors at odd addresses", "[checkpoint]") {
  awq_case const c = random_case(16, 96, 3);
  auto const expected = from_awq<a32>(c.view());
  std::vector<std::byte> copies[3];
  auto const moved = [&](std::span<std::byte const> bytes, std::vector<std::byte>& copy) {
    copy.assign(1, std::byte{0});
    copy.insert(copy.end(), bytes.begin(), bytes.end());
    return std::span<std::byte const>(copy).subspan(1);
  };
  auto view = c.view();
  view.qweight = moved(view.qweight, copies[0]);
  view.qzeros = moved(view.qzeros, copies[1]);
  view.scales = moved(view.scales, copies[2]);
  auto const read = from_awq<a32>(view);
  CHECK(read.codes == expected.codes);
  CHECK(read.scales == expected.scales);
  CHECK(read.zeros == expected.zeros);
}

TEST_CASE("damaged AWQ tensors", "[checkpoint]") {
  struct damaged {
    std::string error;
    std::function<void(awq_case&)> change;
  };
  // 16 x 96: 192 words of codes, 3 groups of 2 words of zero points and 16 scales.
  damaged const cases[] = {
      {"15 x 96 codes do not fill whole 32-bit words; the outputs must be a multiple of 8",
       [](auto& c) { c.out = 15; }},
      {"0 x 96 codes do not fill whole 32-bit words; the outputs must be a multiple of 8",
       [](auto& c) { c.out = 0; }},
      {"16 x 0 codes do not fill whole 32-bit words; the outputs must be a multiple of 8",
       [](auto& c) { c.in = 0; }},
      {"16 x -96 codes do not fill whole 32-bit words; the outputs must be a multiple of 8",
       [](auto& c) { c.in = -96; }},
      {"4611686018427387904 x 96 codes do not fill whole 32-bit words; the outputs must be a multiple of 8",
       [](auto& c) { c.out = index_t{1} << 62; }},
      {"16 x 9223372036854775807 codes do not fill whole 32-bit words; the outputs must be a multiple of 8",
       [](auto& c) { c.in = std::numeric_limits<index_t>::max(); }},
      {"qweight has 768 bytes, not 1536", [](auto& c) { c.out = 32; }},
      {"qweight has 768 bytes, not 17179869184", [](auto& c) { c.in = index_t{1} << 31; }},
      {"qweight has 764 bytes, not 768", [](auto& c) { c.qweight.pop_back(); }},
      {"qweight has 0 bytes, not 768", [](auto& c) { c.qweight.clear(); }},
      {"qzeros has 20 bytes, not 24", [](auto& c) { c.qzeros.pop_back(); }},
      {"qzeros has 28 bytes, not 24", [](auto& c) { c.qzeros.push_back(0); }},
      {"scales has 94 bytes, not 96", [](auto& c) { c.scales.pop_back(); }},
      {"scales has 98 bytes, not 96", [](auto& c) { c.scales.push_back({}); }},
      {"the scale of row 3, group 1 is inf",
       [](auto& c) { c.scales[16 + 3] = gptq::float16::from_bits(0x7c00); }},
      {"the scale of row 0, group 2 is nan",
       [](auto& c) { c.scales[32] = gptq::float16::from_bits(0x7e00); }},
  };
  for (auto const& d : cases) {
    awq_case c = random_case(16, 96, 3);
    d.change(c);
    CHECK(error_of([&] { from_awq<a32>(c.view()); }) == "AWQ checkpoint: " + d.error);
  }
  for (std::size_t const place : {0U, 1U, 23U, 46U, 47U}) {  // of 3 groups of 16 rows
    awq_case c = random_case(16, 96, 3);
    c.scales[place] = gptq::float16::from_bits(0xfc00);
    CHECK(error_of([&] { from_awq<a32>(c.view()); }) == "AWQ checkpoint: the scale of row " +
                                                            std::to_string(place % 16) + ", group " +
                                                            std::to_string(place / 16) + " is -inf");
  }
  // The right bytes, read with another group size.
  CHECK(error_of([] { from_awq<format<gptq::asymmetric, 4, 64>>(random_case(16, 96, 3).view()); }) ==
        "AWQ checkpoint: qzeros has 24 bytes, not 16");
}
