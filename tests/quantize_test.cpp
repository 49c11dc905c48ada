// GPTQ and round-to-nearest: against the algorithm of the paper, and against what the report claims.
#include <limits>
#include <numeric>

#include <Eigen/Cholesky>

#include <gptq/code_books.hpp>
#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>

#include "catch.hpp"
#include "layers.hpp"
#include "support.hpp"

using gptq::format;
using gptq::grid_rule;
using gptq::hessian;
using gptq::index_t;
using gptq::matrix;
using gptq::quality;
using gptq::quantize_options;
using gptq::quantize_report;
using gptq::quantized_layer;
using gptq::whole_row;
using test::contains;
using test::error_of;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Mean of diag(H) over the inputs that were ever used; 1 when there are none.
double mean_live(Eigen::MatrixXd const& h) {
  auto const live = (h.diagonal().array() != 0.0).count();
  return live == 0 ? 1.0 : h.diagonal().sum() / static_cast<double>(live);
}

/// H with dead inputs counted as average ones, and damped.
Eigen::MatrixXd damped(hessian const& h, double damping) {
  Eigen::MatrixXd full = test::full_hessian(h);
  double const mean = mean_live(full);
  for (index_t i = 0; i < full.rows(); ++i)
    full(i, i) = (full(i, i) == 0.0 ? mean : full(i, i)) + damping * mean;
  return full;
}

/// The weight with its dead inputs zeroed: what GPTQ sees.
matrix live_weight(matrix weight, hessian const& h) {
  for (index_t i = 0; i < weight.cols(); ++i) {
    if (h.sum()(i, i) == 0.0F) weight.col(i).setZero();
  }
  return weight;
}

struct problem {
  matrix weight;
  hessian h;
  hessian held_out;
};

/// A quantized layer without its format's type: most of this file is compiled once, not once a format.
struct result {
  std::vector<int> codes;  ///< [out, in], original column order
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> order;
  matrix decoded;
  quantize_report report;
};

template <class Format>
result plain(quantized_layer<Format> const& layer) {
  check(layer);
  result r{std::vector<int>(layer.codes.size()),
           layer.scales,
           layer.zeros,
           layer.order,
           dequantize(layer),
           layer.report};
  for (index_t p = 0; p < layer.in; ++p) {
    index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
    for (index_t row = 0; row < layer.out; ++row) r.codes[at(row * layer.in + column)] = layer.code(row, p);
  }
  return r;
}

/// A format as a value: what it means, and both ways to quantize with it.
struct any_format {
  gptq::format_spec spec;
  gptq::code_levels levels;
  result (*quantize)(problem const&, quantize_options const&);
  result (*nearest)(problem const&, quantize_options const&);

  std::string name() const { return gptq::to_string(spec); }
  bool is_whole_row() const { return spec.group_size == whole_row; }
};

template <class List>
std::vector<any_format> values_of() {
  std::vector<any_format> formats;
  test::for_each_format(List{}, [&]<class Format>() {
    formats.push_back({gptq::to_spec<Format>(), Format::levels,
                       [](problem const& p, quantize_options const& options) {
                         return plain(gptq::quantize<Format>(p.weight, p.h, options, &p.held_out));
                       },
                       [](problem const& p, quantize_options const& options) {
                         return plain(gptq::round_to_nearest<Format>(p.weight, options, &p.h, &p.held_out));
                       }});
  });
  return formats;
}

struct plain_result {
  std::vector<int> codes;  ///< [out, in], original column order
  double loss = 0.0;
};

