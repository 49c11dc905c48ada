// Where codes lie: the bytes against a second writer of the documented layout, and back, for every format.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include <gptq/code_books.hpp>
#include <gptq/packed.hpp>

#include "catch.hpp"
#include "plain_layer.hpp"
#include "support.hpp"

using gptq::format;
using gptq::index_t;
using gptq::quantized_layer;
using gptq::whole_row;
using test::at;
using test::documented_bytes;
using test::plain_layer;

namespace {

static_assert(std::is_trivially_copyable_v<gptq::packed_view<format<gptq::asymmetric, 3, 24>>>);

template <class Format>
quantized_layer<Format> typed(plain_layer const& layer) {
  return {layer.out, layer.in, layer.codes, layer.scales, layer.zeros, layer.order, {}, layer.matrix_scale};
}

template <class Format>
quantized_layer<Format> random_layer(index_t out, index_t in, bool permuted, test::random& random) {
  return typed<Format>(
      test::random_layer(gptq::to_spec<Format>(), Format::levels, out, in, permuted, random));
}

/// A packed matrix and what its view gives back.
struct packed_values {
  documented_bytes bytes;
  plain_layer unpacked;
  std::vector<std::uint8_t> view_codes;
  std::vector<float> view_scales;
  std::vector<int> view_zeros;
  std::vector<float> dequantized;
  index_t total_bytes;
  bool aligned;
};

template <class Format>
packed_values pack_and_back(plain_layer const& layer) {
  auto const packed = gptq::pack(typed<Format>(layer));
  auto view = packed.view();
  auto const layout = view.layout();
  packed_values values{{}, layer, {}, {}, {}, std::vector<float>(layer.codes.size()), packed.bytes(), true};
  values.aligned = reinterpret_cast<std::uintptr_t>(view.codes) % 64 == 0;
  values.bytes.codes.assign(view.codes, view.codes + layout.code_bytes());
  for (index_t i = 0; i < layout.scale_count(); ++i) {
    values.bytes.scales.push_back(view.scales[i] * layer.matrix_scale);
  }
  if (view.zeros != nullptr) values.bytes.zeros.assign(view.zeros, view.zeros + layout.zero_bytes());

  // What follows reads the bytes at an odd address, as in a file mapped to memory.
  std::vector<std::uint8_t> moved_codes(values.bytes.codes.size() + 1);
  std::vector<std::uint8_t> moved_zeros(values.bytes.zeros.size() + 1);
  std::copy(values.bytes.codes.begin(), values.bytes.codes.end(), moved_codes.begin() + 1);
  std::copy(values.bytes.zeros.begin(), values.bytes.zeros.end(), moved_zeros.begin() + 1);
  view.codes = moved_codes.data() + 1;
  if (view.zeros != nullptr) view.zeros = moved_zeros.data() + 1;
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t p = 0; p < layer.in; ++p) {
      values.view_codes.push_back(static_cast<std::uint8_t>(view.code(row, p)));
    }
    for (index_t group = 0; group < layout.groups(); ++group) {
      gptq::grid const g = view.grid(row, group);
      values.view_scales.push_back(g.scale);
      values.view_zeros.push_back(g.zero);
    }
  }
  auto const back = gptq::unpack(view);
  values.unpacked = {layer.spec,  layer.levels, back.out,   back.in,          back.codes,
                     back.scales, back.zeros,   back.order, back.matrix_scale};
  gptq::dequantize(view, values.dequantized.data());
  return values;
}

