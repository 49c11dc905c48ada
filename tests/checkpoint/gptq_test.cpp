// The tensors of GPTQ checkpoints, read back bit by bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>

#include <gptq/checkpoint/gptq.hpp>

#include "bad_inputs.hpp"
#include "catch.hpp"
#include "support.hpp"

using gptq::format;
using gptq::index_t;
using gptq::quantized_layer;
using gptq::whole_row;
using gptq::checkpoint::from_gptq;
using gptq::checkpoint::gptq_tensors;
using gptq::checkpoint::gptq_version;
using gptq::checkpoint::gptq_view;
using gptq::checkpoint::proven_version;
using gptq::checkpoint::to_gptq;
using gptq::checkpoint::to_packed;
using test::contains;
using test::error_of;

namespace {

std::atomic<bool> memory_is_out = false;

}  // namespace

void* operator new(std::size_t bytes) {
  void* const memory = memory_is_out ? nullptr : std::malloc(bytes);
  return memory != nullptr ? memory : throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::nothrow_t const&) noexcept {
  return memory_is_out ? nullptr : std::malloc(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// The value of `bits` bits at entry k of stream `s` of `streams`, whose words lie `streams` apart: qweight.
int along_columns(std::vector<std::uint32_t> const& words, index_t streams, index_t s, index_t k, int bits) {
  int value = 0;
  for (int b = 0; b < bits; ++b) {
    index_t const bit = k * bits + b;
    value |= static_cast<int>(words[at(bit / 32 * streams + s)] >> (bit % 32) & 1U) << b;
  }
  return value;
}

/// The same for a row of `per_row` words after each other: qzeros.
int along_row(std::vector<std::uint32_t> const& words, index_t per_row, index_t row, index_t n, int bits) {
  int value = 0;
  for (int b = 0; b < bits; ++b) {
    index_t const bit = n * bits + b;
    value |= static_cast<int>(words[at(row * per_row + bit / 32)] >> (bit % 32) & 1U) << b;
  }
  return value;
}

index_t position_of(std::vector<std::int32_t> const& order, index_t column) {
  return std::find(order.begin(), order.end(), static_cast<std::int32_t>(column)) - order.begin();
}

/// Random codes; zeros are at least `lowest_zero`.
template <class Format>
quantized_layer<Format> random_layer(index_t out, index_t in, bool permuted, int lowest_zero,
                                     std::uint32_t seed) {
  test::random random(seed);
  quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  constexpr auto levels = Format::levels;
  for (index_t i = 0; i < out * in; ++i) {
    int const code = levels.min_code + random.below(levels.max_code - levels.min_code + 1);
    layer.codes.push_back(static_cast<std::uint8_t>(code));
  }
  for (index_t i = 0; i < out * layer.groups(); ++i) {
    layer.scales.push_back(static_cast<float>(gptq::float16(random.uniform())));
    if (Format::has_zero_point) {
      layer.zeros.push_back(
          static_cast<std::uint8_t>(lowest_zero + random.below((1 << Format::bits) - lowest_zero)));
    }
  }
  // 7 and the widths here have no common factor, so this visits every column.
  for (index_t p = 0; permuted && p < in; ++p)
    layer.order.push_back(static_cast<std::int32_t>((7 * p + 5) % in));
  return layer;
}

/// Both ways to a packed matrix, and several threads, make the same bytes.
template <class Format>
void check_packed(gptq_view const& view, gptq_version version) {
  auto backwards = [](int parts, auto const& work) {
    for (int part = parts; part-- > 0;) work(part);
  };
  auto expected = gptq::pack(from_gptq<Format>(view, version));
  auto const shape = expected.layout();
  auto const same = [](auto const* a, auto const* b, index_t count) {
    return count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof *a) == 0;
  };
  for (int const parts : {1, 3}) {
    auto packed = to_packed<Format>(view, version, backwards, parts);
    CHECK(packed.order() == expected.order());
    CHECK(same(packed.codes(), expected.codes(), shape.code_bytes()));
    CHECK(same(packed.scales(), expected.scales(), shape.scale_count()));
    CHECK(same(packed.zeros(), expected.zeros(), shape.zero_bytes()));
  }
  // Codes and zeros may be anywhere, whatever was there before, and nothing is written around them.
  gptq::checkpoint::gptq_packer<Format> const packer(view, version);
  for (std::size_t const offset : {1U, 2U, 4U, 8U, 16U, 24U, 32U}) {
    CAPTURE(offset);
    auto const bytes = [&](index_t count) { return std::vector<std::uint8_t>(at(count) + offset + 1, 0xa5); };
    auto codes = bytes(shape.code_bytes());
    auto zeros = bytes(shape.zero_bytes());
    std::vector<typename Format::scale> scales(at(shape.scale_count()), typename Format::scale(-7.0F));
    packer.pack(0, shape.row_blocks(), codes.data() + offset, scales.data(), zeros.data() + offset);
    CHECK(same(codes.data() + offset, expected.codes(), shape.code_bytes()));
    CHECK(same(scales.data(), expected.scales(), shape.scale_count()));
    CHECK(same(zeros.data() + offset, expected.zeros(), shape.zero_bytes()));
    CHECK((codes[offset - 1] == 0xa5 && codes.back() == 0xa5));
    CHECK((zeros[offset - 1] == 0xa5 && zeros.back() == 0xa5));
  }
}

template <class Format>
void check_tensors(index_t out, index_t in, bool permuted, gptq_version version) {
  CAPTURE(gptq::to_string(gptq::to_spec<Format>()), out, in, permuted, version == gptq_version::v1);
  bool const v1 = version == gptq_version::v1;
  auto const layer = random_layer<Format>(out, in, permuted, v1 ? 1 : 0, 41);
  auto const tensors = to_gptq(layer, version);
  constexpr int bits = Format::bits;
  index_t const groups = layer.groups();
  REQUIRE(tensors.qweight.size() == at(in * bits / 32 * out));
  REQUIRE(tensors.qzeros.size() == at(groups * out * bits / 32));
  REQUIRE(tensors.scales.size() == at(groups * out));
  REQUIRE(tensors.g_idx.size() == at(in));
  int wrong = 0;
  for (index_t p = 0; p < in; ++p) {
    index_t const column = permuted ? index_t{layer.order[at(p)]} : p;
    index_t const group = Format::group_size == whole_row ? 0 : p / Format::group_size;
    wrong += tensors.g_idx[at(column)] != group;
    for (index_t row = 0; row < out; ++row) {
      // What a reader of the checkpoint computes for this weight.
      int const code = along_columns(tensors.qweight, out, row, column, bits);
      int const zero = along_row(tensors.qzeros, out * bits / 32, group, row, bits) + (v1 ? 1 : 0);
      float const scale = tensors.scales[at(group * out + row)];
      wrong += code != layer.code(row, p);
      wrong += scale * static_cast<float>(code - zero) !=
               Format::levels.decode(layer.code(row, p), layer.grid(row, group));
    }
  }
  CHECK(wrong == 0);

  if constexpr (Format::has_zero_point || Format::levels.min_code == 0) {
    auto view = as_view(tensors, out, in);
    auto const check_same = [&](quantized_layer<Format> const& read) {
      CHECK(read.scales == layer.scales);
      CHECK(read.zeros == layer.zeros);
      check(read);
      int different = 0;
      for (index_t p = 0; p < in; ++p) {
        // Within a group columns may come in another order.
        index_t const column = read.order.empty() ? p : index_t{read.order[at(p)]};
        index_t const before = permuted ? position_of(layer.order, column) : column;
        different += read.group(p) != layer.group(before);
        for (index_t row = 0; row < out; ++row) different += read.code(row, p) != layer.code(row, before);
      }
      CHECK(different == 0);
    };
    check_same(from_gptq<Format>(view, version));
    check_packed<Format>(view, version);
    if (!permuted) {
      CHECK(from_gptq<Format>(view, version).order.empty());
      view.g_idx = {};
      check_same(from_gptq<Format>(view, version));
    }
  }
}

/// The tensors of a layer, to be damaged.
struct checkpoint_case {
  gptq_tensors tensors;
  index_t out = 16, in = 72;
  gptq_version version = gptq_version::v2;

  gptq_view view() const { return as_view(tensors, out, in); }
};

/// Reads the tensors of a layer after a change, both ways, which agree.
template <class Format>
void read_damaged(std::function<void(checkpoint_case&)> const& change) {
  checkpoint_case c;
  c.tensors = to_gptq(random_layer<Format>(c.out, c.in, true, 1, 45), c.version);
  change(c);
  auto const message = error_of([&] { to_packed<Format>(c.view(), c.version); });
  CHECK(error_of([&] { from_gptq<Format>(c.view(), c.version); }) == message);
  from_gptq<Format>(c.view(), c.version);
}

template <class Format>
std::string damage(std::function<void(checkpoint_case&)> const& change) {
  return error_of([&] { read_damaged<Format>(change); });
}

using a4 = format<gptq::asymmetric, 4, 32>;

}  // namespace

