// Formats as types, and the way from a configuration file's values to them.
#include <set>
#include <type_traits>
#include <typeindex>

#include <gptq/format_spec.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::format;
using gptq::format_list;
using gptq::format_spec;
using gptq::scale_type;
using gptq::whole_row;

namespace {

using q4 = format<gptq::symmetric, 4, 128>;
static_assert(q4::bits == 4 && q4::group_size == 128 && !q4::has_zero_point);
static_assert(std::is_same_v<q4::scheme, gptq::symmetric> && std::is_same_v<q4::scale, gptq::float16>);
static_assert(q4::scales == scale_type::float16);
static_assert(format<gptq::asymmetric, 3, 24, float>::scales == scale_type::float32);
static_assert(format<gptq::asymmetric, 3, 24, float>::has_zero_point);
static_assert(q4::levels.min_code == 1 && q4::levels.max_code == 15 && q4::levels.zero == 8.0F);

// The last group of a row may be shorter: 288 = 2 * 128 + 32.
static_assert(q4::groups(288) == 3 && q4::groups(256) == 2 && q4::groups(1) == 1 && q4::groups(0) == 0);
static_assert(q4::group_columns(288) == 128 && q4::group_columns(5) == 128);
using row = format<gptq::half_step, 2, whole_row>;
static_assert(row::groups(288) == 1 && row::group_columns(288) == 288 && row::groups(0) == 0);

static_assert(gptq::storage_format<q4> && gptq::storage_format<row>);
static_assert(!gptq::storage_format<int> && !gptq::storage_format<gptq::symmetric>);
static_assert(!gptq::storage_format<q4 const&>);

// Every combination, the last list running fastest.
static_assert(
    std::is_same_v<gptq::combinations<gptq::schemes<gptq::symmetric, gptq::half_step>, gptq::bit_widths<2, 8>,
                                      gptq::group_sizes<32>, gptq::scale_types<gptq::float16, float>>,
                   format_list<format<gptq::symmetric, 2, 32>, format<gptq::symmetric, 2, 32, float>,
                               format<gptq::symmetric, 8, 32>, format<gptq::symmetric, 8, 32, float>,
                               format<gptq::half_step, 2, 32>, format<gptq::half_step, 2, 32, float>,
                               format<gptq::half_step, 8, 32>, format<gptq::half_step, 8, 32, float>>>);
static_assert(std::is_same_v<gptq::combinations<gptq::schemes<>, gptq::bit_widths<2>, gptq::group_sizes<32>>,
                             format_list<>>);

}  // namespace

TEST_CASE("with_format finds the type that the values name", "[format]") {
  auto const type = []<class Format>() { return std::type_index(typeid(Format)); };
  std::set<std::string> seen;
  test::for_each_format(gptq::default_formats{}, [&]<class Format>() {
    format_spec const spec = gptq::to_spec<Format>();
    INFO(gptq::to_string(spec));
    CHECK((gptq::with_format(spec, type) == type.template operator()<Format>()));
    seen.insert(gptq::to_string(spec));
  });
  CHECK(seen.size() == 64);
}

TEST_CASE("specifications as text", "[format]") {
  CHECK(gptq::to_string({"symmetric", 4, 128, scale_type::float16}) ==
        "symmetric, 4 bits, groups of 128, float16 scales");
  CHECK(gptq::to_string(gptq::to_spec<format<gptq::asymmetric, 2, whole_row, float>>()) ==
        "asymmetric, 2 bits, one group a row, float32 scales");
  CHECK(format_spec{"a"} == format_spec{"a", 4, 128, scale_type::float16});
  CHECK(!(format_spec{"a"} == format_spec{"b"}));
}

TEST_CASE("a stranger's scheme is found by its name", "[format]") {
  using formats = format_list<q4, format<test::five_levels, 3, 64>, format<test::mean_ternary, 2, 32>>;
  int const bits =
      gptq::with_format<formats>({.scheme = "five_levels", .bits = 3, .group_size = 64}, []<class Format>() {
        static_assert(gptq::storage_format<Format>);
        return Format::levels.max_code;
      });
  CHECK(bits == 4);
  gptq::with_format<formats>({.scheme = "mean_ternary", .bits = 2, .group_size = 32}, [&]<class Format>() {
    CHECK(std::is_same_v<typename Format::scheme, test::mean_ternary>);
  });
}

TEST_CASE("with_format returns what the function returns", "[format]") {
  int value = 1;
  int& same =
      gptq::with_format<format_list<q4>>({.scheme = "symmetric"}, [&]<class>() -> int& { return value; });
  CHECK(&same == &value);
}

TEST_CASE("a format that is not compiled in is an error that says what is", "[format]") {
  using formats =
      format_list<format<gptq::symmetric, 4, 128>, format<test::five_levels, 3, whole_row, float>>;
  auto const error = [](format_spec const& spec) {
    return test::error_of([&] { gptq::with_format<formats>(spec, []<class>() { FAIL("found"); }); });
  };
  CHECK(
      error({.scheme = "symmetric", .bits = 5, .group_size = 96}) ==
      "format (symmetric, 5 bits, groups of 96, float16 scales) is not compiled into this program; it has "
      "schemes symmetric, five_levels; bits 4, 3; group sizes 128, -1; scales float16, float32 (not in every "
      "combination)");
}

TEST_CASE("each of the four values has to agree", "[format]") {
  auto const missing = [](format_spec const& spec) {
    return !test::error_of([&] { gptq::with_format<format_list<q4>>(spec, []<class>() {}); }).empty();
  };
  CHECK(!missing({"symmetric", 4, 128, scale_type::float16}));
  CHECK(missing({"fixed_zero", 4, 128, scale_type::float16}));
  CHECK(missing({"symmetric", 3, 128, scale_type::float16}));
  CHECK(missing({"symmetric", 4, 64, scale_type::float16}));
  CHECK(missing({"symmetric", 4, whole_row, scale_type::float16}));
  CHECK(missing({"symmetric", 4, 128, scale_type::float32}));
  CHECK(missing({"", 4, 128, scale_type::float16}));
}