/// The first promise of packed.hpp that a random layer of this shape breaks, or "".
std::string broken_promise(packed_values (&pack)(plain_layer const&), gptq::format_spec const& spec,
                           gptq::code_levels const& levels, index_t out, index_t in, std::uint32_t seed) {
  test::random random(seed);
  auto const layer = test::random_layer(spec, levels, out, in, seed % 2 == 1, random);
  auto const values = pack(layer);
  auto const expected = test::bytes_as_documented(layer);
  if (values.bytes.codes != expected.codes) return "bytes of codes";
  if (values.bytes.scales != expected.scales) return "order of scales";
  if (values.bytes.zeros != expected.zeros) return "bytes of zeros";
  std::size_t const scale_bytes = spec.scales == gptq::scale_type::float16   ? 2
                                  : spec.scales == gptq::scale_type::float32 ? 4
                                                                             : 1;
  if (at(values.total_bytes) != expected.codes.size() + scale_bytes * expected.scales.size() +
                                    expected.zeros.size() + 4 * layer.order.size()) {
    return "bytes()";
  }
  if (!values.aligned) return "alignment";
  if (!(values.unpacked == layer)) return "unpack(pack(layer))";
  if (values.view_codes != layer.codes) return "view.code()";
  if (values.view_scales != layer.scales) return "view.grid().scale";
  if (levels.has_zero_point &&
      !std::equal(layer.zeros.begin(), layer.zeros.end(), values.view_zeros.begin())) {
    return "view.grid().zero";
  }
  for (index_t row = 0; row < out; ++row) {
    for (index_t p = 0; p < in; ++p) {
      index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
      if (values.dequantized[at(row * in + column)] != layer.weight(row, p)) return "dequantize()";
    }
  }
  return "";
}

/// Checks a shape; a failure is reported for the smallest shape found to fail.
void check_shape(packed_values (&pack)(plain_layer const&), gptq::format_spec const& spec,
                 gptq::code_levels const& levels, index_t out, index_t in, std::uint32_t seed) {
  auto const broken = [&](index_t rows, index_t columns) {
    return rows < 1 || columns < 1 ? "" : broken_promise(pack, spec, levels, rows, columns, seed);
  };
  std::string promise = broken(out, in);
  if (promise.empty()) return;
  for (bool smaller = true; smaller;) {
    smaller = false;
    for (auto const& [rows, columns] :
         {std::pair(out / 2, in), {out, in / 2}, {out - 1, in}, {out, in - 1}}) {
      std::string const still = broken(rows, columns);
      if (still.empty()) continue;
      promise = still;
      out = rows;
      in = columns;
      smaller = true;
      break;
    }
  }
  FAIL_CHECK(gptq::to_string(spec) << ", " << out << " x " << in << ", seed " << seed << ": " << promise);
}

template <class Scheme>
using formats_of = gptq::combinations<gptq::schemes<Scheme>, test::all_widths,
                                      gptq::group_sizes<8, 24, 32, 64, 128, whole_row>>;
using float32_formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::half_step>, test::all_widths,
                                           gptq::group_sizes<24, whole_row>, gptq::scale_types<float>>;

template <class List>
void check_formats() {
  test::for_each_format(List{}, []<class Format>() {
    auto const check = [](index_t out, index_t in, std::uint32_t seed) {
      check_shape(pack_and_back<Format>, gptq::to_spec<Format>(), Format::levels, out, in, seed);
    };
    for (auto const& [out, in] :
         {std::pair<index_t, index_t>{1, 1}, {1, 200}, {67, 1}, {16, 128}, {17, 288}, {32, 64}, {33, 40}}) {
      check(out, in, 0);
      check(out, in, 1);
    }
    for (std::uint32_t seed = 2; seed < 8; ++seed) {
      test::random random(seed);
      index_t const out = 1 + random.below(70);
      check(out, 1 + random.below(300), seed);
    }
  });
}

using q3 = format<gptq::symmetric, 3, 32>;
using a4 = format<gptq::asymmetric, 4, 64>;

template <class Layer, class Change>
std::string error_of_changed(Layer layer, Change&& change) {
  change(layer);
  return test::error_of([&] { gptq::pack(layer); });
}

}  // namespace

TEST_CASE("packed asymmetric matrices", "[packed]") { check_formats<formats_of<gptq::asymmetric>>(); }
TEST_CASE("packed symmetric matrices", "[packed]") { check_formats<formats_of<gptq::symmetric>>(); }
TEST_CASE("packed fixed-zero matrices", "[packed]") { check_formats<formats_of<gptq::fixed_zero>>(); }
TEST_CASE("packed half-step matrices", "[packed]") { check_formats<formats_of<gptq::half_step>>(); }
TEST_CASE("packed matrices with float32 scales", "[packed]") { check_formats<float32_formats>(); }
TEST_CASE("packed matrices of a stranger's schemes", "[packed]") { check_formats<test::stranger_formats>(); }
TEST_CASE("packed matrices in code books", "[packed]") {
  check_formats<gptq::format_list<gptq::mxfp4, gptq::nvfp4, format<gptq::iq4_nl_levels, 4, 32>,
                                  format<test::seven_levels, 3, 24, float>>>();
}

