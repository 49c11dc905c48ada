// Layers from one format to another: the same weights on the other side, or a refusal that names what can hold them.
#include <cstring>

#include <gptq/checkpoint/repack.hpp>

#include "catch.hpp"
#include "checkpoint/layers.hpp"
#include "support.hpp"

using gptq::format;
using gptq::index_t;
using gptq::quantized_layer;
using gptq::whole_row;
using namespace gptq::checkpoint;
using test::contains;
using test::decoded_weights;
using test::error_of;
using test::random_layer;

namespace {

template <class Format>
ggml_tensor as_tensor(quantized_layer<Format> const& layer, ggml_type type,
                      std::vector<std::byte> const& blocks) {
  return {type, {static_cast<std::size_t>(layer.out), static_cast<std::size_t>(layer.in)}, blocks};
}

/// The type that holds a random layer, whose blocks decode to its weights.
template <class Format>
std::string type_of_layer(index_t in = 96) {
  auto const layer = random_layer<Format>(5, in, false, 91);
  auto const type = lossless_type(layer);
  if (!type) return "none";
  auto const blocks = repack_to_ggml(layer, *type);
  CHECK(to_float(as_tensor(layer, *type, blocks)) == decoded_weights(layer));
  return std::string(type_name(*type));
}

using a4 = format<gptq::asymmetric, 4, 32>;
using f4 = format<gptq::fixed_zero, 4, 32>;

}  // namespace

TEST_CASE("the smallest type of ggml that holds a layer", "[repack]") {
  CHECK(type_of_layer<format<gptq::fixed_zero, 2, 32>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::fixed_zero, 3, 64>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::fixed_zero, 4, whole_row>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::symmetric, 4, 32>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::fixed_zero, 8, 32>>() == "Q8_0");
  CHECK(type_of_layer<format<gptq::asymmetric, 2, 32>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::asymmetric, 3, 32>>() == "Q4_0");
  CHECK(type_of_layer<a4>() == "Q5_0");
  CHECK(type_of_layer<format<gptq::asymmetric, 8, 32>>() == "none");
  CHECK(type_of_layer<format<gptq::half_step, 2, 32>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::half_step, 3, 32>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::half_step, 4, 32>>() == "Q5_0");
  CHECK(type_of_layer<format<gptq::half_step, 8, 32>>() == "none");
  CHECK(type_of_layer<format<test::five_levels, 3, 32>>() == "Q4_0");
  CHECK(type_of_layer<format<gptq::fixed_zero, 4, 48>>() == "none");
  CHECK(type_of_layer<format<gptq::fixed_zero, 4, 16>>() == "none");
  CHECK(type_of_layer<f4>(72) == "none");
  CHECK_FALSE(lossless_type(random_layer<f4>(5, 96, true, 91)));

  // With scales of few digits the minimum is a float16, and four bits are enough.
  auto layer = random_layer<a4>(5, 96, false, 92);
  for (std::size_t i = 0; i < layer.scales.size(); ++i) layer.scales[i] = i % 2 == 0 ? 0.5F : -0.25F;
  for (ggml_type const type : {ggml_type::q4_1, ggml_type::q5_0, ggml_type::q5_1, ggml_type::q8_0}) {
    auto const blocks = repack_to_ggml(layer, type);
    CHECK(to_float(as_tensor(layer, type, blocks)) == decoded_weights(layer));
  }
  CHECK(lossless_type(layer) == ggml_type::q4_1);
  // A level beyond the type in one place is enough, wherever it is.
  for (std::size_t const place : {0U, 240U, 479U}) {
    auto narrow = random_layer<a4>(5, 96, false, 93);
    narrow.zeros.assign(narrow.zeros.size(), 8);
    CHECK(lossless_type(narrow) == ggml_type::q4_0);
    narrow.zeros[place / 32] = 0;
    narrow.codes.assign(narrow.codes.size(), 4);
    CHECK(lossless_type(narrow) == ggml_type::q4_0);
    narrow.codes[place] = 7;
    CHECK(lossless_type(narrow) == ggml_type::q4_0);
    narrow.codes[place] = 8;
    CHECK(lossless_type(narrow) != ggml_type::q4_0);
  }
}

