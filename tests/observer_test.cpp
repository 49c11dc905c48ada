// The observer: which layers it keeps, what it tries on them, and how it spends bytes.
#include <filesystem>
#include <map>

#include <gptq/observer.hpp>
#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "layers.hpp"
#include "support.hpp"

using gptq::attempt;
using gptq::format_spec;
using gptq::hessian;
using gptq::index_t;
using gptq::matrix;
using gptq::observer;
using gptq::refinement;
using gptq::whole_row;
using test::contains;
using test::error_of;

namespace {

using formats =
    gptq::combinations<gptq::schemes<gptq::symmetric>, gptq::bit_widths<4, 8>, gptq::group_sizes<32, 64>>;

struct result {
  gptq::quantize_report report;
  index_t bytes = 0;
  matrix decoded;
};

result quantize(matrix&& weight, hessian const& h, format_spec const& format) {
  return gptq::with_format<formats>(format, [&]<class Format>() {
    auto const layer = gptq::quantize<Format>(std::move(weight), h);
    return result{layer.report, gptq::pack(layer).bytes(), gptq::dequantize(layer)};
  });
}

format_spec const coarse{"symmetric", 4, 64};

/// Some layers of different sizes and losses, two of which share an input.
struct layers {
  std::map<std::string, matrix> weights;
  std::map<std::string, std::shared_ptr<hessian const>> inputs;
  std::map<std::string, result> quantized;

  layers() {
    test::random random(11);
    std::shared_ptr<hessian const> shared;
    for (auto const& [name, out, size] :
         {std::tuple("a", 16, 1.0F), {"b", 32, 4.0F}, {"c", 16, 0.5F}, {"d", 48, 2.0F}}) {
      if (name != std::string("b")) {
        hessian h(128, 1);
        h.add(test::correlated_inputs(200, 128, random));
        shared = std::make_shared<hessian const>(std::move(h));
      }
      inputs[name] = shared;  // b has a's
      weights[name] = size * test::normal_matrix(out, 128, random);
      quantized[name] = quantize(matrix(weights[name]), *shared, coarse);
    }
  }

  void offer_to(observer& o) const {
    for (auto const& [name, weight] : weights) {
      result const& r = quantized.at(name);
      o.offer(
          {name, [&original = weight] { return original; }, inputs.at(name), coarse, r.report.loss, r.bytes});
    }
  }
};

std::vector<format_spec> formats_of(std::vector<std::pair<int, int>> const& bits_and_groups) {
  std::vector<format_spec> all;
  for (auto const& [bits, group] : bits_and_groups) all.push_back({"symmetric", bits, group});
  return all;
}

/// Calls nobody expects.
auto const never = [](std::string const&, result&&) { FAIL("accepted"); };

}  // namespace

TEST_CASE("finer formats: groups halved down to 32, then twice the bits") {
  auto const finer = [](int bits, int group, index_t in = 4096) {
    return gptq::finer_formats({"symmetric", bits, group}, in);
  };
  CHECK(finer(4, 128) == formats_of({{4, 64}, {4, 32}, {8, 128}, {8, 64}, {8, 32}}));
  CHECK(finer(4, 32) == formats_of({{8, 32}}));
  CHECK(finer(3, 64) == formats_of({{3, 32}, {8, 64}, {8, 32}}));
  CHECK(finer(2, 32) == formats_of({{4, 32}, {8, 32}}));
  CHECK(finer(8, 32).empty());
  CHECK(finer(8, whole_row) == formats_of({{8, 128}, {8, 64}, {8, 32}}));
  CHECK(finer(4, whole_row, 64) == formats_of({{4, 32}, {8, whole_row}, {8, 32}}));
  CHECK(gptq::finer_formats({"half_step", 4, 64, gptq::scale_type::float32}, 4096)[0] ==
        format_spec{"half_step", 4, 32, gptq::scale_type::float32});
}

TEST_CASE("the observer keeps the layers of the largest loss") {
  layers const given;
  observer o(3);
  CHECK(o.wants(0.0));
  given.offer_to(o);
  CHECK(o.names() == std::vector<std::string>{"b", "d", "a"});
  double const smallest = given.quantized.at("a").report.loss;
  CHECK_FALSE(o.wants(smallest));
  CHECK(o.wants(1.01 * smallest));
  observer none(0);
  given.offer_to(none);
  CHECK(none.size() == 0);
  CHECK(none.refine(quantize, never).empty());
}

