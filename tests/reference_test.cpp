// The executable specification against dense linear algebra in double.
#include <numeric>

#include <Eigen/Core>

#include <gptq/code_books.hpp>
#include <gptq/packed.hpp>
#include <gptq/reference.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::format;
using gptq::index_t;

namespace {

using dense = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

template <class Format>
gptq::quantized_layer<Format> random_layer(index_t out, index_t in, bool permuted, test::random& random) {
  gptq::quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  constexpr auto levels = Format::levels;
  for (index_t i = 0; i < out * in; ++i) {
    int const code = levels.min_code + random.below(levels.max_code - levels.min_code + 1);
    layer.codes.push_back(static_cast<std::uint8_t>(code));
  }
  for (index_t i = 0; i < out * layer.groups(); ++i) {
    layer.scales.push_back(static_cast<float>(typename Format::scale(random.uniform())));
    if (Format::has_zero_point)
      layer.zeros.push_back(static_cast<std::uint8_t>(random.below(1 << Format::bits)));
  }
  if (permuted) {
    // 7 has no factor in common with the widths below, so its multiples visit every column.
    for (index_t p = 0; p < in; ++p) layer.order.push_back(static_cast<std::int32_t>((7 * p + 3) % in));
  }
  return layer;
}

/// scale * (code - zero) with the zero of the scheme's documentation, or scale * level.
template <class Format>
dense decoded(gptq::quantized_layer<Format> const& layer) {
  dense w(layer.out, layer.in);
  for (index_t row = 0; row < layer.out; ++row) {
    for (index_t p = 0; p < layer.in; ++p) {
      index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
      auto const group = at(row * layer.groups() + p / Format::group_columns(layer.in));
      double const zero = Format::has_zero_point ? static_cast<double>(layer.zeros[group])
                                                 : static_cast<double>(Format::levels.zero);
      double level = layer.code(row, p) - zero;
      if constexpr (Format::is_code_book)
        level = Format::scheme::levels(Format::bits)[at(layer.code(row, p))];
      w(row, column) = static_cast<double>(layer.scales[group]) * level;
    }
  }
  return w;
}

template <class T>
std::vector<T> inputs(index_t n, test::random& random) {
  std::vector<T> x;
  for (index_t i = 0; i < n; ++i) x.push_back(static_cast<T>(random.normal()));
  return x;
}

template <class Format, class T>
void check_products(gptq::packed_view<Format> const& view, dense const& weights, test::random& random) {
  constexpr index_t tokens = 3;
  auto const x = inputs<T>(tokens * view.in, random);
  dense wide(tokens, view.in);
  for (std::size_t i = 0; i < x.size(); ++i) wide.data()[i] = static_cast<double>(x[i]);
  dense const expected = wide * weights.transpose();
  // Two sums in double over `in` products may differ by as many roundings of their magnitudes.
  dense const bound =
      1e-15 * static_cast<double>(view.in) * (wide.cwiseAbs() * weights.cwiseAbs().transpose()).array() +
      1e-300;

  dense y(tokens, view.out);
  gptq::reference::gemm(view, x.data(), tokens, y.data());
  CHECK(((y - expected).array().abs() <= bound.array()).all());
  std::vector<double> one(at(view.out));
  gptq::reference::gemv(view, x.data() + view.in, one.data());
  CHECK(std::equal(one.begin(), one.end(), y.data() + view.out));
}

}  // namespace

TEST_CASE("the reference is the dense product in double", "[reference]") {
  using formats = gptq::combinations<test::own_schemes, test::all_widths, gptq::group_sizes<24>>;
  using others =
      gptq::format_list<format<gptq::asymmetric, 3, gptq::whole_row>,
                        format<gptq::symmetric, 4, gptq::whole_row>, format<test::five_levels, 3, 32>,
                        gptq::mxfp4, gptq::nvfp4, format<test::seven_levels, 3, 24>>;
  auto const check_format = []<class Format>() {
    CAPTURE(gptq::to_string(gptq::to_spec<Format>()));
    test::random random(7);
    for (auto const& [out, in] : {std::pair<index_t, index_t>{1, 1}, {19, 100}}) {
      for (bool const permuted : {false, true}) {
        auto const layer = random_layer<Format>(out, in, permuted, random);
        auto const packed = gptq::pack(layer);
        dense const expected = decoded(layer);
        dense weights(out, in);
        gptq::reference::dequantize(packed.view(), weights.data());
        CHECK(weights == expected);
        // With float16 scales the products are exact in float as well.
        Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> floats(out, in);
        gptq::dequantize(packed.view(), floats.data());
        CHECK(floats.cast<double>() == expected);
        check_products<Format, float>(packed.view(), expected, random);
        check_products<Format, double>(packed.view(), expected, random);
        check_products<Format, gptq::float16>(packed.view(), expected, random);
        check_products<Format, gptq::bfloat16>(packed.view(), expected, random);
      }
    }
  };
  test::for_each_format(formats{}, check_format);
  test::for_each_format(others{}, check_format);
}

TEST_CASE("a product by hand", "[reference]") {
  // 2 x 3, columns stored as 2, 0, 1; -8..7 with scales 0.5 and -2.
  gptq::quantized_layer<format<gptq::fixed_zero, 4, 8>> layer;
  layer.out = 2;
  layer.in = 3;
  layer.codes = {9, 8, 0, 15, 7, 10};
  layer.scales = {0.5F, -2.0F};
  layer.order = {2, 0, 1};
  auto const packed = gptq::pack(layer);
  std::vector<double> weights(6);
  gptq::reference::dequantize(packed.view(), weights.data());
  CHECK(weights == std::vector<double>{0.0, -4.0, 0.5, 2.0, -4.0, -14.0});
  std::vector<float> const x{1.0F, 10.0F, 100.0F};
  std::vector<double> y(2);
  gptq::reference::gemv(packed.view(), x.data(), y.data());
  CHECK(y == std::vector<double>{10.0, -1438.0});
}