/// GPTQ as the paper states it, in double: quantize a column, let the optimal update of all later columns
/// make up for it, take the column out of the inverse Hessian. No blocks, no factorization.
plain_result plain_gptq(any_format const& format, problem const& given, quantize_options const& options) {
  index_t const rows = given.weight.rows(), columns = given.weight.cols();
  index_t const size = format.is_whole_row() ? columns : format.spec.group_size;
  matrix const weight = live_weight(given.weight, given.h);
  Eigen::MatrixXd const full = damped(given.h, options.damping);
  auto const find = [&](Eigen::RowVectorXf const& group) {
    return gptq::find_grid({group.data(), at(group.size())}, format.levels,
                           {.rule = options.grid, .mse = options.mse, .scales = format.spec.scales});
  };

  std::vector<index_t> order(at(columns));
  std::iota(order.begin(), order.end(), 0);
  if (options.act_order) {
    auto const& sum = given.h.sum();
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return sum(a, a) > sum(b, b); });
  }
  Eigen::MatrixXd w(rows, columns), ordered(columns, columns);
  for (index_t p = 0; p < columns; ++p) {
    w.col(p) = weight.col(order[at(p)]).cast<double>();
    for (index_t q = 0; q < columns; ++q) ordered(p, q) = full(order[at(p)], order[at(q)]);
  }
  Eigen::MatrixXd inverse = ordered.llt().solve(Eigen::MatrixXd::Identity(columns, columns));

  plain_result result;
  result.codes.resize(at(rows * columns));
  bool const in_advance = options.static_groups || size >= columns;
  std::vector<gptq::grid> grids(at(rows));
  for (index_t p = 0; p < columns; ++p) {
    index_t const first = order[at(p)] / size * size;
    index_t const later = columns - p - 1;
    for (index_t row = 0; row < rows; ++row) {
      if (in_advance) {
        grids[at(row)] = find(weight.row(row).segment(first, std::min(size, columns - first)));
      } else if (p % size == 0) {
        grids[at(row)] = find(w.row(row).segment(p, std::min(size, columns - p)).cast<float>());
      }
      int const code = format.levels.encode(static_cast<float>(w(row, p)), grids[at(row)]);
      double const error = w(row, p) - static_cast<double>(format.levels.decode(code, grids[at(row)]));
      result.codes[at(row * columns + order[at(p)])] = code;
      result.loss += 0.5 * error * error / inverse(p, p);
      w.row(row).tail(later) -= error / inverse(p, p) * inverse.row(p).tail(later);
    }
    Eigen::VectorXd const column = inverse.col(p).tail(later);
    inverse.bottomRightCorner(later, later) -= column * column.transpose() / inverse(p, p);
  }
  return result;
}

index_t differing(std::vector<int> const& a, std::vector<int> const& b) {
  index_t n = 0;
  for (std::size_t i = 0; i < a.size(); ++i) n += a[i] != b[i] ? 1 : 0;
  return n;
}

bool same(result const& a, result const& b) {
  return a.codes == b.codes && a.scales == b.scales && a.zeros == b.zeros && a.order == b.order &&
         a.report.loss == b.report.loss;
}

/// A weight and the Hessians of calibration and of other tokens. `dead` inputs are zero on the former.
problem make_problem(index_t out, index_t in, std::uint32_t seed, std::vector<index_t> const& dead = {},
                     float scale = 1.0F) {
  test::random random(seed);
  problem p{0.1F * test::normal_matrix(out, in, random), hessian(in), hessian(in)};
  matrix x = test::correlated_inputs(6 * in + 40, in, random) * scale;
  p.held_out.add(x.topRows(2 * in));
  for (index_t const column : dead) x.col(column).setZero();
  for (index_t i = 0; i < 4; ++i) p.h.add(x.middleRows(2 * in + i * (in + 10), in + 10));
  return p;
}

/// 1/2 tr(D H D') in double.
double half_trace(Eigen::MatrixXd const& difference, Eigen::MatrixXd const& h) {
  return 0.5 * (difference * h).cwiseProduct(difference).sum();
}

/// What a report says against what the layer is.
void check_report(result const& layer, problem const& p) {
  constexpr double exact = 1e-12;  // errors of a few roundings of float, where every weight is a level
  quantize_report const& report = layer.report;
  Eigen::MatrixXd const difference = (live_weight(p.weight, p.h) - layer.decoded).cast<double>();
  CHECK(report.loss ==
        Approx(half_trace(difference, damped(p.h, report.damping))).epsilon(1e-4).margin(exact));
  CHECK(report.loss_per_token ==
        Approx(report.loss * static_cast<double>(p.h.sequences()) / p.h.tokens()).margin(exact));
  CHECK(report.output_error ==
        Approx(gptq::output_error(p.weight, layer.decoded, p.h)).epsilon(1e-3).margin(exact));
  CHECK(report.held_out_error ==
        Approx(gptq::output_error(p.weight, layer.decoded, p.held_out)).epsilon(1e-4).margin(exact));
  CHECK(report.snr_db == Approx(-10.0 * std::log10(report.output_error)));
  CHECK(report.held_out_snr_db == Approx(-10.0 * std::log10(report.held_out_error)));
}