TEST_CASE("refining starts from the original weight and stops at half the loss") {
  layers const given;
  test::scratch const dir;
  bool const spilled = GENERATE(false, true);
  observer o(3, spilled ? dir.path : std::filesystem::path());
  given.offer_to(o);
  // a and b share a Hessian, so three layers have two.
  auto const files = std::distance(std::filesystem::directory_iterator(dir.path), {});
  CHECK(files == (spilled ? 2 : 0));

  std::map<std::string, result> accepted;
  auto const accept = [&](std::string const& name, result&& r) { accepted[name] = std::move(r); };
  double target = 0.0;

  SECTION("half the loss takes more bits here") {
    target = 0.5;
    for (refinement const& r : o.refine(quantize, accept)) {
      INFO(r.name);
      REQUIRE(r.attempts.size() == 3);
      CHECK(r.before().loss == given.quantized.at(r.name).report.loss);
      CHECK(r.attempts[1].format == format_spec{"symmetric", 4, 32});
      CHECK(r.attempts[1].loss > 0.5 * r.before().loss);
      CHECK(r.chosen == 2);
      CHECK(r.after().format == format_spec{"symmetric", 8, 64});
      CHECK(r.after().loss <= 0.5 * r.before().loss);
      CHECK(r.after().bytes > r.before().bytes);
    }
  }
  SECTION("a target that smaller groups reach ends it there") {
    target = 0.99;
    for (refinement const& r : o.refine(quantize, accept, target)) {
      CHECK(r.attempts.size() == 2);
      CHECK(r.chosen == 1);
    }
  }
  SECTION("a target out of reach takes the best") {
    for (refinement const& r : o.refine(quantize, accept, target)) {
      CHECK(r.attempts.size() == 4);
      for (attempt const& tried : r.attempts) CHECK(tried.loss >= r.after().loss);
    }
  }
  REQUIRE(accepted.size() == 3);
  for (auto const& [name, r] : accepted) {
    format_spec const format = target == 0.99 ? format_spec{"symmetric", 4, 32}
                               : target > 0.0 ? format_spec{"symmetric", 8, 64}
                                              : format_spec{"symmetric", 8, 32};
    result const expected = quantize(matrix(given.weights.at(name)), *given.inputs.at(name), format);
    CHECK(r.report.loss == expected.report.loss);
    CHECK(r.decoded == expected.decoded);
  }
}

TEST_CASE("spilled Hessians go with the observer, or with the layer") {
  layers const given;
  test::scratch const dir;
  auto const files = [&] { return std::distance(std::filesystem::directory_iterator(dir.path), {}); };
  {
    observer o(1, dir.path);
    given.offer_to(o);
    CHECK(o.names() == std::vector<std::string>{"b"});
    CHECK(files() == 1);
    std::filesystem::remove_all(dir.path);
    std::filesystem::create_directories(dir.path);
    CHECK(contains(error_of([&] { o.refine(quantize, never); }), "cannot be opened"));
  }
  CHECK(files() == 0);
  observer nowhere(1, dir.path / "none");
  CHECK(contains(error_of([&] { given.offer_to(nowhere); }), "cannot be written"));
}

TEST_CASE("bytes are spent where they remove most loss") {
  layers const given;
  observer o(4);
  given.offer_to(o);
  index_t largest = 0;
  for (refinement const& r : o.spend(index_t{1} << 40, quantize, [](auto&&...) {})) {
    CHECK(r.after().format == format_spec{"symmetric", 8, 32});  // everything, where bytes are no object
    largest += r.after().bytes - r.before().bytes;
  }
  CHECK(largest > 0);

  CHECK(o.spend(0, quantize, never).size() == 4);
  double loss_before = std::numeric_limits<double>::infinity();
  for (index_t const budget : {largest / 8, largest / 4, largest / 2, largest}) {
    std::map<std::string, double> accepted;
    auto const table = o.spend(budget, quantize,
                               [&](std::string const& name, result&& r) { accepted[name] = r.report.loss; });
    index_t spent = 0;
    double loss = 0.0;
    double least_gain = std::numeric_limits<double>::infinity();
    for (refinement const& r : table) {
      spent += r.after().bytes - r.before().bytes;
      loss += r.after().loss;
      CHECK(accepted.contains(r.name) == (r.chosen != 0));
      if (r.chosen == 0) continue;
      CHECK(accepted.at(r.name) == r.after().loss);
      least_gain = std::min(least_gain, (r.before().loss - r.after().loss) /
                                            static_cast<double>(r.after().bytes - r.before().bytes));
    }
    CHECK(spent <= budget);
    CHECK(loss < loss_before);
    loss_before = loss;
    // What is left would not pay for anything that a byte does more for than where it was spent worst.
    for (refinement const& r : table) {
      for (attempt const& other : r.attempts) {
        index_t const bytes = other.bytes - r.after().bytes;
        if (bytes <= 0 || bytes > budget - spent) continue;
        CHECK((r.after().loss - other.loss) / static_cast<double>(bytes) <= least_gain);
      }
    }
  }
}

TEST_CASE("a format that cannot be tried is named with the layer") {
  layers const given;
  observer o(1);
  result const& r = given.quantized.at("a");
  o.offer({"a",
           [&] { return given.weights.at("a"); },
           given.inputs.at("a"),
           {"asymmetric", 4, 64},
           r.report.loss,
           r.bytes});
  std::string const message = error_of([&] { o.refine(quantize, never); });
  CHECK(contains(message, "a, again with asymmetric, 4 bits, groups of 32"));
  CHECK(contains(message, "not compiled"));
}