TEST_CASE("a reader of the checkpoint gets the weights back", "[checkpoint]") {
  using formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero>,
                                     test::all_widths, gptq::group_sizes<32, 64, whole_row>>;
  test::for_each_format(formats{}, []<class Format>() {
    for (bool const permuted : {false, true}) {
      for (gptq_version const version : {gptq_version::v1, gptq_version::v2}) {
        check_tensors<Format>(32, 96, permuted, version);
        check_tensors<Format>(64, 32, permuted, version);
      }
    }
  });
  check_tensors<format<test::five_levels, 3, 32>>(32, 64, true, gptq_version::v1);
}

TEST_CASE("a zero point of 0 needs version 2", "[checkpoint]") {
  auto layer = random_layer<a4>(16, 64, false, 1, 42);
  CHECK_NOTHROW(to_gptq(layer));
  layer.zeros[2 * 5 + 1] = 0;  // row 5, group 1
  CHECK(contains(error_of([&] { to_gptq(layer); }), "row 5, group 1 is 0, which version 1 cannot hold"));
  CHECK(along_row(to_gptq(layer, gptq_version::v2).qzeros, 2, 1, 5, 4) == 0);

  // The published writers: -1 covers every bit from entry 5 to the end of its word, and no other word.
  auto const broken = to_gptq(layer, gptq_version::v1, true);
  for (index_t row = 0; row < 16; ++row) {
    int const stored = along_row(broken.qzeros, 2, 1, row, 4);
    CHECK(stored == (row >= 5 && row < 8 ? 15 : layer.zeros[at(2 * row + 1)] - 1));
    CHECK(along_row(broken.qzeros, 2, 0, row, 4) == layer.zeros[at(2 * row)] - 1);
  }
}