using a4 = format<gptq::asymmetric, 4, 32>;
using s4 = format<gptq::symmetric, 4, 32>;
using z4 = format<gptq::fixed_zero, 4, 32>;
using h4 = format<gptq::half_step, 4, 32>;

using a4_s4_z4_h4 = gptq::format_list<a4, s4, z4, h4>;
template <class Groups, class Scale = gptq::float16>
using all_formats = gptq::combinations<test::own_schemes, test::all_widths, Groups, gptq::scale_types<Scale>>;

}  // namespace

// ---- the right codes ----

TEST_CASE("the solver finds the codes of the paper's algorithm", "[quantize]") {
  // 160 inputs: no multiple of 64 or 128, and more than a block of 128. Scales in float32, because a rounding
  // error of the Hessian could otherwise move a scale by a whole step of float16.
  problem const p = make_problem(8, 160, 21);
  std::vector<quantize_options> const variants{
      {},
      {.act_order = true},
      {.static_groups = true},
      {.act_order = true, .static_groups = true},
      {.mse = true, .act_order = true},
      {.grid = grid_rule::signed_amax, .damping = 0.1},
      {.grid = grid_rule::amax, .act_order = true, .block_size = 48}};
  index_t codes = 0, different = 0;
  std::size_t turn = 0;
  auto formats = values_of<all_formats<gptq::group_sizes<32, 64, 128, whole_row>, float>>();
  using books = gptq::format_list<format<gptq::e2m1_levels, 4, 32, float>, gptq::mxfp4,
                                  format<gptq::iq4_nl_levels, 4, 64, float>>;
  for (auto& format : values_of<books>()) formats.push_back(format);
  for (auto const& format : formats) {
    // All formats in the plain way, and by turns in two of the others.
    for (std::size_t const v : {std::size_t{0}, 1 + turn % 6, 1 + (turn + 2) % 6}) {
      quantize_options options = variants[v];
      options.quality = quality::plain;
      if (format.levels.has_zero_point && options.grid != grid_rule::published) continue;
      CAPTURE(format.name(), v);
      auto const layer = format.quantize(p, options);
      auto const expected = plain_gptq(format, p, options);
      index_t const wrong = differing(layer.codes, expected.codes);
      codes += p.weight.size();
      different += wrong;
      // Where float rounding moves a weight over a tie, the rest of its row may follow.
      CHECK(wrong <= 160);
      CHECK(layer.report.loss == Approx(expected.loss).epsilon(wrong == 0 ? 1e-4 : 1e-2));
      CHECK(layer.order.empty() == !(options.act_order && !options.static_groups && !format.is_whole_row()));
    }
    ++turn;
  }
  INFO(different << " of " << codes);
  CHECK(1000 * different <= codes);
}

TEST_CASE("blocks of any size, groups of any size", "[quantize]") {
  problem const p = make_problem(7, 200, 22);
  using formats = gptq::combinations<gptq::schemes<gptq::asymmetric>, gptq::bit_widths<3>,
                                     gptq::group_sizes<8, 24, 32, 136, whole_row>, gptq::scale_types<float>>;
  for (auto const& format : values_of<formats>()) {
    for (bool const act_order : {false, true}) {
      auto const expected = plain_gptq(format, p, {.act_order = act_order});
      for (int const block_size : {1, 7, 32, 40, 100, 128, 1000}) {
        CAPTURE(format.name(), act_order, block_size);
        auto const layer =
            format.quantize(p, {.quality = quality::plain, .act_order = act_order, .block_size = block_size});
        CHECK(differing(layer.codes, expected.codes) <= 3);
        CHECK(layer.report.loss == Approx(expected.loss).epsilon(1e-3));
      }
    }
  }
}

TEST_CASE("code books: every quality reports what its layer is, and beats the one before", "[quantize]") {
  // Rows and groups of very different sizes, one group of zeros.
  problem p = make_problem(40, 136, 27);
  for (index_t row = 0; row < 40; ++row) p.weight.row(row) *= std::exp2(static_cast<float>(row % 12 - 6));
  p.weight.row(3).segment(32, 32).setZero();
  using formats = gptq::format_list<gptq::mxfp4, gptq::nvfp4, format<gptq::iq4_nl_levels, 4, 32>,
                                    format<test::seven_levels, 3, whole_row>,
                                    format<gptq::asymmetric, 4, 32, gptq::e4m3>>;
  for (auto const& format : values_of<formats>()) {
    CAPTURE(format.name());
    auto const nearest = format.nearest(p, {});
    CHECK(nearest.decoded.row(3).segment(32, 32).isZero(0.0F));
    double error = nearest.report.output_error;
    for (quality const q : {quality::plain, quality::fast, quality::best}) {
      auto const layer = format.quantize(p, {.quality = q});
      check_report(layer, p);
      CHECK(layer.report.output_error < error);
      error = layer.report.output_error * 1.02;
    }
    check_report(format.quantize(p, {.quality = quality::reference, .act_order = true}), p);
  }
}

