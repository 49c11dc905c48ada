// Which kernels run-time dispatch takes, and that all of those in one program are right.
#include <cmath>
#include <string>
#include <vector>

#include <gptq_dispatch/dispatch_kernels.hpp>

#include <gptq/activations.hpp>
#include <gptq/dispatch.hpp>
#include <gptq/packed.hpp>
#include <gptq/reference.hpp>

#include "catch.hpp"
#include "kernels.hpp"
#include "support.hpp"

using gptq::index_t;

namespace {

struct able {
  static constexpr std::string_view name = "able";
  static bool supported() { return true; }
};
struct better {
  static constexpr std::string_view name = "better";
  static bool supported() { return true; }
};
struct unable {
  static constexpr std::string_view name = "unable";
  static bool supported() { return false; }
};
auto const name_of = []<class Isa>() { return std::string(Isa::name); };

template <class Format>
gptq::packed_matrix<Format> random_matrix(index_t out, index_t in, test::random& random) {
  gptq::quantized_layer<Format> layer;
  layer.out = out;
  layer.in = in;
  auto const levels = Format::levels;
  for (index_t i = 0; i < out * in; ++i) {
    layer.codes.push_back(
        static_cast<std::uint8_t>(levels.min_code + random.below(levels.max_code - levels.min_code + 1)));
  }
  for (index_t i = 0; i < out * layer.groups(); ++i) {
    layer.scales.push_back(gptq::float16(0.5F + random.unit()));
    if (Format::has_zero_point)
      layer.zeros.push_back(static_cast<std::uint8_t>(random.below(1 << Format::bits)));
  }
  return gptq::pack(layer);
}

/// |y - WX| / |WX| of a product.
template <class Format, class T>
double error_of_product(product<Format, T> run) {
  constexpr index_t out = 72, in = 296, tokens = 5;
  test::random random(1);
  auto const matrix = random_matrix<Format>(out, in, random);
  std::vector<T> x;
  for (index_t i = 0; i < tokens * in; ++i) x.push_back(T(random.normal()));
  std::vector<char> workspace(gptq::workspace_bytes<gptq::precision::float32>(matrix.layout(), tokens) * 2);
  std::vector<float> y(tokens * out);
  run(matrix.view(), x.data(), tokens, workspace.data(), y.data());

  std::vector<double> exact(y.size());
  gptq::reference::gemm(matrix.view(), x.data(), tokens, exact.data());
  double error = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    error += (y[i] - exact[i]) * (y[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  return std::sqrt(error / norm);
}

template <class... Isas>
void check_all(gptq::isa::list<Isas...>) {
  auto const check = []<class Isa>() {
    INFO(std::string(Isa::name));
    if (!Isa::supported()) return;
    kernels const run = kernels_for<Isa>();
    CHECK(error_of_product(run.int8_gemm) < 0.01);
    CHECK(error_of_product(run.int15_gemv) < 1e-4);
    CHECK(error_of_product(run.float32_gemm) < 1e-6);
    CHECK(error_of_product(run.int23_in_parts) < 1e-6);
  };
  (check.template operator()<Isas>(), ...);
}

}  // namespace

TEST_CASE("the first ISA that the CPU has is taken", "[dispatch]") {
  CHECK(gptq::dispatch(gptq::isa::list<unable, better, able>{}, name_of) == "better");
  CHECK(gptq::dispatch(gptq::isa::list<able>{}, name_of) == "able");
  CHECK(gptq::dispatch(gptq::isa::list<unable, gptq::isa::generic>{}, name_of) == "generic");
  CHECK(test::error_of([] { gptq::dispatch(gptq::isa::list<unable>{}, name_of); }) ==
        "this CPU can run none of the kernels in this program: unable");
}

TEST_CASE("an ISA by name", "[dispatch]") {
  gptq::isa::list<unable, better, able> const isas;
  CHECK(gptq::dispatch(isas, "able", name_of) == "able");
  CHECK(test::error_of([&] { gptq::dispatch(isas, "unable", name_of); }) ==
        "this CPU cannot run kernels for unable");
  CHECK(test::error_of([&] { gptq::dispatch(isas, "none", name_of); }) ==
        "no kernels for 'none' in this program, only for unable, better, able");
}

TEST_CASE("dispatch without exceptions", "[dispatch]") {
  CHECK(gptq::try_dispatch(gptq::isa::list<unable, better, able>{}, name_of) == "better");
  CHECK(gptq::try_dispatch(gptq::isa::list<able>{}, name_of) == "able");
  CHECK(!gptq::try_dispatch(gptq::isa::list<unable, unable>{}, name_of));
  CHECK(gptq::best_isa() == gptq::dispatch(gptq::isa::all{}, name_of));
}

TEST_CASE("a program knows the ISAs of the library that has its kernels", "[dispatch]") {
  auto const names = []<class... Isas>(gptq::isa::list<Isas...>) {
    std::string all;
    ((all += (all.empty() ? "" : ", ") + std::string(Isas::name)), ...);
    return all;
  };
  CHECK(names(gptq::isa::dispatched{}) == GPTQ_ISAS_OF_KERNELS);
  CHECK(names(gptq::isa::dispatched_by::dispatch_kernels{}) == GPTQ_ISAS_OF_KERNELS);
}

TEST_CASE("kernels for every ISA in one program", "[dispatch]") {
  check_all(gptq::isa::dispatched{});
  CHECK(gptq::dispatch(gptq::isa::dispatched{}, []<class Isa>() { return Isa::supported(); }));
}
