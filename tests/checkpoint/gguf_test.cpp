// GGUF files and the blocks in them: read from bytes written out by hand, written and read back, and refused
// with the reason.
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <gptq/checkpoint/gguf.hpp>

#include "bad_inputs.hpp"
#include "catch.hpp"
#include "files.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using gptq::float16;
using gptq::format;
using gptq::index_t;
using gptq::quantized_layer;
using gptq::whole_row;
using test::contains;
using test::error_of;
using test::scratch;
using test::write_file;
using namespace gptq::checkpoint;

/// Bytes as the format's definition puts them, one field after the other.
struct bytes {
  std::string text;

  template <class T>
  bytes& put(T value) {
    text.append(reinterpret_cast<char const*>(&value), sizeof value);
    return *this;
  }
  bytes& u32(std::uint32_t v) { return put(v); }
  bytes& u64(std::uint64_t v) { return put(v); }
  bytes& half(float v) { return put(float16(v).bits); }
  bytes& raw(std::string const& v) {
    text += v;
    return *this;
  }
  bytes& string(std::string const& v) { return u64(v.size()).raw(v); }
  bytes& head(std::uint64_t tensors, std::uint64_t entries) {
    return raw("GGUF").u32(3).u64(tensors).u64(entries);
  }
  bytes& tensor(std::string const& name, std::vector<std::uint64_t> const& extents, std::uint32_t type,
                std::uint64_t offset) {
    string(name).u32(static_cast<std::uint32_t>(extents.size()));
    for (auto const e : extents) u64(e);
    return u32(type).u64(offset);
  }
  bytes& pad(std::size_t to = 32) { return raw(std::string((to - text.size() % to) % to, '\0')); }

  std::span<std::byte const> view() const { return std::as_bytes(std::span(text)); }
};

gguf_file parse(std::string const& contents) { return {std::as_bytes(std::span(contents)), "x"}; }

template <class T>
std::span<std::byte const> bytes_of(std::vector<T> const& values) {
  return std::as_bytes(std::span(values));
}

/// 32 codes of 4 bits as Q4_0 and Q4_1 have them.
void put_nibbles(bytes& b, std::vector<int> const& q) {
  for (std::size_t j = 0; j < 16; ++j) b.put(static_cast<std::uint8_t>(q[j] | q[j + 16] << 4));
}

/// Random codes in the scheme's range, scales of either sign that float16 holds.
template <class Format>
quantized_layer<Format> random_layer(index_t out, index_t in, std::uint32_t seed) {
  test::random random(seed);
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  constexpr auto levels = Format::levels;
  for (index_t i = 0; i < out * in; ++i) {
    layer.codes.push_back(
        static_cast<std::uint8_t>(levels.min_code + random.below(levels.max_code - levels.min_code + 1)));
  }
  for (index_t i = 0; i < out * layer.groups(); ++i) {
    layer.scales.push_back(float16(random.uniform()));
    if (Format::has_zero_point) {
      layer.zeros.push_back(static_cast<std::uint8_t>(random.below(1 << Format::bits)));
    }
  }
  return layer;
}

/// What a layer's codes stand for.
template <class Format>
std::vector<float> weights_of(quantized_layer<Format> const& layer) {
  std::vector<float> weights;
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t p = 0; p < layer.in; ++p) {
      weights.push_back(Format::levels.decode(layer.code(row, p), layer.grid(row, layer.group(p))));
    }
  }
  return weights;
}

template <class Format>
ggml_tensor tensor_of(quantized_layer<Format> const& layer, ggml_type type,
                      std::vector<std::byte> const& blocks) {
  return {type, {static_cast<std::size_t>(layer.out), static_cast<std::size_t>(layer.in)}, blocks};
}

/// A small whole file: three kinds of metadata, two tensors.
bytes good_file() {
  bytes b;
  b.head(2, 3);
  b.string("general.architecture").u32(8).string("llama");
  b.string("llama.block_count").u32(4).u32(6);
  b.string("tokenizer.ggml.tokens").u32(9).u32(8).u64(2).string("<s>").string("\xe2\x96\x81the");
  b.tensor("norm", {2}, 0, 0).tensor("weight", {32, 2}, 2, 32).pad();
  b.put(1.5F).put(-2.0F).pad();
  for (float const d : {0.5F, -2.0F}) {
    b.half(d);
    for (int j = 0; j < 16; ++j) b.put(static_cast<std::uint8_t>(j | (15 - j) << 4));
  }
  return b;
}

}  // namespace

// ---- blocks ---------------------------------------------------------------------------------------------

TEST_CASE("blocks written out by hand decode to what the format says", "[ggml]") {
  std::vector<int> q(32);
  for (int j = 0; j < 32; ++j) q[static_cast<std::size_t>(j)] = (5 * j + 3) % 16;
  std::vector<int> fifth(32);
  for (int j = 0; j < 32; ++j) fifth[static_cast<std::size_t>(j)] = j % 3 == 0 ? 1 : 0;
  std::uint32_t fifth_bits = 0;
  for (std::uint32_t j = 0; j < 32; ++j) fifth_bits |= static_cast<std::uint32_t>(fifth[j]) << j;
  auto const decoded = [](ggml_type type, bytes const& b) {
    return to_float(ggml_tensor{type, {block_size(type)}, b.view()});
  };
  bytes q4_0, q4_1, q5_0, q5_1, q8_0;
  put_nibbles(q4_0.half(-0.25F), q);
  put_nibbles(q4_1.half(0.25F).half(-3.0F), q);
  put_nibbles(q5_0.half(0.5F).u32(fifth_bits), q);
  put_nibbles(q5_1.half(0.5F).half(1.25F).u32(fifth_bits), q);
  q8_0.half(0.125F);
  for (int j = 0; j < 32; ++j) q8_0.put(static_cast<std::int8_t>(8 * j - 128));
  for (std::size_t j = 0; j < 32; ++j) {
    INFO(j);
    auto const nibble = static_cast<float>(q[j]);
    auto const five = static_cast<float>(q[j] + 16 * fifth[j]);
    CHECK(decoded(ggml_type::q4_0, q4_0)[j] == -0.25F * (nibble - 8.0F));
    CHECK(decoded(ggml_type::q4_1, q4_1)[j] == 0.25F * nibble - 3.0F);
    CHECK(decoded(ggml_type::q5_0, q5_0)[j] == 0.5F * (five - 16.0F));
    CHECK(decoded(ggml_type::q5_1, q5_1)[j] == 0.5F * five + 1.25F);
    CHECK(decoded(ggml_type::q8_0, q8_0)[j] == 0.125F * static_cast<float>(8 * static_cast<int>(j) - 128));
  }
  bytes iq4_nl;
  put_nibbles(iq4_nl.half(-0.5F), q);
  constexpr std::array<int, 16> levels{-127, -104, -83, -65, -49, -35, -22, -10,
                                       1,    13,   25,  38,  53,  69,  89,  113};
  for (std::size_t j = 0; j < 32; ++j) {
    CHECK(decoded(ggml_type::iq4_nl, iq4_nl)[j] ==
          -0.5F * static_cast<float>(levels[static_cast<std::size_t>(q[j])]));
  }
  CHECK(decoded(ggml_type::f32, bytes().put(-1.5F)) == std::vector{-1.5F});
  CHECK(decoded(ggml_type::f16, bytes().half(65504.0F)) == std::vector{65504.0F});
  CHECK(decoded(ggml_type::bf16, bytes().put(std::uint16_t{0x4049})) == std::vector{3.140625F});
}