TEST_CASE("known bytes", "[packed]") {
  // Row 1 of 4 bits, columns 0..8: the ninth is the next unit's.
  quantized_layer<format<gptq::fixed_zero, 4, 16>> layer;
  layer.out = 2;
  layer.in = 9;
  layer.codes = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  layer.scales = {1.0F, 2.0F};
  auto const packed = gptq::pack(layer);
  auto const* codes = packed.view().codes;
  CHECK(packed.layout().code_bytes() == 256);
  CHECK((codes[4] == 0x51 && codes[5] == 0x62 && codes[6] == 0x73 && codes[7] == 0x84));
  CHECK(codes[128 + 4] == 9);
  CHECK(packed.view().scales[1].bits == 0x4000);

  // Row 18 is the third of the second half of the unit.
  layer.out = 19;
  layer.codes.assign(19 * 9, 0);
  layer.codes[18 * 9 + 6] = 11;
  layer.scales.assign(19, 1.0F);
  CHECK(gptq::pack(layer).view().codes[64 + 4 * 2 + 2] == 11 << 4);

  // A column of 3 bits: code 6 in column 21, that is t = 5, is in bits 4..6 of the second byte of part 2.
  quantized_layer<q3> three;
  three.out = 1;
  three.in = 32;
  three.codes.assign(32, 4);
  three.codes[21] = 6;
  three.scales = {1.0F};
  auto const packed_three = gptq::pack(three);
  auto const* bytes = packed_three.view().codes;
  CHECK(packed_three.layout().code_bytes() == 384);
  CHECK((bytes[0] == 0x24 && bytes[1] == 0x24 && bytes[64] == 0x24 && bytes[65] == 0x24));
  CHECK((bytes[128] == 0xcc && bytes[129] == 0xec && bytes[130] == 0xcc));
}

TEST_CASE("sizes in bits a weight", "[packed]") {
  CHECK(gptq::packed_matrix<format<gptq::symmetric, 4, 128>>(4096, 4096).bits_per_weight() == 4.125);
  CHECK(gptq::packed_matrix<format<gptq::asymmetric, 3, 64>>(256, 512).bits_per_weight() == 3.0 + 19.0 / 64);
  CHECK(gptq::packed_matrix<format<gptq::symmetric, 2, 32, float>>(32, 32).bits_per_weight() == 3.0);
}

TEST_CASE("an empty packed matrix decodes to zeros", "[packed]") {
  gptq::packed_matrix<format<gptq::fixed_zero, 4, 32>> const matrix(3, 40);
  std::vector<float> weights(120, 1.0F);
  gptq::dequantize(matrix.view(), weights.data());
  CHECK(weights == std::vector<float>(120, 0.0F));
  CHECK(gptq::packed_matrix<a4>().bytes() == 0);
  CHECK(gptq::packed_matrix<a4>().bits_per_weight() == 0.0);
  CHECK(gptq::packed_matrix<a4>(0, 64).bytes() == 0);
  CHECK(gptq::packed_matrix<format<gptq::symmetric, 4, whole_row>>(64, 0).bytes() == 0);
  CHECK(test::contains(test::error_of([] { gptq::packed_matrix<a4>(-1, 4); }), "-1 x 4"));
}

TEST_CASE("scales of either sign and any size survive", "[packed]") {
  quantized_layer<format<gptq::fixed_zero, 4, 8>> layer;
  layer.out = 1;
  layer.in = 40;
  layer.codes.assign(40, 15);
  layer.scales = {-0.5F, 65504.0F, 0x1p-24F, 0.0F, -65504.0F};
  CHECK(gptq::unpack(gptq::pack(layer).view()).scales == layer.scales);
}

