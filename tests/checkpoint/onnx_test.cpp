// The tensors of MatMulNBits, decoded as the operator's documentation says.
#include <gptq/checkpoint/onnx.hpp>

#include "catch.hpp"
#include "checkpoint/layers.hpp"
#include "support.hpp"

using gptq::format;
using gptq::index_t;
using gptq::whole_row;
using gptq::checkpoint::to_onnx;
using test::error_of;

namespace {

template <class Format>
void check_node(index_t out, index_t in, bool permuted, index_t block_size) {
  CAPTURE(gptq::to_string(gptq::to_spec<Format>()), out, in, permuted);
  auto const layer = test::random_layer<Format>(out, in, permuted, 111);
  auto const node = to_onnx(layer);
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  constexpr index_t bits = Format::bits;
  CHECK(node.in == in);
  CHECK(node.out == out);
  CHECK(node.bits == bits);
  REQUIRE(node.block_size == block_size);
  index_t const blocks = (in + block_size - 1) / block_size;
  REQUIRE(node.b.size() == at(out * blocks * block_size * bits / 8));
  REQUIRE(node.scales.size() == at(out * blocks));
  bool const has_bytes = Format::has_zero_point && !permuted;
  REQUIRE(node.zero_points.size() == (has_bytes ? at(out * ((blocks * bits + 7) / 8)) : 0));
  REQUIRE(node.wide_zero_points.size() == (Format::has_zero_point && permuted ? at(out * blocks) : 0));
  REQUIRE(node.g_idx.size() == (permuted ? at(blocks * block_size) : 0));
  auto const number = [&](std::vector<std::uint8_t> const& bytes, index_t row, index_t row_bytes, index_t i) {
    return bytes[at(row * row_bytes + i * bits / 8)] >> (i * bits % 8) & ((1 << bits) - 1);
  };
  std::vector<float> weights;
  for (index_t row = 0; row < out; ++row) {
    for (index_t k = 0; k < in; ++k) {
      index_t const block = permuted ? index_t{node.g_idx[at(k)]} : k / block_size;
      int const code = number(node.b, row, blocks * block_size * bits / 8, k);
      float const zero =
          has_bytes ? static_cast<float>(number(node.zero_points, row, (blocks * bits + 7) / 8, block))
          : permuted && Format::has_zero_point
              ? static_cast<float>(node.wide_zero_points[at(row * blocks + block)])
              : static_cast<float>(1 << (bits - 1));
      weights.push_back(static_cast<float>(node.scales[at(row * blocks + block)]) *
                        (static_cast<float>(code) - zero));
    }
    for (index_t k = in; k < blocks * block_size; ++k) {
      CHECK(number(node.b, row, blocks * block_size * bits / 8, k) == 0);
      if (permuted) CHECK(node.g_idx[at(k)] == blocks - 1);
    }
  }
  CHECK(weights == test::decoded_weights(layer));
}

}  // namespace

TEST_CASE("the tensors of MatMulNBits", "[onnx]") {
  for (bool const permuted : {false, true}) {
    check_node<format<gptq::asymmetric, 4, 32>>(5, 96, permuted, 32);
    check_node<format<gptq::fixed_zero, 4, 16>>(3, 40, permuted, 16);  // the last block is half full
    check_node<format<gptq::symmetric, 4, 64, float>>(3, 96, permuted, 64);
    check_node<format<gptq::asymmetric, 8, 32>>(4, 64, permuted, 32);
    check_node<format<gptq::asymmetric, 2, 32>>(4, 160, permuted,
                                                32);  // five zero points fill a byte and a quarter
    check_node<format<gptq::asymmetric, 4, whole_row>>(4, 96, permuted, 128);
    check_node<format<gptq::fixed_zero, 8, whole_row, float>>(4, 8, permuted, 16);
  }
  CHECK(error_of([] { to_onnx(test::random_layer<format<gptq::asymmetric, 4, 8>>(4, 64, false, 1)); }) ==
        "ONNX MatMulNBits: groups of 8 columns: a block has a power of two of them, 16 or more");
  CHECK(error_of([] { to_onnx(test::random_layer<format<gptq::asymmetric, 4, 24>>(4, 64, false, 1)); }) ==
        "ONNX MatMulNBits: groups of 24 columns: a block has a power of two of them, 16 or more");
  CHECK(error_of([] { to_onnx(test::random_layer<format<gptq::asymmetric, 4, 32>>(0, 64, false, 1)); }) ==
        "ONNX MatMulNBits: a layer without weights");
  CHECK(error_of([] { to_onnx(test::random_layer<format<gptq::asymmetric, 4, 32>>(4, 0, false, 1)); }) ==
        "ONNX MatMulNBits: a layer without weights");
}