TEST_CASE("float32 scales are rounded, not overflowed", "[checkpoint]") {
  quantized_layer<format<gptq::symmetric, 8, whole_row, float>> layer;
  layer.out = layer.in = 4;
  layer.codes.assign(16, 130);
  layer.scales = {0.1F, -3.0F, 1e-9F, 65504.0F};
  auto const tensors = to_gptq(layer);
  for (std::size_t i = 0; i < 4; ++i) CHECK(tensors.scales[i].bits == gptq::float16(layer.scales[i]).bits);
  layer.scales[2] = 1e5F;
  CHECK(contains(error_of([&] { to_gptq(layer); }), "scale of row 2, group 0"));
}

TEST_CASE("layers that do not fill whole words", "[checkpoint]") {
  CHECK(
      contains(error_of([] { to_gptq(random_layer<a4>(8, 36, false, 1, 43)); }),
               "8 x 36 codes of 4 bits do not fill whole 32-bit words; both extents must be multiples of 8"));
  CHECK(contains(error_of([] { to_gptq(random_layer<a4>(9, 32, false, 1, 43)); }), "9 x 32"));
  CHECK(
      contains(error_of([] { to_gptq(random_layer<format<gptq::symmetric, 3, 32>>(16, 32, false, 1, 43)); }),
               "multiples of 32"));
  CHECK(
      error_of([] { to_gptq(random_layer<format<gptq::symmetric, 2, 32>>(16, 48, false, 1, 43)); }).empty());
  auto damaged = random_layer<a4>(8, 32, false, 1, 44);
  damaged.codes.pop_back();
  CHECK(contains(error_of([&] { to_gptq(damaged); }), "codes has 255 entries"));
}

