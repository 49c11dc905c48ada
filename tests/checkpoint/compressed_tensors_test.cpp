// The tensors of compressed-tensors checkpoints: written here bit by bit, and read.
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include <gptq/checkpoint/compressed_tensors.hpp>
#include <gptq/packed.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::format;
using gptq::index_t;
using gptq::whole_row;
using gptq::checkpoint::compressed_scale;
using gptq::checkpoint::compressed_view;
using gptq::checkpoint::from_compressed;
using gptq::checkpoint::scale_bytes;
using gptq::checkpoint::scales_fit_float16;
using test::error_of;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

template <class T>
std::vector<std::byte> bytes_of(std::vector<T> const& values) {
  auto const bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

/// Signed numbers as the format has them: each plus 2^(bits-1), bit after bit, a stream padded to whole
/// words.
std::vector<std::uint32_t> stream_of(std::vector<int> const& numbers, int bits) {
  std::vector<bool> stream;
  for (int const number : numbers) {
    for (int b = 0; b < bits; ++b) stream.push_back(((number + (1 << (bits - 1))) >> b & 1) != 0);
  }
  std::vector<std::uint32_t> words((stream.size() + 31) / 32);
  for (std::size_t i = 0; i < stream.size(); ++i) {
    words[i / 32] |= static_cast<std::uint32_t>(stream[i]) << (i % 32);
  }
  return words;
}

/// A layer in numbers, and its tensors.
struct compressed_case {
  index_t out = 0, in = 0;
  std::vector<float> weights;  ///< [out, in] what all of it means
  compressed_scale scale_type = compressed_scale::float16;
  std::vector<std::byte> packed, scale, zero_point, g_idx, shape;

  compressed_view view() const { return {out, in, packed, scale, scale_type, zero_point, g_idx, shape}; }
};

/// Random codes and zero points, and scales that their type holds.
compressed_case random_case(int bits, index_t out, index_t in, index_t group_size, bool asymmetric,
                            compressed_scale type, bool act_order) {
  test::random random(81);
  compressed_case c;
  c.out = out;
  c.in = in;
  c.scale_type = type;
  index_t const groups = (in + group_size - 1) / group_size;
  int const half = 1 << (bits - 1);

  std::vector<std::int32_t> group(at(in));
  // 7 and the widths here have no common factor, so this visits every column.
  for (index_t k = 0; k < in; ++k) {
    group[at(act_order ? (7 * k + 5) % in : k)] = static_cast<std::int32_t>(k / group_size);
  }
  if (act_order) c.g_idx = bytes_of(group);

  std::vector<float> scales(at(out * groups));
  std::vector<std::uint16_t> halves;
  for (float& scale : scales) {
    scale = random.uniform();
    if (type == compressed_scale::float16) {
      halves.push_back(gptq::float16(scale).bits);
      scale = gptq::float16::from_bits(halves.back());
    } else if (type == compressed_scale::bfloat16) {
      halves.push_back(gptq::bfloat16(scale).bits);
      scale = gptq::bfloat16::from_bits(halves.back());
    }
  }
  c.scale = type == compressed_scale::float32 ? bytes_of(scales) : bytes_of(halves);

  std::vector<int> zeros(scales.size());
  if (asymmetric) {
    for (int& zero : zeros) zero = random.below(2 * half) - half;
    // [ceil(out bits / 32), groups]: a stream of outputs a group, whose words lie `groups` apart.
    std::vector<std::uint32_t> words(at((out * bits + 31) / 32 * groups));
    for (index_t g = 0; g < groups; ++g) {
      std::vector<int> of_group;
      for (index_t n = 0; n < out; ++n) of_group.push_back(zeros[at(n * groups + g)]);
      auto const stream = stream_of(of_group, bits);
      for (std::size_t w = 0; w < stream.size(); ++w) words[w * at(groups) + at(g)] = stream[w];
    }
    c.zero_point = bytes_of(words);
  }
  std::vector<std::uint32_t> packed;
  for (index_t n = 0; n < out; ++n) {
    std::vector<int> codes;
    for (index_t k = 0; k < in; ++k) {
      codes.push_back(random.below(2 * half) - half);
      auto const grid = at(n * groups + group[at(k)]);
      c.weights.push_back(scales[grid] * static_cast<float>(codes.back() - zeros[grid]));
    }
    auto const stream = stream_of(codes, bits);
    packed.insert(packed.end(), stream.begin(), stream.end());
  }
  c.packed = bytes_of(packed);
  c.shape = bytes_of(std::vector<std::int64_t>{out, in});
  return c;
}

template <class Format>
void check_read(compressed_case const& c) {
  CAPTURE(gptq::to_string(gptq::to_spec<Format>()), c.out, c.in);
  auto const layer = from_compressed<Format>(c.view());
  std::vector<float> weights(c.weights.size());
  dequantize(gptq::pack(layer).view(), weights.data());
  CHECK(weights == c.weights);
}

/// The same as a layer of 5 x 40, so that both streams end within a word; float32 scales read any type.
template <class Scheme, int Bits, int GroupSize>
void check_widths() {
  constexpr bool asymmetric = Scheme::has_zero_point;
  for (bool const act_order : {false, true}) {
    for (auto const& [out, in] : {std::pair<index_t, index_t>{5, 40}, {33, 96}}) {
      index_t const group_size = GroupSize == whole_row ? in : GroupSize;
      for (auto const type :
           {compressed_scale::float16, compressed_scale::bfloat16, compressed_scale::float32}) {
        auto const c = random_case(Bits, out, in, group_size, asymmetric, type, act_order);
        check_read<format<Scheme, Bits, GroupSize, float>>(c);
        if (type != compressed_scale::float32) check_read<format<Scheme, Bits, GroupSize>>(c);
      }
    }
  }
}

using s4 = format<gptq::fixed_zero, 4, 32>;
using a4 = format<gptq::asymmetric, 4, 32>;

}  // namespace