TEST_CASE("scales of type e4m3 are multiples of a power of two", "[quantize]") {
  for (float const magnitude : {0x1p-60F, 0.37F, 1e20F}) {
    problem p = make_problem(9, 40, 28);
    p.weight *= magnitude;
    auto const layer = gptq::quantize<gptq::nvfp4>(p.weight, p.h);
    check(layer);
    int exponent = 0;
    CHECK(std::frexp(layer.matrix_scale, &exponent) == 0.5F);
    float const most = *std::max_element(layer.scales.begin(), layer.scales.end()) / layer.matrix_scale;
    CHECK((most > 56.0F && most <= 448.0F));
    CHECK(gptq::output_error(p.weight, gptq::dequantize(layer), p.h) < 0.01);
    auto damaged = layer;
    damaged.scales[7] = 1.03F * damaged.matrix_scale;
    CHECK(contains(error_of([&] { check(damaged); }), "is not a finite e4m3"));
    damaged = layer;
    damaged.matrix_scale = -1.0F;
    CHECK(contains(error_of([&] { check(damaged); }), "matrix scale"));
  }
}

TEST_CASE("extreme shapes", "[quantize]") {
  using formats =
      gptq::format_list<format<gptq::asymmetric, 2, 32, float>, format<gptq::symmetric, 8, 8, float>,
                        format<gptq::half_step, 3, whole_row, float>, gptq::mxfp4>;
  for (auto const& [out, in] : {std::pair<index_t, index_t>{1, 1}, {1, 70}, {70, 1}, {3, 33}, {129, 31}}) {
    problem const p = make_problem(out, in, 23);
    for (auto const& format : values_of<formats>()) {
      for (bool const act_order : {false, true}) {
        CAPTURE(out, in, format.name(), act_order);
        auto const layer = format.quantize(p, {.quality = quality::plain, .act_order = act_order});
        CHECK(differing(layer.codes, plain_gptq(format, p, {.act_order = act_order}).codes) <= 1);
        check_report(layer, p);
        for (quality const q : {quality::fast, quality::best}) {
          auto const better = format.quantize(p, {.quality = q});
          check_report(better, p);
          CHECK(better.order.empty());
          check_report(format.quantize(p, {.quality = q, .act_order = true}), p);
        }
      }
    }
  }
}

TEST_CASE("our arithmetic and the published one agree", "[quantize]") {
  problem const p = make_problem(24, 256, 24);
  for (auto const& format : values_of<all_formats<gptq::group_sizes<32, 128, whole_row>, float>>()) {
    for (bool const act_order : {false, true}) {
      CAPTURE(format.name(), act_order);
      auto const ours = format.quantize(p, {.quality = quality::plain, .act_order = act_order});
      auto const published = format.quantize(p, {.quality = quality::reference, .act_order = act_order});
      // Groups that start inside a block take their grids from other weights there, which matters at 2 bits.
      if (format.spec.group_size == 32 && format.spec.bits == 2) continue;
      double const bound = format.spec.group_size == 32 ? 0.03 : 1e-2;
      CHECK(ours.report.loss == Approx(published.report.loss).epsilon(bound));
      check_report(published, p);
    }
  }
}

TEST_CASE("GPTQ beats rounding to nearest on correlated inputs", "[quantize]") {
  problem const p = make_problem(32, 128, 25);
  for (auto const& format : values_of<all_formats<gptq::group_sizes<32, whole_row>>>()) {
    CAPTURE(format.name());
    auto const nearest = format.nearest(p, {});
    auto const solved = format.quantize(p, {.act_order = true});
    CHECK(solved.report.loss < 0.8 * nearest.report.loss);
    CHECK(solved.report.held_out_error < 0.8 * nearest.report.held_out_error);
  }
}