TEST_CASE("what cannot be repacked is refused with what can", "[repack]") {
  auto layer = random_layer<a4>(5, 96, false, 94);
  layer.zeros.assign(layer.zeros.size(), 8);
  layer.zeros[4] = 3;  // row 1, columns 32..63
  layer.codes.assign(layer.codes.size(), 8);
  layer.codes[96 + 32] = 11;
  CHECK(error_of([&] { repack_to_ggml(layer, ggml_type::q4_0); }) ==
        "GGUF Q4_0 cannot hold this layer without rounding: row 1, columns 32 and on: its level 8 is not "
        "between -8 "
        "and 7; Q5_0 can");
  layer.scales[4] = static_cast<float>(gptq::float16(0.1F));
  CHECK(error_of([&] {
          repack_to_ggml(layer, ggml_type::q4_1);
        }).starts_with("GGUF Q4_1 cannot hold this layer without rounding: row "));
  CHECK(error_of([&] { repack_to_ggml(layer, ggml_type::q4_k); }) ==
        "Q4_K is not for codes: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are");
  auto const wide = random_layer<format<gptq::asymmetric, 8, 32>>(5, 96, false, 95);
  CHECK(contains(error_of([&] { repack_to_ggml(wide, ggml_type::q8_0); }),
                 "; only its decoded weights can be written, as F32"));
  CHECK(error_of([] { repack_to_ggml(random_layer<f4>(5, 96, true, 96), ggml_type::q4_0); }) ==
        "GGUF Q4_0 cannot hold this layer without rounding: its columns are reordered, for which there is no "
        "place");
  CHECK(error_of([] { repack_to_ggml(random_layer<f4>(5, 40, false, 96), ggml_type::q4_0); }) ==
        "GGUF Q4_0 cannot hold this layer without rounding: rows of 40 weights are no whole blocks of 32");
  CHECK(
      error_of([] {
        repack_to_ggml(random_layer<format<gptq::fixed_zero, 4, 8>>(5, 96, false, 96), ggml_type::q4_0);
      }) ==
      "GGUF Q4_0 cannot hold this layer without rounding: groups of 8 columns share blocks of 32, which have "
      "one scale");

  // Scales that float16 does not hold, in the first, a middle and the last place.
  for (std::size_t const place : {0U, 7U, 14U}) {
    auto precise = random_layer<format<gptq::fixed_zero, 4, 32, float>>(8, 96, false, 97);
    CHECK_NOTHROW(repack_to_ggml(precise, ggml_type::q4_0));
    CHECK_NOTHROW(repack_to_gptq(precise, gptq_version::v2));
    CHECK_NOTHROW(to_awq(precise));
    precise.scales[place] = 0.1F;
    std::string const where = "row " + std::to_string(place / 3);
    CHECK(
        error_of([&] { repack_to_ggml(precise, ggml_type::q4_0); }) ==
        "GGUF Q4_0 cannot hold this layer without rounding: " + where + ", columns " +
            std::to_string(place % 3 * 32) +
            " and on: its scale 0.100000001 is no float16; only its decoded weights can be written, as F32");
    std::string const scale = "the scale of " + where + ", group " + std::to_string(place % 3) +
                              " is 0.100000001, which float16 cannot hold";
    CHECK(error_of([&] { repack_to_gptq(precise, gptq_version::v2); }) == "GPTQ checkpoint: " + scale);
    CHECK(error_of([&] { to_awq(precise); }) == "AWQ checkpoint: " + scale);
    CHECK(error_of([&] { to_compressed(precise); }) == "compressed-tensors: " + scale);
  }
}

TEST_CASE("blocks become layers again", "[repack]") {
  auto const check_back = []<class From, class To>(From, To, ggml_type type) {
    auto const layer = random_layer<From>(5, 96, false, 98);
    auto const blocks = repack_to_ggml(layer, type);
    auto const tensor = as_tensor(layer, type, blocks);
    CHECK(gptq::to_spec<To>() == spec_for(type));
    auto const back = repack_from_ggml<To>(tensor);
    CHECK(decoded_weights(back) == to_float(tensor));
    CHECK(decoded_weights(back) == decoded_weights(layer));
    auto const tensors = repack_to_gptq(random_layer<To>(32, 96, false, 98), gptq_version::v2);
    CHECK(tensors.g_idx.size() == 96);
  };
  using f8 = format<gptq::fixed_zero, 8, 32>;
  check_back(f4(), f4(), ggml_type::q4_0);
  check_back(a4(), f8(), ggml_type::q5_0);
  check_back(f8(), f8(), ggml_type::q8_0);
  auto layer = random_layer<a4>(5, 96, false, 99);
  layer.scales.assign(layer.scales.size(), 0.5F);
  for (ggml_type const type : {ggml_type::q4_1, ggml_type::q5_1}) {
    auto const blocks = repack_to_ggml(layer, type);
    auto const tensor = as_tensor(layer, type, blocks);
    if (type == ggml_type::q4_1)
      CHECK(decoded_weights(repack_from_ggml<a4>(tensor)) == decoded_weights(layer));
    CHECK(decoded_weights(repack_from_ggml<format<gptq::asymmetric, 8, 32>>(tensor)) ==
          decoded_weights(layer));
    CHECK(spec_for(type).bits == (type == ggml_type::q4_1 ? 4 : 8));
  }
  // A minimum that is rounded belongs to a zero point for kernels, and not without rounding.
  auto const rounded = random_layer<a4>(5, 96, false, 100);
  auto const blocks = to_ggml(rounded, ggml_type::q4_1);
  CHECK_NOTHROW(to_packed<a4>(as_tensor(rounded, ggml_type::q4_1, blocks)));
  CHECK(contains(error_of([&] { repack_from_ggml<a4>(as_tensor(rounded, ggml_type::q4_1, blocks)); }),
                 ": its minimum is no multiple of its scale"));
  CHECK(error_of([] { spec_for(ggml_type::iq4_nl); }) ==
        "IQ4_NL is not for codes: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are");
}