TEST_CASE("compressed tensors decode to the weights that they were made of", "[checkpoint]") {
  check_widths<gptq::fixed_zero, 4, 32>();
  check_widths<gptq::asymmetric, 4, 8>();
  check_widths<gptq::fixed_zero, 8, whole_row>();
  check_widths<gptq::asymmetric, 8, 32>();
  check_widths<gptq::asymmetric, 3, 32>();
  check_widths<gptq::fixed_zero, 2, 32>();
}

TEST_CASE("what compressed tensors may leave out", "[checkpoint]") {
  auto c = random_case(4, 16, 64, 32, false, compressed_scale::float16, false);
  c.shape.clear();
  check_read<s4>(c);
  c.g_idx.assign(4 * 64, std::byte{0xff});  // registered, and never filled
  check_read<s4>(c);
  c.zero_point.assign(2 * 2 * 4, std::byte{0x88});  // all of them 0
  check_read<s4>(c);
  auto const ordered = random_case(4, 16, 64, 32, false, compressed_scale::float16, true);
  CHECK(from_compressed<s4>(ordered.view()).order.size() == 64);
}

TEST_CASE("scales that float16 holds, and others", "[checkpoint]") {
  compressed_case c = random_case(4, 8, 64, 32, false, compressed_scale::bfloat16, false);
  CHECK(scales_fit_float16(c.view()));
  std::uint16_t const tiny = gptq::bfloat16(3.5e-8F).bits;  // between the two smallest numbers of float16
  std::memcpy(c.scale.data() + 2 * (2 * 3 + 1), &tiny, 2);
  CHECK(!scales_fit_float16(c.view()));
  CHECK(error_of([&] { from_compressed<s4>(c.view()); }) ==
        "compressed-tensors: the scale of row 3, group 1 is 3.49245965e-08, which float16 cannot hold; a "
        "format "
        "with float32 scales can");
  CHECK(error_of([&] { from_compressed<format<gptq::fixed_zero, 4, 32, float>>(c.view()); }).empty());

  c = random_case(4, 8, 64, 32, false, compressed_scale::float32, false);
  CHECK(!scales_fit_float16(c.view()));
  float const large = 65536.0F;
  for (std::size_t i = 0; i < 16; ++i) std::memcpy(c.scale.data() + 4 * i, &large, 4);
  CHECK(!scales_fit_float16(c.view()));
  float const fitting = -0.25F;
  for (std::size_t i = 0; i < 16; ++i) std::memcpy(c.scale.data() + 4 * i, &fitting, 4);
  CHECK(scales_fit_float16(c.view()));
}