TEST_CASE("words become packed units wherever groups and blocks of rows end", "[checkpoint]") {
  auto const check = []<class Format>(Format, index_t out, index_t in) {
    for (bool const permuted : {false, true}) {
      for (gptq_version const version : {gptq_version::v1, gptq_version::v2}) {
        CAPTURE(gptq::to_string(gptq::to_spec<Format>()), permuted, version == gptq_version::v1);
        auto const layer = random_layer<Format>(out, in, permuted, version == gptq_version::v1 ? 1 : 0, 48);
        auto const tensors = to_gptq(layer, version);
        check_packed<Format>(as_view(tensors, out, in), version);
      }
    }
  };
  check(format<gptq::asymmetric, 4, 32>{}, 40, 72);
  check(format<gptq::asymmetric, 4, 24>{}, 200, 64);
  check(format<gptq::asymmetric, 2, 8>{}, 48, 48);
  check(format<gptq::fixed_zero, 2, 24>{}, 16, 64);
  check(format<gptq::asymmetric, 3, 24>{}, 64, 64);
  check(format<gptq::fixed_zero, 3, 64>{}, 32, 96);
  check(format<gptq::asymmetric, 8, 8>{}, 36, 44);
  check(format<gptq::asymmetric, 8, whole_row, float>{}, 4, 36);
}

TEST_CASE("damaged checkpoint tensors", "[checkpoint]") {
  using f4 = format<gptq::fixed_zero, 4, 32>;
  CHECK(damage<a4>([](auto&) {}).empty());
  CHECK(damage<f4>([](auto&) {}).empty());

  // 16 x 72 codes of 4 bits: 9 x 16 words of codes, groups of 32, 32 and 8 columns.
  using change = std::function<void(checkpoint_case&)>;
  std::vector<test::bad_input> inputs;
  auto const both = [&](std::string const& input, change const& c) {
    CHECK(damage<f4>(c) == damage<a4>(c));
    inputs.push_back({input, [c] { read_damaged<f4>(c); }});
  };
  both("71 columns", [](auto& c) { c.in = 71; });
  both("15 rows", [](auto& c) { c.out = 15; });
  both("no rows", [](auto& c) { c.out = 0; });
  both("-8 columns", [](auto& c) { c.in = -8; });
  both("2^62 rows", [](auto& c) { c.out = index_t{1} << 62; });
  both("more columns than the tensors have", [](auto& c) { c.in = 80; });
  both("qweight cut short", [](auto& c) { c.tensors.qweight.pop_back(); });
  both("no qweight", [](auto& c) { c.tensors.qweight.clear(); });
  both("qzeros cut short", [](auto& c) { c.tensors.qzeros.pop_back(); });
  both("qzeros too long", [](auto& c) { c.tensors.qzeros.push_back(0); });
  both("no qzeros", [](auto& c) { c.tensors.qzeros.clear(); });
  both("scales cut short", [](auto& c) { c.tensors.scales.pop_back(); });
  both("scales too long", [](auto& c) { c.tensors.scales.push_back({}); });
  both("float32 scales", [](auto& c) { c.tensors.scales.resize(2 * c.tensors.scales.size()); });
  both("no scales", [](auto& c) { c.tensors.scales.clear(); });
  both("g_idx cut short", [](auto& c) { c.tensors.g_idx.pop_back(); });
  both("g_idx too long", [](auto& c) { c.tensors.g_idx.push_back(0); });
  both("a group beyond the last", [](auto& c) { c.tensors.g_idx[5] = 3; });
  both("a negative group", [](auto& c) { c.tensors.g_idx[71] = -1; });
  both("one group for all columns",
       [](auto& c) { std::fill(c.tensors.g_idx.begin(), c.tensors.g_idx.end(), 0); });
  both("a column too many in a group",
       [](auto& c) { *std::find(c.tensors.g_idx.begin(), c.tensors.g_idx.end(), 2) = 1; });
  auto const scale = [](std::size_t i, std::uint16_t bits) {
    return [=](checkpoint_case& c) { c.tensors.scales[i] = gptq::float16::from_bits(bits); };
  };
  both("an infinite scale", scale(16 + 3, 0x7c00));
  both("a scale of minus infinity", scale(15, 0xfc00));
  both("a NaN scale", scale(32, 0x7e00));

  // Row 9 of group 1 is the second entry of the second word of four.
  auto const set_zero = [](std::uint32_t zero) {
    return [zero](checkpoint_case& c) { c.tensors.qzeros[3] = (c.tensors.qzeros[3] & ~0xf0U) | zero << 4; };
  };
  inputs.push_back({"sym: true with a zero point of 7", [&] { read_damaged<f4>(set_zero(7)); }});
  inputs.push_back({"sym: true of version 2 read as version 1",
                    [&] { read_damaged<f4>([](auto& c) { c.version = gptq_version::v1; }); }});
  CHECK(damage<a4>(set_zero(0)).empty());
  inputs.push_back({"a zero point of 15 read as version 1", [&] {
                      read_damaged<a4>([&](auto& c) {
                        std::fill(c.tensors.qzeros.begin(), c.tensors.qzeros.end(), 0x88888888U);
                        set_zero(15)(c);
                        c.version = gptq_version::v1;
                      });
                    }});
  inputs.push_back({"qzeros that are no rows, to be proven", [] { proven_version({}, 4, true); }});
  inputs.push_back({"zero points of 5 bits, to be proven", [] {
                      gptq_tensors const tensors{{}, {0, 0, 0, 0, 0}, {}, {}};
                      proven_version(as_view(tensors, 32, 64), 5, true);
                    }});
  test::check_bad_inputs("GPTQ tensors", inputs);
}