TEST_CASE("the same bits for any number of threads, and for a weight moved in", "[quantize]") {
  problem const p = make_problem(300, 320, 26, {5, 6, 319});
  auto const check_format = [&]<class Format>() {
    auto const solve = [&](int threads) {
      return gptq::quantize<Format>(p.weight, p.h, {.act_order = true, .threads = threads}, &p.held_out);
    };
    auto const round = [&](int threads) {
      return plain(gptq::round_to_nearest<Format>(p.weight, {.threads = threads}, &p.h));
    };
    result const one = plain(solve(1));
    for (int const threads : {0, 2, 3, 7}) {
      result const some = plain(solve(threads));
      CHECK(same(one, some));
      CHECK(one.report.output_error == some.report.output_error);
      CHECK(one.report.held_out_error == some.report.held_out_error);
      CHECK(same(round(1), round(threads)));
    }
    matrix copy = p.weight;
    CHECK(same(one, plain(gptq::quantize<Format>(std::move(copy), p.h, {.act_order = true}))));
    Eigen::MatrixXf const by_columns = p.weight;
    CHECK(same(one, plain(gptq::quantize<Format>(by_columns, p.h, {.act_order = true}))));
    CHECK(same(one, plain(gptq::quantize<Format>(1.0F * p.weight, p.h, {.act_order = true}))));
  };
  check_format.template operator()<format<gptq::asymmetric, 4, 64>>();
  check_format.template operator()<format<gptq::half_step, 3, whole_row>>();
}

TEST_CASE("the unit of the activations does not matter", "[quantize]") {
  for (std::vector<index_t> const& dead : {std::vector<index_t>{}, std::vector<index_t>{0, 17}}) {
    problem const p = make_problem(20, 96, 27, dead);
    problem const scaled = make_problem(20, 96, 27, dead, 0x1p-9F);
    for (auto const& format : values_of<a4_s4_z4_h4>()) {
      for (bool const act_order : {false, true}) {
        auto const a = format.quantize(p, {.act_order = act_order});
        auto const b = format.quantize(scaled, {.act_order = act_order});
        CHECK((a.codes == b.codes && a.scales == b.scales && a.zeros == b.zeros && a.order == b.order));
        CHECK(b.report.loss == a.report.loss * 0x1p-18);
        CHECK(a.report.output_error == b.report.output_error);
      }
    }
  }
}

// ---- what the report says ----

TEST_CASE("the report is what the layer is", "[quantize]") {
  using two_widths =
      gptq::combinations<test::own_schemes, gptq::bit_widths<2, 4>, gptq::group_sizes<32, whole_row>>;
  std::vector<quantize_options> const variants{
      {.quality = quality::plain},
      {.quality = quality::plain, .act_order = true},
      {.quality = quality::plain, .mse = true, .damping = 0.2},
      {.quality = quality::plain, .act_order = true, .static_groups = true},
      {},
      {.quality = quality::best, .damping = 0.2}};
  for (std::vector<index_t> const& dead : {std::vector<index_t>{}, std::vector<index_t>{0, 33, 34, 94}}) {
    problem const p = make_problem(20, 95, 28, dead);
    for (auto const& format : values_of<two_widths>()) {
      for (auto const& options : variants) {
        CAPTURE(dead.size(), format.name(), int(options.quality), options.act_order, options.static_groups);
        auto const layer = format.quantize(p, options);
        check_report(layer, p);
        CHECK(layer.report.dead_columns == static_cast<index_t>(dead.size()));
        CHECK(layer.report.damping == options.damping);
        CHECK(layer.report.damping_raised == 0);
        double const plain_loss = plain_gptq(format, p, options).loss;
        if (options.quality == quality::plain) {
          CHECK(layer.report.loss == Approx(plain_loss).epsilon(0.02));
        } else {
          CHECK(layer.report.loss < plain_loss);
        }
        // An input never seen costs nothing, and decodes to what is nearest to zero.
        float const step = *std::max_element(layer.scales.begin(), layer.scales.end());
        for (index_t const column : dead) {
          CHECK(layer.decoded.col(column).cwiseAbs().maxCoeff() <=
                (format.levels.is_half_step() ? step / 2 : 0.0F));
        }
      }
    }
  }
}