// ---- at the limits, with losses and bytes made up ----

namespace {

/// What a format makes of a layer: the loss halves with every halving of groups or doubling of bits.
struct made_up {
  gptq::quantize_report report;
  index_t bytes = 0;
};

made_up make_up(matrix&& weight, hessian const&, format_spec const& format) {
  made_up r;
  r.report.loss = static_cast<double>(weight(0, 0)) * format.group_size / format.bits;
  r.bytes = 1000 * format.bits + 64000 / format.group_size;
  return r;
}

std::shared_ptr<hessian const> some_hessian(index_t in = 128) {
  hessian h(in);
  h.add(matrix::Ones(2, in));
  return std::make_shared<hessian const>(std::move(h));
}

gptq::observed_layer layer_losing(std::string name, double loss,
                                  std::shared_ptr<hessian const> h = some_hessian()) {
  auto const size = static_cast<float>(loss * coarse.bits / coarse.group_size);
  return {
      std::move(name), [size] { return matrix::Constant(1, 128, size); }, std::move(h), coarse, loss, 5000};
}

}  // namespace

TEST_CASE("layers of one loss stay in the order they came in") {
  observer o(3);
  for (char const* const name : {"a", "b", "c"}) {
    CHECK(o.wants(1.0));
    o.offer(layer_losing(name, 1.0));
  }
  CHECK(o.names() == std::vector<std::string>{"a", "b", "c"});
  CHECK_FALSE(o.wants(1.0));
  o.offer(layer_losing("d", 1.0));
  CHECK(o.names() == std::vector<std::string>{"a", "b", "c"});
  o.offer(layer_losing("e", std::nextafter(1.0, 2.0)));
  CHECK(o.names() == std::vector<std::string>{"e", "a", "b"});
  o.offer(layer_losing("f", 1.0));
  CHECK(o.names() == std::vector<std::string>{"e", "a", "b"});
}

TEST_CASE("a spilled Hessian is not kept in memory, and is what comes back") {
  test::scratch const dir;
  observer o(2, dir.path);
  auto h = some_hessian();
  std::weak_ptr<hessian const> const watch = h;
  Eigen::MatrixXf const sum = h->sum();
  o.offer(layer_losing("a", 1.0, h));
  o.offer(layer_losing("b", 2.0, std::move(h)));
  CHECK(watch.expired());
  int calls = 0;
  auto const look = [&](matrix&& weight, hessian const& again, format_spec const& format) {
    ++calls;
    CHECK(again.sum() == sum);
    CHECK(again.sequences() == 1);
    return make_up(std::move(weight), again, format);
  };
  o.refine(look, [](auto&&...) {});
  CHECK(calls > 0);
}

TEST_CASE("a target that is met exactly is met") {
  observer o(1);
  o.offer(layer_losing("a", 8.0));
  auto const attempts = [&](double target) {
    return o
        .refine(
            make_up, [](auto&&...) {}, target)[0]
        .attempts;
  };
  // 4 bits in groups of 64: 8; of 32: 4; 8 bits in groups of 64: 4; of 32: 2.
  CHECK(attempts(0.5).size() == 2);
  CHECK(attempts(0.5).back().loss == 4.0);
  CHECK(attempts(std::nextafter(0.5, 0.0)).size() == 4);
  CHECK(attempts(0.25).size() == 4);
  CHECK(attempts(1.0).size() == 1);
}

TEST_CASE("bytes that fit exactly are spent") {
  observer o(2);
  o.offer(layer_losing("a", 8.0));
  o.offer(layer_losing("b", 16.0));
  auto const chosen = [&](index_t budget) {
    std::vector<format_spec> formats;
    for (refinement const& r : o.spend(budget, make_up, [](auto&&...) {}))
      formats.push_back(r.after().format);
    return formats;
  };
  format_spec const smaller_groups{"symmetric", 4, 32}, both{"symmetric", 8, 32};
  // The layers have 5000 bytes; smaller groups 1000 more, twice the bits 4000 more again. b, of the larger loss,
  // is the first.
  CHECK(chosen(0) == std::vector<format_spec>{coarse, coarse});
  CHECK(chosen(999) == std::vector<format_spec>{coarse, coarse});
  CHECK(chosen(1000) == std::vector<format_spec>{smaller_groups, coarse});
  CHECK(chosen(1999) == std::vector<format_spec>{smaller_groups, coarse});
  CHECK(chosen(2000) == std::vector<format_spec>{smaller_groups, smaller_groups});
  CHECK(chosen(5999) == std::vector<format_spec>{smaller_groups, smaller_groups});
  CHECK(chosen(6000) == std::vector<format_spec>{both, smaller_groups});
  CHECK(chosen(10000) == std::vector<format_spec>{both, both});
}