TEST_CASE("super-blocks of 256", "[ggml]") {
  test::random random(7);
  SECTION("Q4_K") {
    std::vector<int> scale(8), minimum(8), q(256);
    for (auto* const six : {&scale, &minimum}) {
      for (int& s : *six) s = random.below(64);
    }
    for (int& code : q) code = random.below(16);
    std::vector<int> packed(12);
    for (std::size_t r = 0; r < 4; ++r) {
      packed[r] = scale[r] | (scale[r + 4] >> 4) << 6;
      packed[r + 4] = minimum[r] | (minimum[r + 4] >> 4) << 6;
      packed[r + 8] = (scale[r + 4] & 15) | (minimum[r + 4] & 15) << 4;
    }
    bytes b;
    b.half(0.5F).half(-0.25F);
    for (int const p : packed) b.put(static_cast<std::uint8_t>(p));
    for (std::size_t chunk = 0; chunk < 256; chunk += 64) {
      for (std::size_t l = 0; l < 32; ++l) {
        b.put(static_cast<std::uint8_t>(q[chunk + l] | q[chunk + l + 32] << 4));
      }
    }
    REQUIRE(b.text.size() == 144);
    auto const y = to_float(ggml_tensor{ggml_type::q4_k, {256}, b.view()});
    int wrong = 0;
    for (std::size_t i = 0; i < 256; ++i) {
      wrong += y[i] !=
               0.5F * static_cast<float>(scale[i / 32] * q[i]) + 0.25F * static_cast<float>(minimum[i / 32]);
    }
    CHECK(wrong == 0);
  }
  SECTION("Q6_K") {
    std::vector<int> scale(16), q(256);
    for (int& s : scale) s = random.below(256) - 128;
    for (int& code : q) code = random.below(64);
    std::vector<int> low(128), high(64);
    for (std::size_t i = 0; i < 256; ++i) {
      // 128 at a time: quarters 0 and 2 in the nibbles of bytes 0..31, 1 and 3 in those of bytes 32..63.
      std::size_t const l = i % 32;
      std::size_t const quarter = i / 32 % 4;
      low[i / 128 * 64 + quarter % 2 * 32 + l] |= (q[i] & 15) << (quarter < 2 ? 0 : 4);
      high[i / 128 * 32 + l] |= (q[i] >> 4) << (2 * quarter);
    }
    bytes b;
    for (int const v : low) b.put(static_cast<std::uint8_t>(v));
    for (int const v : high) b.put(static_cast<std::uint8_t>(v));
    for (int const v : scale) b.put(static_cast<std::int8_t>(v));
    b.half(-0.125F);
    REQUIRE(b.text.size() == 210);
    auto const y = to_float(ggml_tensor{ggml_type::q6_k, {256}, b.view()});
    int wrong = 0;
    for (std::size_t i = 0; i < 256; ++i) {
      wrong += y[i] != -0.125F * static_cast<float>(scale[i / 16] * (q[i] - 32));
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("part of a tensor", "[ggml]") {
  auto const file = good_file();
  auto const parsed = parse(file.text);
  ggml_tensor const& weight = parsed.tensors().at("weight");
  std::vector<float> row(32);
  to_float(weight, 32, row);
  CHECK(row[0] == 16.0F);
  CHECK(row[31] == 16.0F);
  CHECK(error_of([&] { to_float(weight, 64, row); }) == "tensor Q4_0 [2, 32] has no elements 64 to 96");
  CHECK(error_of([&] { to_float(weight, 16, row); }) ==
        "tensor Q4_0 [2, 32] is decoded in whole blocks of 32");
  CHECK(error_of([&] {
          to_float(ggml_tensor{ggml_type::iq4_xs, {256}, {}});
        }) == "tensor IQ4_XS [256] cannot be read as numbers");
  CHECK_FALSE(is_decodable(ggml_type::q8_k));
}

TEST_CASE("values are encoded", "[ggml]") {
  std::vector<float> values(64);
  test::random random(3);
  for (float& v : values) v = random.normal();
  values[40] = 127.0F;  // makes the scale of the second block 1
  values[41] = 0.5F;    // ties go away from zero
  values[42] = -1.5F;
  for (ggml_type const type : {ggml_type::f32, ggml_type::f16, ggml_type::bf16, ggml_type::q8_0}) {
    auto const encoded = from_float(type, values);
    auto const back = to_float(ggml_tensor{type, {64}, encoded});
    REQUIRE(back.size() == values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      INFO(type_name(type) << ' ' << i);
      if (type == ggml_type::f32) CHECK(back[i] == values[i]);
      if (type == ggml_type::f16) CHECK(back[i] == float(float16(values[i])));
      if (type == ggml_type::bf16) CHECK(back[i] == float(gptq::bfloat16(values[i])));
      if (type == ggml_type::q8_0 && i >= 32) CHECK(back[i] == std::round(values[i]));
      if (type == ggml_type::q8_0 && i < 32) CHECK(std::abs(back[i] - values[i]) < 4.0F / 127 / 2 * 1.01F);
    }
  }
  auto const zeros = from_float(ggml_type::q8_0, std::vector<float>(32));
  CHECK(to_float(ggml_tensor{ggml_type::q8_0, {32}, zeros}) == std::vector<float>(32));
  CHECK(error_of([] {
          from_float(ggml_type::f16, std::vector{1.0F, 1e6F});
        }) == "value 1 is 1000000.000000, beyond its new type's range");
  CHECK(error_of([] { from_float(ggml_type::q8_0, std::vector<float>(32, 1e8F)); }) ==
        "value 0 and on: a scale of 787401.562500 is beyond float16");
  CHECK(error_of([] { from_float(ggml_type::q8_0, std::vector<float>(31)); }) ==
        "31 values are no whole blocks of Q8_0");
  CHECK(error_of([] { from_float(ggml_type::q4_k, std::vector<float>(256)); }) ==
        "values cannot be written as Q4_K: only as F32, F16, BF16 and Q8_0");
}

// ---- layers ---------------------------------------------------------------------------------------------

namespace {

/// All 32 levels of Q5_0.
struct five_bits {
  static constexpr std::string_view name = "five_bits";
  static constexpr bool has_zero_point = false;
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int /*bits*/) { return 31; }
  static constexpr float zero_point(int /*bits*/) { return 16.0F; }
};

/// What is written decodes to the layer's weights, exactly or (Q4_1) to the rounding of its minimum.
template <class Format>
void check_written(index_t out, index_t in, ggml_type type) {
  CAPTURE(gptq::to_string(gptq::to_spec<Format>()), out, in, type_name(type));
  auto const layer = random_layer<Format>(out, in, 11);
  auto const blocks = to_ggml(layer, type);
  auto const decoded = to_float(tensor_of(layer, type, blocks));
  auto const weights = weights_of(layer);
  REQUIRE(decoded.size() == weights.size());
  int wrong = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    float const scale =
        layer.grid(static_cast<index_t>(i) / in, layer.group(static_cast<index_t>(i) % in)).scale;
    // m is at most 16 scales: half a unit in the last place of float16 is 2^-11 of it; then one rounding.
    bool const has_minimum = type == ggml_type::q4_1 || type == ggml_type::q5_1;
    float const allowed = has_minimum ? std::abs(scale) * (16.0F / 2048 + 1e-6F) : 0.0F;
    wrong += !(std::abs(decoded[i] - weights[i]) <= allowed);
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("layers are written as blocks and decode to the same weights", "[ggml]") {
  check_written<format<gptq::fixed_zero, 4, 32>>(5, 96, ggml_type::q4_0);
  check_written<format<gptq::symmetric, 4, 64>>(3, 96, ggml_type::q4_0);  // the last group is half as long
  check_written<format<gptq::fixed_zero, 4, whole_row>>(3, 96, ggml_type::q4_1);
  check_written<format<gptq::fixed_zero, 3, 32>>(3, 64, ggml_type::q4_0);
  check_written<format<gptq::asymmetric, 4, 32>>(5, 96, ggml_type::q4_1);
  check_written<format<gptq::half_step, 4, 32>>(5, 96, ggml_type::q4_1);
  check_written<format<gptq::asymmetric, 2, 64>>(3, 128, ggml_type::q4_1);
  check_written<format<gptq::fixed_zero, 8, 32>>(5, 96, ggml_type::q8_0);
  check_written<format<gptq::fixed_zero, 4, 32>>(5, 96, ggml_type::q8_0);
  check_written<format<test::five_levels, 3, 32>>(2, 32, ggml_type::q4_0);
  check_written<format<gptq::fixed_zero, 4, 32>>(5, 96, ggml_type::q5_0);
  check_written<format<five_bits, 8, 32>>(5, 96, ggml_type::q5_0);
  check_written<format<five_bits, 8, 32>>(5, 96, ggml_type::q5_1);
  check_written<format<gptq::asymmetric, 4, 32>>(5, 96, ggml_type::q5_1);
  check_written<format<gptq::half_step, 4, 64>>(5, 96, ggml_type::q5_1);

  // Byte for byte.
  quantized_layer<format<gptq::fixed_zero, 4, 32>> layer{
      .out = 1, .in = 32, .codes = {}, .scales = {-0.5F}, .zeros = {}, .order = {}, .report = {}};
  std::vector<int> q;
  for (int j = 0; j < 32; ++j) {
    q.push_back(j * 7 % 16);
    layer.codes.push_back(static_cast<std::uint8_t>(q.back()));
  }
  bytes expected;
  put_nibbles(expected.half(-0.5F), q);
  auto const blocks = to_ggml(layer, ggml_type::q4_0);
  CHECK(std::equal(blocks.begin(), blocks.end(), expected.view().begin(), expected.view().end()));
}

TEST_CASE("a scheme that a type cannot hold is refused with the nearest that can", "[ggml]") {
  auto const refusal = []<class Format>(Format, ggml_type type) {
    return error_of([&] { check_type(type, Format::levels, Format::group_size); });
  };
  CHECK(refusal(format<gptq::asymmetric, 4, 32>(), ggml_type::q4_0) ==
        "GGUF Q4_0 cannot hold this scheme: it has no zero points; Q4_1 can");
  CHECK(refusal(format<gptq::half_step, 4, 32>(), ggml_type::q4_0) ==
        "GGUF Q4_0 cannot hold this scheme: its zero is one of the codes, the scheme's lies between two; "
        "Q4_1 can");
  CHECK(refusal(format<gptq::fixed_zero, 8, 32>(), ggml_type::q4_0) ==
        "GGUF Q4_0 cannot hold this scheme: it has 16 levels, the scheme 256; Q8_0 can");
  CHECK(refusal(format<gptq::fixed_zero, 8, 32>(), ggml_type::q4_1) ==
        "GGUF Q4_1 cannot hold this scheme: it has 16 levels, the scheme 256; Q8_0 can");
  CHECK(refusal(format<gptq::asymmetric, 8, 32>(), ggml_type::q8_0) ==
        "GGUF Q8_0 cannot hold this scheme: it has no zero points; only its decoded weights can be written, "
        "as F16");
  CHECK(refusal(format<gptq::fixed_zero, 4, 24>(), ggml_type::q4_0) ==
        "GGUF Q4_0 cannot hold groups of 24 columns: each block of 32 has one scale; multiples of 32 can be "
        "held");
  for (int const columns : {8, 16, 31, 33, 48, 63, 80}) {
    CHECK(error_of([&] { check_type(ggml_type::q4_0, format<gptq::fixed_zero, 4, 32>::levels, columns); }) ==
          "GGUF Q4_0 cannot hold groups of " + std::to_string(columns) +
              " columns: each block of 32 has one scale; multiples of 32 can be held");
  }
  for (int const columns : {32, 64, 96, whole_row}) {
    CHECK_NOTHROW(check_type(ggml_type::q4_0, format<gptq::fixed_zero, 4, 32>::levels, columns));
  }
  CHECK(refusal(format<gptq::fixed_zero, 4, 32>(), ggml_type::q6_k) ==
        "Q6_K is not for codes: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are");
  CHECK(type_for(format<gptq::symmetric, 4, 32>::levels) == ggml_type::q4_0);
  CHECK(type_for(format<gptq::half_step, 4, 32>::levels) == ggml_type::q4_1);
  CHECK(type_for(format<five_bits, 8, 32>::levels) == ggml_type::q5_0);
  CHECK(type_for(format<gptq::symmetric, 8, 32>::levels) == ggml_type::q8_0);
  CHECK_FALSE(type_for(format<gptq::half_step, 8, 32>::levels).has_value());

  auto layer = random_layer<format<gptq::fixed_zero, 4, 32, float>>(2, 64, 5);
  layer.order.resize(64);
  for (int p = 0; p < 64; ++p) layer.order[static_cast<std::size_t>(p)] = 63 - p;
  CHECK(error_of([&] { to_ggml(layer, ggml_type::q4_0); }) ==
        "GGUF Q4_0 keeps columns in their order: quantize with static groups");
  layer.order.clear();
  layer.scales[3] = 1e6F;
  CHECK(error_of([&] { to_ggml(layer, ggml_type::q4_0); }) ==
        "GGUF Q4_0: scale 1000000.000000 of row 1, columns 32 and on is beyond float16");
  layer.scales[3] = 6e4F;
  CHECK(contains(error_of([&] { to_ggml(layer, ggml_type::q4_1); }), "is beyond float16"));  // its minimum
  auto const short_rows = random_layer<format<gptq::fixed_zero, 4, whole_row>>(2, 40, 5);
  CHECK(error_of([&] { to_ggml(short_rows, ggml_type::q4_0); }) ==
        "GGUF Q4_0: rows of 40 weights are no whole blocks of 32");
}

namespace {

template <class Format>
void check_round_trip(ggml_type type) {
  CAPTURE(gptq::to_string(gptq::to_spec<Format>()), type_name(type));
  auto const layer = random_layer<Format>(37, 96, 19);
  auto const blocks = to_ggml(layer, type);
  auto const packed = to_packed<Format>(tensor_of(layer, type, blocks));
  auto const back = gptq::unpack(packed.view());
  CHECK(back.codes == layer.codes);
  CHECK(back.scales == layer.scales);
  CHECK(back.zeros == layer.zeros);

  // Into memory of the caller's, whatever was there before.
  gptq::packed_matrix<Format> other(37, 96);
  std::fill(other.codes(), other.codes() + other.layout().code_bytes(), std::uint8_t{0xff});
  std::fill(other.zeros(), other.zeros() + other.layout().zero_bytes(), std::uint8_t{0xff});
  std::fill(other.scales(), other.scales() + other.layout().scale_count(), typename Format::scale(9.0F));
  to_packed<Format>(tensor_of(layer, type, blocks), other.memory());
  auto const same = [&](auto const* a, auto const* b, index_t n) { return std::equal(a, a + n, b); };
  CHECK(same(other.view().codes, packed.view().codes, packed.layout().code_bytes()));
  CHECK(same(other.view().scales, packed.view().scales, packed.layout().scale_count()));
  if (Format::has_zero_point)
    CHECK(same(other.view().zeros, packed.view().zeros, packed.layout().zero_bytes()));
  gptq::packed_matrix<Format> larger(38, 96);
  CHECK(contains(error_of([&] { to_packed<Format>(tensor_of(layer, type, blocks), larger.memory()); }),
                 "does not fit into memory for a matrix of 38 x 96"));
}

}  // namespace

TEST_CASE("blocks become packed matrices with the codes that they were made of", "[ggml]") {
  check_round_trip<format<gptq::fixed_zero, 4, 32>>(ggml_type::q4_0);
  check_round_trip<format<gptq::symmetric, 4, 32>>(ggml_type::q4_0);
  check_round_trip<format<gptq::fixed_zero, 4, 32, float>>(ggml_type::q4_1);
  check_round_trip<format<gptq::asymmetric, 4, 32>>(ggml_type::q4_1);
  check_round_trip<format<gptq::half_step, 4, 32>>(ggml_type::q4_1);
  check_round_trip<format<gptq::fixed_zero, 8, 32>>(ggml_type::q8_0);
  check_round_trip<format<gptq::symmetric, 8, 32>>(ggml_type::q8_0);

  // Q4_0 with a zero point stored for each group.
  auto const layer = random_layer<format<gptq::fixed_zero, 4, 32>>(3, 64, 20);
  auto const blocks = to_ggml(layer, ggml_type::q4_0);
  auto const packed = to_packed<format<gptq::asymmetric, 4, 32>>(tensor_of(layer, ggml_type::q4_0, blocks));
  CHECK(gptq::unpack(packed.view()).zeros == std::vector<std::uint8_t>(6, 8));
  CHECK(gptq::unpack(packed.view()).codes == layer.codes);
}

TEST_CASE("blocks that a packed format does not have", "[ggml]") {
  using fixed = format<gptq::fixed_zero, 4, 32>;
  bytes q4_1;
  put_nibbles(q4_1.half(0.5F).half(-4.0F), std::vector<int>(32, 3));
  put_nibbles(q4_1.half(0.5F).half(-3.9F), std::vector<int>(32, 3));
  ggml_tensor const two{ggml_type::q4_1, {1, 64}, q4_1.view()};
  ggml_tensor const one{ggml_type::q4_1, {1, 32}, q4_1.view().first(20)};
  CHECK(gptq::unpack(to_packed<fixed>(one).view()).codes == std::vector<std::uint8_t>(32, 3));
  std::string const no_zero =
      "tensor Q4_1 [1, 64], row 0, block 1: scale 0.500000 with minimum -3.900391 has no zero point in ";
  CHECK(error_of([&] { to_packed<fixed>(two); }) ==
        no_zero + "fixed_zero, 4 bits, groups of 32, float16 scales");
  CHECK(contains(error_of([&] { to_packed<format<gptq::asymmetric, 4, 32>>(two); }), no_zero));
  CHECK(contains(error_of([&] { to_packed<format<gptq::half_step, 4, 32>>(two); }), "row 0, block 0"));

  bytes lowest;
  put_nibbles(lowest.half(1.0F), std::vector<int>(32, 0));
  ggml_tensor const unused{ggml_type::q4_0, {1, 32}, lowest.view()};
  CHECK(error_of([&] { to_packed<format<gptq::symmetric, 4, 32>>(unused); }) ==
        "tensor Q4_0 [1, 32], row 0, block 0: level -8 does not exist in symmetric, 4 bits, groups of 32, "
        "float16 scales");
  CHECK(contains(error_of([&] { to_packed<format<gptq::half_step, 4, 32>>(unused); }), "has no zero point"));
  bytes constant;  // scale 0: the minimum is the weight, and no zero point times 0 is that
  put_nibbles(constant.half(0.0F).half(2.0F), std::vector<int>(32, 0));
  ggml_tensor const flat{ggml_type::q4_1, {1, 32}, constant.view()};
  CHECK(contains(error_of([&] { to_packed<format<gptq::asymmetric, 4, 32>>(flat); }), "has no zero point"));
}

// ---- files ----------------------------------------------------------------------------------------------

TEST_CASE("a file written out by hand", "[gguf]") {
  auto const contents = good_file();
  auto const file = parse(contents.text);
  CHECK(file.version() == 3);
  CHECK(file.at<std::string_view>("general.architecture") == "llama");
  CHECK(file.at<std::int64_t>("llama.block_count") == 6);
  CHECK(file.at<double>("llama.block_count") == 6.0);
  CHECK(file.at<std::vector<std::string_view>>("tokenizer.ggml.tokens") ==
        std::vector<std::string_view>{"<s>", "\xe2\x96\x81the"});
  CHECK_FALSE(file.get<bool>("nothing").has_value());
  REQUIRE(file.tensors().size() == 2);
  CHECK(to_float(file.tensors().at("norm")) == std::vector{1.5F, -2.0F});
  ggml_tensor const& weight = file.tensors().at("weight");
  CHECK(weight.shape == std::vector<std::size_t>{2, 32});  // 32 a row
  auto const values = to_float(weight);
  for (std::size_t j = 0; j < 16; ++j) {
    auto const low = static_cast<float>(j) - 8.0F;
    CHECK(values[j] == 0.5F * low);
    CHECK(values[j + 16] == 0.5F * (-low - 1.0F));
    CHECK(values[j + 32] == -2.0F * low);
  }
  CHECK(file.find_tensor("weight") == &weight);
  CHECK(file.find_tensor("other") == nullptr);
  CHECK(weight.bytes.data() == contents.view().last(36).data());  // not copied
}

TEST_CASE("what is written is read back, and only when it is whole", "[gguf]") {
  scratch const dir("gguf_test");
  auto const path = dir.path / "x.gguf";
  gguf_metadata metadata;
  metadata.add("u8", std::uint8_t{200});
  metadata.add("i8", std::int8_t{-100});
  metadata.add("u16", std::uint16_t{60000});
  metadata.add("i16", std::int16_t{-30000});
  metadata.add("u32", std::uint32_t{4000000000});
  metadata.add("i32", std::int32_t{-2000000000});
  metadata.add("u64", std::uint64_t{1} << 63);
  metadata.add("i64", std::numeric_limits<std::int64_t>::min());
  metadata.add("f32", 1.25F);
  metadata.add("f64", 1e300);
  metadata.add("flag", true);
  metadata.add("text", "z\xc3\xbc");
  metadata.add("types", std::vector<std::int32_t>{3, -1});
  metadata.add("scores", std::vector<float>{0.5F, -1e5F});
  metadata.add("tokens", std::vector<std::string>{"", "a b"});
  CHECK(metadata.size() == 15);
  std::vector<float> const a{1.0F, -2.5F, 3e-30F};
  auto const layer = random_layer<format<gptq::fixed_zero, 4, 32>>(3, 64, 2);
  auto const blocks = to_ggml(layer, ggml_type::q4_0);
  ggml_tensor_map const tensors{{"a", {ggml_type::f32, {3}, bytes_of(a)}},
                                {"empty", {ggml_type::f16, {0, 4}, {}}},
                                {"weight", tensor_of(layer, ggml_type::q4_0, blocks)}};
  write_gguf(path, metadata, tensors);
  CHECK(std::distance(fs::directory_iterator(dir.path), {}) == 1);
  CHECK(fs::file_size(path) % 32 == 0);

  gguf_file const file(path);
  CHECK(file.at<std::int64_t>("u8") == 200);
  CHECK(file.at<std::int64_t>("i8") == -100);
  CHECK(file.at<std::int64_t>("u16") == 60000);
  CHECK(file.at<std::int64_t>("i16") == -30000);
  CHECK(file.at<std::int64_t>("u32") == 4000000000);
  CHECK(file.at<std::int64_t>("i32") == -2000000000);
  CHECK(file.at<std::int64_t>("i64") == std::numeric_limits<std::int64_t>::min());
  CHECK(contains(error_of([&] { file.at<std::int64_t>("u64"); }),
                 "metadata 'u64' is 9223372036854775808, which is too large"));
  CHECK(file.at<double>("u64") == 0x1p63);
  CHECK(file.at<double>("f32") == 1.25);
  CHECK(file.at<double>("f64") == 1e300);
  CHECK(file.at<bool>("flag"));
  CHECK(file.at<std::string_view>("text") == "z\xc3\xbc");
  CHECK(file.at<std::vector<std::int64_t>>("types") == std::vector<std::int64_t>{3, -1});
  CHECK(file.at<std::vector<double>>("scores") == std::vector<double>{0.5, -1e5});
  CHECK(file.at<std::vector<std::string_view>>("tokens") == std::vector<std::string_view>{"", "a b"});
  REQUIRE(file.tensors().size() == tensors.size());
  for (auto const& [name, tensor] : tensors) {
    INFO(name);
    ggml_tensor const& found = file.tensors().at(name);
    CHECK(found.type == tensor.type);
    CHECK(found.shape == tensor.shape);
    CHECK(std::equal(found.bytes.begin(), found.bytes.end(), tensor.bytes.begin(), tensor.bytes.end()));
    CHECK(reinterpret_cast<std::uintptr_t>(found.bytes.data()) % 32 == 0);
  }

  // Metadata of one file in another, unchanged.
  gguf_metadata copied;
  for (auto const& [key, value] : file.metadata()) copied.add(key, value);
  write_gguf(dir.path / "copy.gguf", copied, tensors);
  gguf_file const copy(dir.path / "copy.gguf");
  CHECK(copy.metadata().size() == file.metadata().size());
  CHECK(copy.at<std::vector<std::string_view>>("tokens") == std::vector<std::string_view>{"", "a b"});
  CHECK(to_string(copy.metadata().at("types")) == "array of 2 INT32");

  // Moved, a file keeps what its tensors point to.
  std::optional<gguf_file> original(path);
  ggml_tensor const kept = original->tensors().at("a");
  gguf_file const moved = std::move(*original);
  original.reset();
  CHECK(to_float(kept) == a);
}

TEST_CASE("what cannot be written leaves nothing behind", "[gguf]") {
  scratch const dir("gguf_test");
  auto const path = dir.path / "x.gguf";
  std::vector<float> const a{1.0F, 2.0F};
  auto const write = [&](std::vector<gguf_tensor_info> tensors, int pieces = 0) {
    std::string const message = error_of([&] {
      gguf_writer out(path, {}, std::move(tensors));
      for (int i = 0; i < pieces; ++i) out.write(bytes_of(a));
      out.finish();
    });
    CHECK(fs::is_empty(dir.path));
    return message.substr(std::min(message.size(), path.string().size()));
  };
  gguf_tensor_info const info{"a", ggml_type::f32, {2}};
  CHECK(write({info}) == ": tensor 'a' is not written");
  CHECK(write({info}, 2) == ": all tensors are written");
  CHECK(write({{"a", ggml_type::f32, {3}}}, 1) == ": tensor 'a' takes 12 bytes, not 8");
  CHECK(write({info, info}) == ": tensor 'a' is there twice");
  CHECK(write({{"", ggml_type::f32, {2}}}) == ": tensor '': a name is UTF-8 of 1 to 63 bytes");
  CHECK(contains(write({{std::string(64, 'x'), ggml_type::f32, {2}}}), "a name is UTF-8 of 1 to 63 bytes"));
  CHECK(contains(write({{"\xc3", ggml_type::f32, {2}}}), "a name is UTF-8 of 1 to 63 bytes"));
  CHECK(write({{"a", ggml_type::f32, {}}}) == ": tensor 'a': 1 to 4 extents can be written");
  CHECK(write({{"a", ggml_type::q4_0, {2, 48}}}) ==
        ": tensor 'a': rows of 48 elements are no whole blocks of 32, as Q4_0 has them");
  CHECK(contains(error_of([&] { gguf_writer(dir.path / "no" / "x", {}, {}); }), "cannot be written"));

  gguf_metadata metadata;
  metadata.add("a", 1.0F);
  CHECK(error_of([&] { metadata.add("a", 2.0F); }) == "GGUF metadata: 'a' is there already");
  CHECK(error_of([&] { metadata.add("", 2.0F); }) == "GGUF metadata: a key of 0 bytes");
  CHECK(error_of([&] { metadata.add("\xff", 2.0F); }) == "GGUF metadata: a key is not UTF-8");
  CHECK(error_of([&] { metadata.add("general.alignment", std::uint32_t{64}); }) ==
        "GGUF metadata: the writer chooses general.alignment");

  write_file(path, "something else");
  write_gguf(path, metadata, {});
  CHECK(gguf_file(path).at<double>("a") == 1.0);
}

TEST_CASE("keys and names as long as they may be", "[gguf]") {
  CHECK_NOTHROW(gguf_metadata().add(std::string(65535, 'k'), 1.0F));
  CHECK(error_of([] { gguf_metadata().add(std::string(65536, 'k'), 1.0F); }) ==
        "GGUF metadata: a key of 65536 bytes");
  scratch const dir("gguf_test");
  auto const path = dir.path / "x.gguf";
  gguf_metadata metadata;
  metadata.add(std::string(65535, 'k'), "value");
  std::vector<float> const a{1.0F};
  std::string const name(63, 'n');
  write_gguf(path, metadata, {{name, {ggml_type::f32, {1, 1, 1, 1}, bytes_of(a)}}});
  gguf_file const file(path);
  CHECK(file.at<std::string_view>(std::string(65535, 'k')) == "value");
  CHECK(file.find_tensor(name)->shape.size() == 4);
}

TEST_CASE("a model in several files", "[gguf]") {
  scratch const dir("gguf_test");
  auto const prefix = (dir.path / "model").string();
  std::vector<float> const a{1.0F, 2.0F};
  struct part {
    int number;
    int count;
    std::vector<std::string> tensors;
    int total = 3;
  };
  auto const write = [&](std::string const& name, part const& p) {
    gguf_metadata metadata;
    metadata.add("split.no", static_cast<std::uint16_t>(p.number));
    metadata.add("split.count", static_cast<std::uint16_t>(p.count));
    if (p.total > 0) metadata.add("split.tensors.count", static_cast<std::int32_t>(p.total));
    if (p.number == 0) metadata.add("general.name", "split");
    ggml_tensor_map tensors;
    for (auto const& tensor : p.tensors) tensors[tensor] = {ggml_type::f32, {2}, bytes_of(a)};
    write_gguf(prefix + name, metadata, tensors);
  };
  std::string const first = "-00001-of-00003.gguf";
  std::string const second = "-00002-of-00003.gguf";
  std::string const third = "-00003-of-00003.gguf";
  auto const good = [&] {
    write(first, {0, 3, {"a"}});
    write(second, {1, 3, {}});
    write(third, {2, 3, {"b", "c"}});
  };
  auto const open = [&](std::string const& name) {
    auto message = error_of([&] { gguf_file{fs::path(prefix + name)}; });
    while (message.find(prefix) != message.npos)
      message.replace(message.find(prefix), prefix.size(), "model");
    return message;
  };
  good();
  {
    std::optional<gguf_file> opened(prefix + first);
    gguf_file const file = std::move(*opened);
    opened.reset();
    CHECK(file.at<std::string_view>("general.name") == "split");
    REQUIRE(file.tensors().size() == 3);
    for (auto const* const name : {"a", "b", "c"}) CHECK(to_float(*file.find_tensor(name)) == a);
  }
  CHECK(open(second) == "model" + second + ": is part 2 of 3; open the first one");
  CHECK(open(third) == "model" + third + ": is part 3 of 3; open the first one");
  fs::copy_file(prefix + first, prefix + ".gguf");
  CHECK(
      open(".gguf") ==
      "model.gguf: is the first of 3 parts, but its name does not end in -00001-of-00003.gguf, by which the "
      "others are found");
  for (auto const& missing : {second, third}) {
    good();
    fs::remove(prefix + missing);
    CHECK(open(first) == "model" + missing + ": cannot be opened: No such file or directory");
  }
  good();
  write(third, {1, 3, {"b"}});
  CHECK(open(first) == "model" + third + ": does not say that it is part 3 of 3");
  write(third, {2, 4, {"b", "c"}});
  CHECK(open(first) == "model" + third + ": does not say that it is part 3 of 3");
  write_gguf(prefix + third, {}, {});
  CHECK(open(first) == "model" + third + ": does not say that it is part 3 of 3");
  write(third, {2, 3, {"a", "b"}});
  CHECK(open(first) == "model" + third + ": tensor 'a' is in a part before it, too");
  write(third, {2, 3, {"b"}});
  CHECK(open(first) == "model" + first + ": split.tensors.count is 3, but its parts have 2 tensors");
  write(first, {0, 3, {"a"}, 0});
  CHECK(open(first).empty());
  write("-00001-of-00001.gguf", {0, 1, {"a"}, 1});
  CHECK(open("-00001-of-00001.gguf").empty());
  // In memory a part is alone.
  auto const in_memory = [](std::int64_t count) {
    bytes b;
    b.head(0, 1).string("split.count").u32(11).put(count);
    return error_of([&] { parse(b.text); });
  };
  CHECK(in_memory(0).empty());
  CHECK(in_memory(1).empty());
  CHECK(in_memory(2) == "x: is one of 2 parts of a model, which can only be opened as files");
  CHECK(in_memory(99999) == "x: is one of 99999 parts of a model, which can only be opened as files");
  CHECK(in_memory(100000) == "x: split.count is 100000, not between 0 and 99999");
  CHECK(in_memory(-1) == "x: split.count is -1, not between 0 and 99999");
}

TEST_CASE("bad blocks in the first, a middle and the last place", "[ggml]") {
  using q4_0 = format<gptq::fixed_zero, 4, 32>;
  using q4_1 = format<gptq::asymmetric, 4, 32>;
  std::vector<std::byte> const zeros(3 * 4 * 20);
  for (std::size_t const block : {0U, 5U, 11U}) {
    auto blocks = to_ggml(random_layer<q4_0>(3, 128, 5), ggml_type::q4_0);
    auto const message = [&](auto packed) {
      return error_of([&] { packed(ggml_tensor{ggml_type::q4_0, {3, 128}, blocks}); });
    };
    auto const pack = [](ggml_tensor const& tensor) { to_packed<q4_0>(tensor); };
    CHECK(message(pack).empty());
    blocks[18 * block + 1] = std::byte{0x7c};
    blocks[18 * block] = std::byte{0};
    CHECK(message(pack) ==
          "tensor Q4_0 [3, 128], row " + std::to_string(block / 4) + ", block " + std::to_string(block % 4) +
              ": a scale of inf has no place in fixed_zero, 4 bits, groups of 32, float16 scales");
    // A scale of 0 has a zero point only when there is no minimum either.
    auto with_minimum = zeros;
    auto const pack_zeros = [&] {
      return to_packed<q4_1>(ggml_tensor{ggml_type::q4_1, {3, 128}, with_minimum});
    };
    std::vector<float> weights(3 * 128, 1.0F);
    dequantize(pack_zeros().view(), weights.data());
    CHECK(weights == std::vector<float>(3 * 128));
    CHECK(unpack(pack_zeros().view()).zeros == std::vector<std::uint8_t>(12));
    with_minimum[20 * block + 3] = std::byte{0x3c};
    CHECK(contains(error_of(pack_zeros), "row " + std::to_string(block / 4) + ", block " +
                                             std::to_string(block % 4) +
                                             ": scale 0.000000 with minimum 1.000000 has no zero point"));
  }
}

TEST_CASE("names are UTF-8", "[gguf]") {
  for (auto const* const good :
       {"plain", "z\xc3\xbc", "\xe2\x96\x81", "\xf0\x9f\xa6\x99", "\xf4\x8f\xbf\xbf"}) {
    INFO(good);
    CHECK_NOTHROW(gguf_metadata().add(good, 1.0F));
  }
  // A stray continuation, one missing, one too few, overlong (2, 3 and 4 bytes), a surrogate, above 0x10ffff.
  for (auto const* const bad : {"\x80", "\xc3", "\xc3(", "\xe2\x96", "\xc0\x80", "\xe0\x80\x80",
                                "\xf0\x80\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff"}) {
    CHECK(error_of([&] { gguf_metadata().add(bad, 1.0F); }) == "GGUF metadata: a key is not UTF-8");
  }
}

TEST_CASE("a malformed GGUF file is refused with the reason", "[gguf]") {
  constexpr std::uint64_t huge = ~std::uint64_t{0};
  auto const open = [](std::string contents) {
    return [contents = std::move(contents)] { parse(contents); };
  };
  auto const entry = [&](auto&& fill) {
    bytes b;
    fill(b.head(0, 1));
    return open(b.text);
  };
  auto const tensor = [&](auto&& fill) {
    bytes b;
    fill(b.head(1, 0));
    return open(b.text);
  };
  auto const key = [&](std::string const& name, auto&& fill) {
    return entry([&](bytes& b) { fill(b.string(name)); });
  };
  /// One tensor, and `data` bytes for it.
  auto const one = [&](std::string const& name, std::vector<std::uint64_t> const& extents, std::uint32_t type,
                       std::uint64_t offset, std::size_t data) {
    return tensor(
        [&](bytes& b) { b.tensor(name, extents, type, offset).pad().raw(std::string(data, '\0')); });
  };
  auto const two = [&](std::string const& second, std::uint64_t offset, std::size_t data) {
    bytes b;
    b.head(2, 0).tensor("a", {16}, 0, 0).tensor(second, {8}, 0, offset).pad().raw(std::string(data, '\0'));
    return open(b.text);
  };
  auto const version = [&](std::uint32_t number) {
    return open(bytes().raw("GGUF").u32(number).u64(0).u64(0).text);
  };
  std::string const good = good_file().text;

  test::check_bad_inputs(
      "GGUF: the head",
      {
          {"another magic number", open("GGML" + good.substr(4))},
          {"a file of two other bytes", open("PK")},
          {"nothing", open("")},
          {"the magic number cut short", open(good.substr(0, 2))},
          {"the version cut short", open(good.substr(0, 6))},
          {"the number of tensors cut short", open(good.substr(0, 12))},
          {"no number of entries", open(good.substr(0, 16))},
          {"version 0", version(0)},
          {"version 1", version(1)},
          {"version 4", version(4)},
          {"version 3, big-endian", version(3U << 24)},
          {"2^64 - 1 tensors", open(bytes().head(huge, 0).text)},
          {"2^64 - 1 entries", open(bytes().head(0, huge).text)},
          {"more entries than the bytes hold", open(bytes().head(0, 2).raw(std::string(25, '\1')).text)},
          {"more tensors than the bytes hold", open(bytes().head(2, 0).raw(std::string(47, '\1')).text)},
      });
  test::check_bad_inputs(
      "GGUF: metadata",
      {
          {"a key of 2^64 - 1 bytes", entry([&](bytes& b) { b.u64(huge).raw("key, and so on"); })},
          {"a key of no bytes", key("", [](bytes& b) { b.u32(0).u64(0); })},
          {"a key that is not UTF-8", key("k\xc3", [](bytes& b) { b.u32(0).u64(0); })},
          {"an unknown type", key("key", [](bytes& b) { b.u32(13).u64(0); })},
          {"the type cut short", key("a key", [](bytes& b) { b.raw("\1"); })},
          {"the value cut short", key("key", [](bytes& b) { b.u32(10).u32(0); })},
          {"a string cut short", key("key", [](bytes& b) { b.u32(8).u64(5).raw("four"); })},
          {"a string of 2^64 - 1 bytes", key("key", [](bytes& b) { b.u32(8).u64(huge); })},
          {"an array of arrays", key("key", [](bytes& b) { b.u32(9).u32(9).u64(1).u32(0).u64(0); })},
          {"an array of an unknown type", key("key", [](bytes& b) { b.u32(9).u32(99).u64(1); })},
          {"an array without a length", key("key", [](bytes& b) { b.u32(9).u32(4).raw("1234567"); })},
          {"an array whose bytes overflow to 4",
           key("key", [](bytes& b) { b.u32(9).u32(4).u64(huge / 4 + 2).u64(0); })},
          {"an array of 2^64 - 1 strings", key("key", [](bytes& b) { b.u32(9).u32(8).u64(huge); })},
          {"a string of an array cut short",
           key("key", [](bytes& b) { b.u32(9).u32(8).u64(2).string("one").u64(9); })},
          {"a key twice",
           open(bytes().head(0, 2).string("k").u32(0).raw("\1").string("k").u32(0).raw("\1").text)},
          {"an alignment of 0", key("general.alignment", [](bytes& b) { b.u32(4).u32(0); })},
          {"an alignment of 24", key("general.alignment", [](bytes& b) { b.u32(4).u32(24); })},
          {"a negative alignment",
           key("general.alignment", [](bytes& b) { b.u32(5).put(std::int32_t{-32}); })},
          {"an alignment that is a string",
           key("general.alignment", [](bytes& b) { b.u32(8).string("32"); })},
          {"an alignment of 2^40",
           key("general.alignment", [](bytes& b) { b.u32(10).u64(std::uint64_t{1} << 40); })},
          {"an alignment of 2^63",
           key("general.alignment", [](bytes& b) { b.u32(10).u64(std::uint64_t{1} << 63); })},
      });
  test::check_bad_inputs(
      "GGUF: tensors",
      {
          {"a name of 2^64 - 1 bytes", tensor([&](bytes& b) { b.u64(huge).raw(std::string(16, 'x')); })},
          {"a name of no bytes", one("", {1}, 0, 0, 32)},
          {"a name that is not UTF-8", one("\xed\xa0\x80", {1}, 0, 0, 32)},
          {"5 extents", one("a", {1, 1, 1, 1, 1}, 0, 0, 32)},
          {"2^32 - 1 extents", tensor([](bytes& b) { b.string("a").u32(~0U).raw(std::string(16, '\0')); })},
          {"the rank cut short", tensor([](bytes& b) { b.string("a name of 20 letters").raw("\1"); })},
          {"the extents cut short", tensor([](bytes& b) { b.string("a").u32(4).u64(1).u64(1); })},
          {"the type cut short", tensor([](bytes& b) { b.string("name").u32(1).u64(1).raw("two"); })},
          {"an unknown type beyond the file", one("a", {1}, 1000, 64, 32)},
          {"the offset cut short",
           tensor([](bytes& b) { b.string("a long name").u32(1).u64(1).u32(0).u32(0); })},
          {"an offset that is not aligned", one("a", {1}, 0, 4, 36)},
          {"data cut short", one("a", {8}, 0, 0, 31)},
          {"no data", one("a", {8}, 0, 0, 0)},
          {"the last tensor cut short", two("b", 64, 95)},
          {"an offset near the end", one("a", {8}, 0, 32, 63)},
          {"an offset that overflows with the size", one("a", {8}, 0, huge - 31, 64)},
          {"a tensor of no elements beyond the file", one("a", {0}, 0, 96, 64)},
          {"rows that are no whole blocks", one("a", {48, 2}, 2, 0, 64)},
          {"extents of 2^64 - 1 and 2", one("a", {huge, 2}, 0, 0, 64)},
          {"extents whose product overflows to 0",
           one("a", {std::uint64_t{1} << 32, std::uint64_t{1} << 32}, 0, 0, 64)},
          {"an extent whose bytes overflow to 0", one("a", {std::uint64_t{1} << 62}, 0, 0, 64)},
          {"two tensors of one name", two("a", 64, 96)},
          {"a tensor that begins within another", two("b", 32, 96)},
          {"tensors in the same place", two("b", 0, 96)},
      });
  auto const f32 = [](bytes const& b) { return ggml_tensor{ggml_type::f32, {1}, b.view()}; };
  auto const unknown = [&](std::uint32_t type) {
    bytes b;
    b.head(1, 0).tensor("a", {1}, type, 0).pad().raw(std::string(32, '\0'));
    ggml_tensor parsed = parse(b.text).tensors().at("a");
    CHECK(parsed.bytes.empty());
    return parsed;
  };
  auto const q4_0 = [](std::vector<std::size_t> shape, float scale) {
    return [shape = std::move(shape), scale] {
      bytes b;
      put_nibbles(b.half(scale), std::vector<int>(32, 0));
      to_packed<format<gptq::fixed_zero, 4, 32>>(ggml_tensor{ggml_type::q4_0, shape, b.view()});
    };
  };
  test::check_bad_inputs(
      "GGUF: what is asked of values",
      {
          {"a key that is not there", [&] { parse(good).at<bool>("missing"); }},
          {"a number read as a string", [&] { parse(good).at<std::string_view>("llama.block_count"); }},
          {"an array read as an integer", [&] { parse(good).at<std::int64_t>("tokenizer.ggml.tokens"); }},
          {"a string read as an array", [&] { parse(good).at<std::vector<double>>("general.architecture"); }},
          {"2^63 read as an integer",
           [] {
             bytes b;
             b.head(0, 1).string("key").u32(10).u64(std::uint64_t{1} << 63);
             parse(b.text).at<std::int64_t>("key");
           }},
          {"elements 1 to 2 of 1",
           [&] {
             std::vector<float> values(1);
             to_float(f32(bytes().u32(0)), 1, values);
           }},
          {"a type that ggml has removed, decoded", [&] { to_float(unknown(4)); }},
          {"an unknown type, decoded", [&] { to_float(unknown(1000)); }},
          {"an unknown type, packed", [&] { to_packed<format<gptq::fixed_zero, 4, 32>>(unknown(1000)); }},
          {"a type that is not decoded",
           [] {
             to_float(ggml_tensor{ggml_type::iq4_xs, {256}, {}});
           }},
          {"F32 packed", [&] { to_packed<format<gptq::fixed_zero, 4, 32>>(f32(bytes().u32(0))); }},
          {"a NaN scale", q4_0({1, 32}, std::numeric_limits<float>::quiet_NaN())},
          {"an infinite scale", q4_0({1, 32}, std::numeric_limits<float>::infinity())},
          {"one row as a vector, packed", q4_0({32}, 1.0F)},
          {"more rows than bytes, packed", q4_0({2, 32}, 1.0F)},
          {"2^60 rows of no elements, packed",
           [] {
             to_packed<format<gptq::fixed_zero, 4, 32>>(
                 ggml_tensor{ggml_type::q4_0, {std::size_t{1} << 60, 0}, {}});
           }},
      });

  // Alignments other than 32, zero-length tensors beside others, and a file without data are well-formed.
  CHECK_NOTHROW(key("general.alignment", [](bytes& b) { b.u32(4).u32(8); })());
  CHECK_NOTHROW(two("b", 64, 96)());
  CHECK_NOTHROW(one("a", {0, 4}, 0, 0, 0)());
  // A tensor without bytes is in nobody's way, wherever it lies; nor is one whose type is not known.
  for (std::string const second : {"0", "z"}) {  // before and after the other in the alphabet
    for (std::uint64_t const offset : {0U, 32U, 64U}) {
      for (std::uint32_t const type : {0U, 1000U}) {
        bytes b;
        b.head(2, 0).tensor("a", {16}, 0, 0).tensor(second, {type == 0 ? 0U : 8U}, type, offset);
        CHECK_NOTHROW(parse(b.pad().raw(std::string(64, '\0')).text));
      }
    }
  }
  CHECK_NOTHROW(parse(bytes().head(0, 0).text));
}

TEST_CASE("the fuzzer begins with files that are well-formed", "[gguf]") {
  int files = 0;
  for (auto const& entry : fs::directory_iterator(fs::path(GPTQ_SOURCE_DIR) / "tests/fuzz/gguf")) {
    INFO(entry.path());
    gguf_file const file(entry.path());
    for (auto const& [name, tensor] : file.tensors()) {
      if (is_decodable(tensor.type)) to_float(tensor);
    }
    ++files;
  }
  CHECK(files >= 7);
}

TEST_CASE("no prefix of a GGUF file and no flipped byte makes the reader go wrong", "[gguf]") {
  std::string const whole = good_file().text;
  for (std::size_t length = 0; length < whole.size(); ++length) {
    INFO(length);
    // A copy of just these bytes: a sanitizer sees what lies behind them.
    std::vector<char> const cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    CHECK_THROWS_AS(gguf_file(bytes_of(cut), "x"), gptq::error);
  }
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (char const flip : {'\x01', '\x20', '\x80', '\xff'}) {
      std::vector<char> changed(whole.begin(), whole.end());
      changed[i] = static_cast<char>(changed[i] ^ flip);
      error_of([&] {
        gguf_file const file(bytes_of(changed), "x");
        for (auto const& [name, tensor] : file.tensors()) to_float(tensor);
      });
    }
  }
}