TEST_CASE("what was not measured is not a number", "[quantize]") {
  problem const p = make_problem(4, 40, 29);
  auto const measured = gptq::quantize<a4>(p.weight, p.h);
  CHECK(std::isfinite(measured.report.output_error));
  CHECK((std::isnan(measured.report.held_out_error) && std::isnan(measured.report.held_out_snr_db)));
  CHECK(measured.report.seconds >= measured.report.seconds_columns);
  auto const quick = gptq::quantize<a4>(p.weight, p.h, {.measure_output_error = false});
  CHECK((std::isnan(quick.report.output_error) && std::isnan(quick.report.snr_db)));
  CHECK(same(plain(quick), plain(measured)));
  auto const nearest = gptq::round_to_nearest<a4>(p.weight);
  CHECK((std::isnan(nearest.report.loss) && std::isnan(nearest.report.output_error)));
}

TEST_CASE("output_error by hand", "[quantize]") {
  hessian h(2);
  h.add(matrix{{1.0F, 2.0F}, {0.0F, 3.0F}});
  matrix const w{{1.0F, 1.0F}, {2.0F, 0.0F}};
  matrix const q{{1.0F, 2.0F}, {2.0F, 0.0F}};
  // Outputs (3, 3), (2, 0); differences (2, 3), (0, 0).
  CHECK(gptq::output_error(w, q, h) == Approx(13.0 / 22.0));
  CHECK(contains(error_of([&] { gptq::output_error(w, matrix(2, 3), h); }), "do not agree"));
  CHECK(contains(error_of([&] { gptq::output_error(w, q, hessian(3)); }), "do not agree"));
}

// ---- rounding to nearest ----

TEST_CASE("rounding to nearest", "[quantize]") {
  problem const p = make_problem(67, 104, 30);
  for (auto const& format : values_of<all_formats<gptq::group_sizes<32, whole_row>>>()) {
    CAPTURE(format.name());
    auto const layer = format.nearest(p, {.mse = true});
    index_t const size = format.is_whole_row() ? 104 : 32;
    std::size_t group = 0;
    int wrong = 0;
    for (index_t row = 0; row < 67; ++row) {
      for (index_t first = 0; first < 104; first += size, ++group) {
        std::span<float const> const weights(p.weight.row(row).data() + first,
                                             at(std::min(size, 104 - first)));
        gptq::grid const g =
            gptq::find_grid(weights, format.levels, {.mse = true, .scales = format.spec.scales});
        wrong +=
            g.scale != layer.scales[group] || (format.levels.has_zero_point && g.zero != layer.zeros[group]);
        for (std::size_t c = 0; c < weights.size(); ++c) {
          wrong += layer.codes[at(row * 104 + first) + c] != format.levels.encode(weights[c], g);
        }
      }
    }
    CHECK(wrong == 0);
    check_report(layer, p);  // no damping: the loss is the plain one
    CHECK(layer.report.damping == 0.0);
  }
}

// ---- unusual inputs ----

TEST_CASE("inputs that were never used", "[quantize]") {
  problem p = make_problem(5, 40, 31);
  p.h = hessian(40);
  p.h.add(matrix::Zero(50, 40));
  for (auto const& format : values_of<all_formats<gptq::group_sizes<32, whole_row>>>()) {
    CAPTURE(format.name());
    result const rounded = format.nearest(p, {});
    for (quality const q : {quality::reference, quality::plain, quality::fast, quality::best}) {
      result const layer = format.quantize(p, {.quality = q, .act_order = true});
      CHECK(layer.report.dead_columns == 40);
      CHECK(layer.report.loss == 0.0);
      CHECK(layer.report.loss_per_token == 0.0);
      CHECK(std::isnan(layer.report.output_error));
      CHECK_FALSE(std::signbit(layer.report.output_error));
      CHECK(layer.decoded == rounded.decoded);
      CHECK(layer.order.empty());
      CHECK(layer.report.held_out_error == rounded.report.held_out_error);
      CHECK(layer.report.held_out_error < 0.6);
    }
  }
}

TEST_CASE("rows of zeros and of one value", "[quantize]") {
  problem p = make_problem(4, 72, 32);
  p.weight.row(0).setZero();
  p.weight.row(1).setConstant(0.25F);
  p.weight.row(2).setConstant(-3.0F);
  for (auto const& format : values_of<all_formats<gptq::group_sizes<32, whole_row>>>()) {
    CAPTURE(format.name());
    for (gptq::quality const work : {gptq::quality::fast, gptq::quality::best}) {
      auto const layer = format.quantize(p, {.quality = work, .act_order = true});
      check_report(layer, p);
      CHECK(layer.decoded.row(0) == matrix::Zero(1, 72));
    }
    auto const nearest = format.nearest(p, {});
    CHECK(nearest.decoded.row(0) == matrix::Zero(1, 72));
    if (format.spec.scheme == "asymmetric" ||
        format.spec.scheme == "symmetric") {  // amax is one of the levels
      CHECK((nearest.decoded - p.weight).middleRows(1, 2).cwiseAbs().maxCoeff() < 3e-3F);
    }
  }
}