TEST_CASE("what zero points prove of the version", "[checkpoint]") {
  using f3 = format<gptq::fixed_zero, 3, 32>;
  for (gptq_version const version : {gptq_version::v1, gptq_version::v2}) {
    auto const symmetric = to_gptq(random_layer<f3>(32, 64, false, 1, 46), version);
    CHECK(proven_version(as_view(symmetric, 32, 64), 3, true) == version);
  }
  auto layer = random_layer<a4>(16, 64, false, 1, 47);
  std::fill(layer.zeros.begin(), layer.zeros.end(), std::uint8_t{8});
  auto const proof = [&](gptq_version version) {
    auto const tensors = to_gptq(layer, version);
    return proven_version(as_view(tensors, 16, 64), 4, false);
  };
  CHECK(proof(gptq_version::v1) == std::nullopt);
  CHECK(proof(gptq_version::v2) == std::nullopt);
  layer.zeros[3] = 15;
  CHECK(proof(gptq_version::v1) == std::nullopt);
  CHECK(proof(gptq_version::v2) == gptq_version::v2);
}

TEST_CASE("bad values in the first, a middle and the last place", "[checkpoint]") {
  // 32 x 96 codes in groups of 32: 3 groups of 32 rows.
  auto const check_places = []<class Format>(Format) {
    constexpr int bits = Format::bits;
    constexpr index_t out = 32;
    constexpr index_t groups = 3;
    CAPTURE(gptq::to_string(gptq::to_spec<Format>()));
    auto const damaged = [&](gptq_version version, auto const& change) {
      checkpoint_case c;
      c.out = out;
      c.in = 96;
      c.version = version;
      c.tensors = to_gptq(random_layer<Format>(c.out, c.in, true, 1, 46), version);
      CHECK(error_of([&] { from_gptq<Format>(c.view(), version); }).empty());
      change(c.tensors);
      auto const message = error_of([&] { from_gptq<Format>(c.view(), version); });
      CHECK(error_of([&] { to_packed<Format>(c.view(), version); }) == message);
      return message;
    };
    for (index_t const place : {index_t{0}, index_t{1}, out, out + 17, groups * out - 2, groups * out - 1}) {
      std::string const name =
          " of row " + std::to_string(place % out) + ", group " + std::to_string(place / out);
      for (auto const& [half, text] :
           {std::pair<std::uint16_t, char const*>{0x7c00, "inf"}, {0xfc00, "-inf"}, {0x7e00, "nan"}}) {
        for (gptq_version const version : {gptq_version::v1, gptq_version::v2}) {
          CHECK(damaged(version, [&, bad = half](gptq_tensors& t) {
                  t.scales[at(place)] = gptq::float16::from_bits(bad);
                }) == "GPTQ checkpoint: the scale" + name + " is " + text);
        }
      }
      auto const set_zero = [&](int stored) {
        return [&, stored](gptq_tensors& t) {
          for (int b = 0; b < bits; ++b) {
            index_t const bit = place * bits + b;
            t.qzeros[at(bit / 32)] &= ~(1U << (bit % 32));
            t.qzeros[at(bit / 32)] |= static_cast<std::uint32_t>(stored >> b & 1) << (bit % 32);
          }
        };
      };
      constexpr int top = (1 << bits) - 1;
      CHECK(damaged(gptq_version::v1, set_zero(top)) ==
            "GPTQ checkpoint: the zero point" + name + " is stored as " + std::to_string(top) +
                ", which version 1 cannot hold; a file of version 2?");
      auto const v2 = damaged(gptq_version::v2, set_zero(top));
      CHECK(v2 == (Format::has_zero_point
                       ? ""
                       : "GPTQ checkpoint: the zero point" + name + " is " + std::to_string(top) + ", not " +
                             std::to_string(1 << (bits - 1)) + " as with sym: true"));
    }
  };
  test::for_each_format(gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::fixed_zero>,
                                           test::all_widths, gptq::group_sizes<32>>{},
                        [&]<class Format>() { check_places(Format{}); });
}