TEST_CASE("a bad scale in the first, a middle and the last place", "[checkpoint]") {
  for (auto const type : {compressed_scale::float16, compressed_scale::bfloat16, compressed_scale::float32}) {
    for (index_t const place : {0, 1, 17, 34, 35}) {  // of 12 rows in 3 groups
      compressed_case c = random_case(4, 12, 72, 32, true, type, true);
      auto const bytes = at(scale_bytes(type));
      for (std::size_t i = 0; i < c.scale.size(); ++i) c.scale[i] = std::byte{0};  // 0 fits any type
      for (std::uint32_t const infinity : {0x7f800000U, 0xff800000U, 0x7fc00000U}) {
        // The upper half of a float32 is a bfloat16; float16 has fewer bits of exponent.
        auto const half = static_cast<std::uint16_t>(infinity >> 16);
        std::uint16_t const float16_bits =
            static_cast<std::uint16_t>((half & 0x8000U) | (half == 0x7fc0 ? 0x7e00U : 0x7c00U));
        auto* const target = c.scale.data() + at(place) * bytes;
        if (type == compressed_scale::float32) std::memcpy(target, &infinity, 4);
        if (type == compressed_scale::bfloat16) std::memcpy(target, &half, 2);
        if (type == compressed_scale::float16) std::memcpy(target, &float16_bits, 2);
        CHECK(scales_fit_float16(c.view()));  // one that is not finite is no reason for another format
        CHECK(error_of([&] { from_compressed<format<gptq::asymmetric, 4, 32, float>>(c.view()); }) ==
              "compressed-tensors: the scale of row " + std::to_string(place / 3) + ", group " +
                  std::to_string(place % 3) + " is " +
                  (infinity == 0x7f800000U   ? "inf"
                   : infinity == 0xff800000U ? "-inf"
                                             : "nan"));
      }
      if (type == compressed_scale::float16) continue;
      float const large = 65536.0F;
      auto const large_half = gptq::bfloat16(large).bits;
      std::memcpy(c.scale.data() + at(place) * bytes,
                  type == compressed_scale::float32 ? static_cast<void const*>(&large) : &large_half, bytes);
      CHECK_FALSE(scales_fit_float16(c.view()));
    }
  }
}