TEST_CASE("fewer tokens than inputs: damping is raised and reported", "[quantize]") {
  test::random random(33);
  matrix const weight = test::normal_matrix(10, 160, random);
  hessian h(160);
  h.add(test::correlated_inputs(12, 160, random));
  auto const layer = gptq::quantize<a4>(weight, h, {.damping = 0.0});
  CHECK(layer.report.damping_raised >= 1);
  CHECK(layer.report.damping == Approx(1e-5 * std::pow(10.0, layer.report.damping_raised)));
  CHECK(std::isfinite(layer.report.loss));
  auto const same_damping = gptq::quantize<a4>(weight, h, {.damping = layer.report.damping});
  CHECK(same(plain(layer), plain(same_damping)));
  CHECK(same_damping.report.damping_raised == 0);
  CHECK(layer.report.output_error < gptq::round_to_nearest<a4>(weight, {}, &h).report.output_error);
}

TEST_CASE("a matrix that is no Hessian", "[quantize]") {
  Eigen::MatrixXf const indefinite{{1.0F, 9.0F}, {9.0F, 3.0F}};
  std::string const error =
      error_of([&] { gptq::quantize<a4>(matrix::Ones(2, 2), hessian::from_matrix(indefinite, 5, 1)); });
  CHECK(contains(error, "Hessian of 2 inputs is not positive definite with damping 1.0"));
  CHECK(contains(error, "diagonal from 1.0"));
  CHECK(contains(error, "to 3.0"));
  CHECK(contains(error, "5.0"));
  CHECK(!error_of([&] {
           gptq::quantize<a4>(matrix::Ones(2, 2), hessian::from_matrix(indefinite, 5, 1),
                              {.quality = quality::reference});
         }).empty());
}

TEST_CASE("NaN and infinity are named with their place", "[quantize]") {
  problem const p = make_problem(6, 40, 34);
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    matrix weight = p.weight;
    weight(4, 7) = bad;
    CHECK(contains(error_of([&] { gptq::quantize<a4>(weight, p.h); }),
                   "row 4, column 7 is " + std::to_string(bad)));
    CHECK(contains(error_of([&] { gptq::round_to_nearest<a4>(weight); }), "row 4, column 7"));
    Eigen::MatrixXf entries = test::full_hessian(p.h).cast<float>();
    entries(9, 3) = bad;
    hessian const broken = hessian::from_matrix(entries, 10, 1);
    CHECK(
        contains(error_of([&] { gptq::quantize<a4>(p.weight, broken); }), "entry (9, 3) of the hessian is "));
    CHECK(contains(error_of([&] { gptq::quantize<a4>(p.weight, p.h, {}, &broken); }),
                   "entry (9, 3) of the held-out hessian is "));
    CHECK(
        contains(error_of([&] { gptq::round_to_nearest<a4>(p.weight, {}, &broken); }), "of the hessian is "));
  }
  hessian overflow(40);
  overflow.add(matrix::Constant(2, 40, 1e30F));
  CHECK(contains(error_of([&] { gptq::quantize<a4>(p.weight, overflow); }),
                 "entry (0, 0) of the hessian is inf"));
}