TEST_CASE("a version is proven by all zero points, and by none that are missing", "[checkpoint]") {
  auto const proven = [](std::vector<std::uint32_t> const& qzeros, bool symmetric) {
    gptq_tensors tensors;
    tensors.qzeros = qzeros;
    return proven_version(as_view(tensors, 16, 64), 4, symmetric);
  };
  std::vector<std::uint32_t> const v1(4, 0x77777777U);
  std::vector<std::uint32_t> const v2(4, 0x88888888U);
  CHECK(proven(v1, true) == gptq_version::v1);
  CHECK(proven(v2, true) == gptq_version::v2);
  for (bool const symmetric : {false, true}) CHECK(proven({}, symmetric) == std::nullopt);
  for (std::size_t const place : {0U, 1U, 13U, 30U, 31U}) {
    CAPTURE(place);
    for (auto const& whole : {v1, v2}) {
      auto changed = whole;
      changed[place / 8] |= 15U << (4 * (place % 8));
      CHECK(proven(changed, true) == std::nullopt);  // neither version's, and not asymmetric
      CHECK(proven(changed, false) == gptq_version::v2);
      changed = whole;
      changed[place / 8] ^= 1U << (4 * (place % 8));
      CHECK(proven(changed, true) == std::nullopt);
      CHECK(proven(changed, false) == std::nullopt);
    }
  }
}

TEST_CASE("memory that runs out on another thread's part", "[checkpoint]") {
  auto const tensors = to_gptq(random_layer<a4>(64, 96, true, 1, 47));  // act-order: packing takes memory
  for (int const short_part : {0, 1, 2}) {
    auto const executor = [&](int parts, auto const& work) {
      for (int part = 0; part < parts; ++part) {
        memory_is_out = part == short_part;
        work(part);
      }
      memory_is_out = false;
    };
    bool thrown = false;
    try {
      to_packed<a4>(as_view(tensors, 64, 96), gptq_version::v1, executor, 2);
    } catch (std::bad_alloc const&) {
      thrown = true;
    }
    CHECK(thrown == (short_part < 2));
  }
}