TEST_CASE("damaged compressed tensors", "[checkpoint]") {
  struct damaged {
    std::string error;
    std::function<void(compressed_case&)> change;
  };
  // 12 x 72 codes of 4 bits: 12 rows of 9 words, groups of 32, 32 and 8 columns.
  damaged const cases[] = {
      {"a layer of 0 x 72", [](auto& c) { c.out = 0; }},
      {"a layer of 12 x -8", [](auto& c) { c.in = -8; }},
      {"a layer of 4611686018427387904 x 72", [](auto& c) { c.out = index_t{1} << 62; }},
      {"a layer of 12 x 9223372036854775807", [](auto& c) { c.in = std::numeric_limits<index_t>::max(); }},
      {"weight_shape is 12 x 72, not 12 x 71", [](auto& c) { c.in = 71; }},
      {"weight_shape is 12 x 72, not 72 x 12", [](auto& c) { std::swap(c.out, c.in); }},
      {"weight_shape has 15 bytes, not 16", [](auto& c) { c.shape.pop_back(); }},
      {"weight_shape has 24 bytes, not 16", [](auto& c) { c.shape.resize(24); }},
      {"weight_shape is 12 x -1, not 12 x 72",
       [](auto& c) { std::fill(c.shape.begin() + 8, c.shape.end(), std::byte{0xff}); }},
      {"weight_packed has 432 bytes, not 480", [](auto& c) { c.in = 73, c.shape.clear(); }},
      {"weight_packed has 432 bytes, not 12884901888",
       [](auto& c) { c.in = index_t{1} << 31, c.shape.clear(); }},
      {"weight_packed has 428 bytes, not 432", [](auto& c) { c.packed.resize(428); }},
      {"weight_packed has 0 bytes, not 432", [](auto& c) { c.packed.clear(); }},
      {"weight_scale has 70 bytes, not 72", [](auto& c) { c.scale.resize(70); }},
      {"weight_scale has 74 bytes, not 72", [](auto& c) { c.scale.resize(74); }},
      {"weight_scale has 72 bytes, not 144", [](auto& c) { c.scale_type = compressed_scale::float32; }},
      {"weight_zero_point has 20 bytes, not 24", [](auto& c) { c.zero_point.resize(20); }},
      {"weight_zero_point has 28 bytes, not 24", [](auto& c) { c.zero_point.resize(28); }},
      {"weight_g_idx has 284 bytes, not 288", [](auto& c) { c.g_idx.resize(284); }},
      {"weight_g_idx of column 5 is 3, but there are 3 groups", [](auto& c) { c.g_idx[20] = std::byte{3}; }},
      {"weight_g_idx of column 71 is -1, but there are 3 groups",
       [](auto& c) { std::fill(c.g_idx.end() - 4, c.g_idx.end(), std::byte{0xff}); }},
      {"weight_g_idx gives group 0 72 columns, not 32",
       [](auto& c) { std::fill(c.g_idx.begin(), c.g_idx.end(), std::byte{0}); }},
      {"the scale of row 3, group 1 is inf",
       [](auto& c) { c.scale[2 * 10] = std::byte{0}, c.scale[2 * 10 + 1] = std::byte{0x7c}; }},
      {"the scale of row 0, group 2 is nan",
       [](auto& c) { c.scale[2 * 2] = std::byte{0}, c.scale[2 * 2 + 1] = std::byte{0x7e}; }},
  };
  for (auto const& d : cases) {
    compressed_case c = random_case(4, 12, 72, 32, true, compressed_scale::float16, true);
    REQUIRE(error_of([&] { from_compressed<a4>(c.view()); }).empty());
    d.change(c);
    CHECK(error_of([&] { from_compressed<a4>(c.view()); }) == "compressed-tensors: " + d.error);
    c.zero_point.assign(c.zero_point.size(), std::byte{0x88});
    CHECK(error_of([&] { from_compressed<s4>(c.view()); }) == "compressed-tensors: " + d.error);
  }
  compressed_case c = random_case(4, 12, 72, 32, true, compressed_scale::float16, false);
  c.zero_point.assign(24, std::byte{0x88});
  c.zero_point[4 * (3 * 1 + 1)] = std::byte{0x87};  // second word of group 1: its first entry is row 8
  CHECK(error_of([&] { from_compressed<s4>(c.view()); }) ==
        "compressed-tensors: the zero point of row 8, group 1 is stored as 7, not 8 as in symmetric layers");
  CHECK(error_of([&] { from_compressed<a4>(c.view()); }).empty());
  c.zero_point.clear();
  CHECK(error_of([&] { from_compressed<a4>(c.view()); }) ==
        "compressed-tensors: weight_zero_point has 0 bytes, not 24");
}