TEST_CASE("from each checkpoint format into each other", "[repack]") {
  auto const go_around = []<class Format>(Format, bool permuted) {
    CAPTURE(gptq::to_string(gptq::to_spec<Format>()), permuted);
    auto const layer = random_layer<Format>(32, 96, permuted, 101);
    auto const weights = decoded_weights(layer);
    auto const gptq_written = repack_to_gptq(layer, gptq_version::v2);
    auto const from_words = from_gptq<Format>(as_view(gptq_written, 32, 96), gptq_version::v2);
    CHECK(decoded_weights(from_words) == weights);
    auto const compressed = to_compressed(from_words, compressed_scale::float32);
    auto const from_streams = from_compressed<Format>(as_view(compressed));
    CHECK(decoded_weights(from_streams) == weights);
    // In one group the order of columns is the checkpoint's.
    CHECK(from_streams.order.empty() == (!permuted || Format::group_size == whole_row));
    if constexpr (Format::bits == 4) {
      if (!from_streams.order.empty()) {
        CHECK(contains(error_of([&] { to_awq(from_streams); }), "keeps columns in their order"));
        return;
      }
      auto const awq = to_awq(from_streams);
      auto const read = from_awq<format<gptq::asymmetric, 4, Format::group_size>>(as_view(awq, 32, 96));
      CHECK(decoded_weights(read) == weights);
      auto const type = lossless_type(read);
      REQUIRE(type.has_value());
      auto const blocks = repack_to_ggml(read, *type);
      CHECK(to_float(as_tensor(read, *type, blocks)) == weights);
    }
  };
  for (bool const permuted : {false, true}) {
    go_around(a4(), permuted);
    go_around(f4(), permuted);
    go_around(format<gptq::asymmetric, 4, whole_row>(), permuted);
    go_around(format<gptq::asymmetric, 2, 32>(), permuted);
    go_around(format<gptq::fixed_zero, 3, 32>(), permuted);
    go_around(format<gptq::asymmetric, 8, 64>(), permuted);
  }
}

TEST_CASE("what AWQ and compressed-tensors writers refuse", "[repack]") {
  CHECK(error_of([] { to_awq(random_layer<a4>(12, 64, false, 102)); }) ==
        "AWQ checkpoint: 12 outputs do not fill whole 32-bit words; they must be a multiple of 8");
  auto damaged = random_layer<a4>(16, 64, false, 102);
  damaged.codes.pop_back();
  CHECK(contains(error_of([&] { to_awq(damaged); }), "codes has 1023 entries"));
  CHECK(contains(error_of([&] { to_compressed(damaged); }), "codes has 1023 entries"));
  auto layer = random_layer<a4>(16, 64, false, 103);
  layer.scales[31] = 1.0009765625F;  // 1 + 2^-10: float16 has it, bfloat16 does not
  CHECK_NOTHROW(to_compressed(layer));
  layer.scales.assign(32, 0.5F);
  CHECK_NOTHROW(to_compressed(layer, compressed_scale::bfloat16));
  layer.scales[31] = 1.0009765625F;
  CHECK(error_of([&] { to_compressed(layer, compressed_scale::bfloat16); }) ==
        "compressed-tensors: the scale of row 15, group 1 is 1.00097656, which bfloat16 cannot hold");
  // Streams that end within a word, and layers without zero points or order, have no tensors for them.
  for (index_t const out : {1, 5, 33}) {
    auto const odd = random_layer<format<gptq::asymmetric, 3, 24>>(out, 50, true, 104);
    CHECK(decoded_weights(from_compressed<format<gptq::asymmetric, 3, 24>>(as_view(to_compressed(odd)))) ==
          decoded_weights(odd));
  }
  auto const plain = to_compressed(random_layer<f4>(5, 40, false, 105));
  CHECK(plain.weight_zero_point.empty());
  CHECK(plain.weight_g_idx.empty());
  CHECK(plain.weight_shape == std::array<std::int64_t, 2>{5, 40});
}