TEST_CASE("pack refuses a layer that is not one", "[packed]") {
  test::random random(6);
  auto const good = random_layer<q3>(20, 70, true, random);
  auto const zeros = random_layer<a4>(20, 70, false, random);
  using test::contains;
  CHECK(error_of_changed(good, [](auto&) {}).empty());
  CHECK(contains(error_of_changed(good, [](auto& l) { l.out = -1; }), "negative shape"));
  CHECK(contains(error_of_changed(good, [](auto& l) { l.codes.pop_back(); }),
                 "codes has 1399 entries, not 1400"));
  CHECK(contains(error_of_changed(good, [](auto& l) { l.in = 71; }), "codes has 1400 entries, not 1420"));
  CHECK(contains(error_of_changed(good, [](auto& l) { l.scales.push_back(1); }),
                 "scales has 61 entries, not 60"));
  CHECK(contains(error_of_changed(good, [](auto& l) { l.zeros.resize(60); }), "zeros has 60 entries, not 0"));
  CHECK(contains(error_of_changed(zeros, [](auto& l) { l.zeros.clear(); }), "zeros has 0 entries, not 40"));
  CHECK(
      contains(error_of_changed(good, [](auto& l) { l.order.pop_back(); }), "order has 69 entries, not 70"));
  CHECK(contains(error_of_changed(good, [](auto& l) { l.codes[70 + 3] = 0; }),
                 "code 0 at row 1, position 3 is not between 1 and 7"));
  CHECK(
      contains(error_of_changed(good, [](auto& l) { l.codes[1399] = 8; }), "code 8 at row 19, position 69"));
  CHECK(contains(error_of_changed(zeros, [](auto& l) { l.codes[0] = 16; }), "not between 0 and 15"));
  CHECK(contains(error_of_changed(zeros, [](auto& l) { l.zeros[3] = 16; }),
                 "zero point 16 at row 1, position 1"));
  for (float const scale : {0.1F, 1e5F, -1e6F, 1e-9F, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
    CAPTURE(scale);
    CHECK(contains(error_of_changed(good, [&](auto& l) { l.scales[4] = scale; }),
                   "at row 1, position 1 is not a finite float16"));
  }
  for (std::int32_t const entry : {-1, 70, good.order[6]}) {
    CHECK(contains(error_of_changed(good, [&](auto& l) { l.order[5] = entry; }),
                   "not a permutation of 0..69: entry "));
  }
  auto const wide = random_layer<format<gptq::symmetric, 3, 32, float>>(2, 32, false, random);
  CHECK(error_of_changed(wide, [](auto& l) { l.scales[0] = 1e30F; }).empty());
  CHECK(
      contains(error_of_changed(wide, [](auto& l) { l.scales[0] = std::numeric_limits<float>::infinity(); }),
               "not a finite float32"));
}

TEST_CASE("views of memory from elsewhere", "[packed]") {
  using a3 = format<gptq::asymmetric, 3, 32>;
  gptq::quantized_layer<a3> layer;
  layer.out = 5;
  layer.in = 70;
  layer.codes.assign(5 * 70, 1);
  layer.scales.assign(5 * 3, 0.5F);
  layer.zeros.assign(5 * 3, 4);
  auto packed = gptq::pack(layer);
  packed.order().resize(70);
  std::iota(packed.order().rbegin(), packed.order().rend(), 0);
  auto const damage = [&](auto&& change) {
    auto copy = packed;
    auto view = copy.view();
    change(view, copy);
    return test::error_of([&] { gptq::check(view); });
  };
  CHECK(damage([](auto&, auto&) {}) == "");
  CHECK(damage([](auto& view, auto&) { view = {}; }) == "");
  CHECK(damage([](auto& view, auto&) { view.out = -1; }) == "packed matrix: a shape of -1 x 70");
  CHECK(damage([](auto& view, auto&) { view.codes = nullptr; }) == "packed matrix: no codes");
  CHECK(damage([](auto& view, auto&) { view.scales = nullptr; }) == "packed matrix: no scales");
  CHECK(damage([](auto& view, auto&) { view.zeros = nullptr; }) == "packed matrix: no zero points");
  CHECK(damage([](auto& view, auto&) {
          view.scales = reinterpret_cast<gptq::float16 const*>(view.codes + 1);
        }) == "packed matrix: scales at an address that is no multiple of 2");
  CHECK(damage([](auto&, auto& copy) { copy.order()[69] = 5; }) ==
        "column order is not a permutation of 0..69: entry 69 is 5");
  CHECK(damage([](auto&, auto& copy) { copy.order()[0] = 70; }) ==
        "column order is not a permutation of 0..69: entry 0 is 70");
  CHECK(damage([](auto&, auto& copy) {
          copy.scales()[copy.layout().scale_offset(0, 2) + 4] = gptq::float16::from_bits(0xfc00);
        }) == "packed matrix: the scale of row 4, group 2 is -inf");
}

TEST_CASE("packing into memory of one's own", "[packed]") {
  test::for_each_format(
      gptq::format_list<format<gptq::asymmetric, 3, 32>, format<gptq::symmetric, 4, whole_row, float>,
                        format<gptq::half_step, 8, 24>>{},
      []<class Format>() {
        for (index_t out : {1, 31, 32, 33, 70}) {
          for (bool permuted : {false, true}) {
            test::random random(7);
            auto const layer = random_layer<Format>(out, 100, permuted, random);
            auto const packed = gptq::pack(layer);
            auto const layout = packed.layout();
            // Whatever was there before.
            auto const size = [](index_t n) { return static_cast<std::size_t>(n); };
            std::vector<std::uint8_t> codes(size(layout.code_bytes()), 0xff),
                zeros(size(layout.zero_bytes()), 0xff);
            std::vector<typename Format::scale> scales(size(layout.scale_count()),
                                                       typename Format::scale(9.0F));
            std::vector<std::int32_t> order(100, -1);
            gptq::packed_memory<Format> to{
                codes.data(), scales.data(), zeros.data(), permuted ? order.data() : nullptr, out, 100};
            gptq::pack(layer, to);
            auto const same = [](auto const& have, auto const* want) {
              return std::memcmp(have.data(), want, have.size() * sizeof have[0]) == 0;
            };
            CHECK(same(codes, packed.view().codes));
            CHECK(same(scales, packed.view().scales));
            if (Format::has_zero_point) CHECK(same(zeros, packed.view().zeros));
            if (permuted) CHECK(order == layer.order);
          }
        }
      });
  using q4 = format<gptq::symmetric, 4, 32>;
  test::random random(8);
  auto const layer = random_layer<q4>(40, 64, true, random);
  gptq::packed_matrix<q4> memory(40, 64);
  CHECK(test::error_of([&] { gptq::pack(layer, memory.memory()); }) ==
        "pack: no memory for the layer's column order");
  memory.order().resize(64);
  CHECK_NOTHROW(gptq::pack(layer, memory.memory()));
  auto wrong = memory.memory();
  wrong.out = 41;
  CHECK(test::error_of([&] { gptq::pack(layer, wrong); }) ==
        "pack: memory for a matrix of 41 x 64, not of 40 x 64");
  auto const straight = random_layer<q4>(40, 64, false, random);
  CHECK(test::error_of([&] { gptq::pack(straight, memory.memory()); }) ==
        "pack: memory for a column order, which the layer does not have");
}

TEST_CASE("some rows as weights, of several types", "[packed]") {
  using a3 = format<gptq::asymmetric, 3, 1000>;  // groups of more columns than are decoded at once
  test::random random(9);
  auto const layer = random_layer<a3>(70, 1300, true, random);
  auto const packed = gptq::pack(layer);
  std::vector<float> all(70 * 1300);
  gptq::dequantize(packed.view(), all.data());
  for (index_t row : {0, 33, 69}) {
    for (std::size_t p = 0; p < 1300; ++p) {
      auto const stored = static_cast<index_t>(p);
      float const weight = a3::levels.decode(layer.code(row, stored), layer.grid(row, layer.group(stored)));
      REQUIRE(all[at(row * 1300 + layer.order[p])] == weight);
    }
  }
  for (gptq::row_range rows : {gptq::row_range{0, 1}, {31, 33}, {69, 70}, {5, 5}, {0, 70}}) {
    auto const count = at((rows.last - rows.first) * 1300);
    std::vector<float> some(count + 1, -7.0F);
    gptq::dequantize(packed.view(), rows, some.data());
    CHECK(std::equal(some.begin(), some.end() - 1, all.begin() + rows.first * 1300));
    CHECK(some.back() == -7.0F);
    std::vector<gptq::bfloat16> rounded(count);
    gptq::dequantize(packed.view(), rows, rounded.data());
    bool same = true;
    for (std::size_t i = 0; i < count; ++i) {
      same = same && rounded[i].bits == gptq::bfloat16(all[at(rows.first * 1300) + i]).bits;
    }
    CHECK(same);
  }
}