TEST_CASE("wrong shapes and options", "[quantize]") {
  problem const p = make_problem(6, 40, 35);
  hessian const narrow(39), unused(40);
  auto const error = [&](matrix const& weight, hessian const& h, quantize_options const& options = {},
                         hessian const* held_out = nullptr) {
    return error_of([&] { gptq::quantize<a4>(weight, h, options, held_out); });
  };
  CHECK(error(p.weight, p.h).empty());
  CHECK(contains(error(p.weight, narrow), "weight has 40 columns, the hessian 39"));
  CHECK(contains(error(p.weight, p.h, {}, &narrow), "the held-out hessian 39"));
  CHECK(contains(error(p.weight, unused), "hessian has seen no tokens"));
  CHECK(contains(error(p.weight, p.h, {}, &unused), "held-out hessian has seen no tokens"));
  CHECK(contains(error(matrix(0, 40), p.h), "empty (0 x 40)"));
  CHECK(contains(error(matrix(6, 0), p.h), "empty (6 x 0)"));
  CHECK(contains(error(p.weight, p.h, {.block_size = 0}), "block_size is 0"));
  CHECK(contains(error(p.weight, p.h, {.block_size = -128}), "block_size is -128"));
  CHECK(contains(error(p.weight, p.h, {.damping = -0.01}), "damping is -0.01"));
  CHECK(contains(error(p.weight, p.h, {.damping = std::nan("")}), "damping is"));
  CHECK(contains(error(p.weight, p.h, {.grid = grid_rule::amax}), "grid rule amax"));
  CHECK(contains(error_of([&] { gptq::round_to_nearest<a4>(p.weight, {.grid = grid_rule::signed_amax}); }),
                 "grid rule signed_amax"));
  CHECK(contains(error_of([&] { gptq::round_to_nearest<a4>(p.weight, {}, &narrow); }), "the hessian 39"));
}

TEST_CASE("a scale that float16 cannot hold", "[quantize]") {
  problem p = make_problem(6, 64, 36);
  p.weight(3, 40) = 1e7F;
  using wide = format<gptq::symmetric, 4, 32, float>;
  for (bool const static_groups : {false, true}) {
    CHECK(contains(error_of([&] { gptq::quantize<s4>(p.weight, p.h, {.static_groups = static_groups}); }),
                   "scale of row 3, group 1 is beyond the range"));
    CHECK_NOTHROW(gptq::quantize<wide>(p.weight, p.h, {.static_groups = static_groups}));
  }
  CHECK(contains(error_of([&] { gptq::round_to_nearest<s4>(p.weight); }), "row 3, group 1"));
}

TEST_CASE("weights too small for float16 scales keep their signs or vanish", "[quantize]") {
  problem p = make_problem(5, 64, 37);
  p.weight *= 1e-8F;
  auto const layer = gptq::quantize<s4>(p.weight, p.h);
  check(layer);
  for (float const scale : layer.scales) CHECK(scale == 0x1p-24F);
  CHECK(dequantize(layer).cwiseAbs().maxCoeff() <= 0x1p-24F);
}

// ---- a stranger's scheme ----

TEST_CASE("a scheme of one's own goes through everything", "[quantize]") {
  problem const p = make_problem(18, 136, 38);
  for (auto const& format : values_of<test::stranger_formats>()) {
    CAPTURE(format.name());
    auto const solved = format.quantize(p, {.act_order = true});
    auto const nearest = format.nearest(p, {});
    check_report(solved, p);
    check_report(nearest, p);
    CHECK(solved.report.output_error < nearest.report.output_error);
    gptq::with_format<test::stranger_formats>(format.spec, [&]<class Format>() {
      auto const layer = gptq::quantize<Format>(p.weight, p.h, {.act_order = true});
      CHECK(same(plain(layer), solved));
      auto const packed = gptq::pack(layer);
      CHECK(gptq::unpack(packed.view()).codes == layer.codes);
      matrix decoded(18, 136);
      gptq::dequantize(packed.view(), decoded.data());
      CHECK(decoded == solved.decoded);
    });
  }
}

TEST_CASE("a scheme's own grids are used, and stored as any other", "[quantize]") {
  problem const p = make_problem(9, 64, 39);
  auto const layer = gptq::round_to_nearest<format<test::mean_ternary, 2, 64>>(p.weight);
  auto const even = gptq::round_to_nearest<format<test::even_zero, 4, 64>>(p.weight);
  for (index_t row = 0; row < 9; ++row) {
    float const mean = p.weight.row(row).cwiseAbs().mean();
    CHECK(layer.grid(row, 0).scale == Approx(mean).epsilon(0x1p-10));
    CHECK(static_cast<float>(gptq::float16(layer.grid(row, 0).scale)) == layer.grid(row, 0).scale);
    CHECK(even.grid(row, 0).zero == 8);
  }
  // Another rule is the user's decision against it.
  auto const amax =
      gptq::round_to_nearest<format<test::mean_ternary, 2, 64, float>>(p.weight, {.grid = grid_rule::amax});
  CHECK(amax.grid(2, 0).scale == p.weight.row(2).cwiseAbs().maxCoeff());
}
