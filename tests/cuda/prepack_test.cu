// The device layout: there and back without a change, on the host, and the same bytes from the device.
#include <gptq/cuda/prepack.cuh>

#include "catch.hpp"
#include "plain_layer.hpp"
#include "support.cuh"

using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

template <class Format>
gptq::packed_matrix<Format> random_matrix(index_t out, index_t in, bool permuted, test::random& random) {
  auto layer = test::random_layer(gptq::to_spec<Format>(), Format::levels, out, in, permuted, random);
  return gptq::pack(gptq::quantized_layer<Format>{out,
                                                  in,
                                                  std::move(layer.codes),
                                                  std::move(layer.scales),
                                                  std::move(layer.zeros),
                                                  std::move(layer.order),
                                                  {}});
}

template <class Format>
bool same(gptq::packed_matrix<Format>& a, gptq::packed_matrix<Format>& b) {
  auto const layout = a.layout();
  auto const equal = [](void const* x, void const* y, index_t bytes) {
    return bytes == 0 || std::memcmp(x, y, static_cast<std::size_t>(bytes)) == 0;
  };
  return a.out() == b.out() && a.in() == b.in() && a.order() == b.order() &&
         equal(a.codes(), b.codes(), layout.code_bytes()) &&
         equal(a.scales(), b.scales(), layout.scale_count() * index_t{sizeof(typename Format::scale)}) &&
         equal(a.zeros(), b.zeros(), layout.zero_bytes());
}

/// A code where the head of prepack.cuh says that it lies.
template <class Format>
int documented_code(cuda::prepacked_view<Format> const& w, index_t row, index_t column) {
  constexpr int bits = Format::bits;
  int const r16 = static_cast<int>(row % 16), c128 = static_cast<int>(column % 128);
  int const g = r16 % 8, upper = r16 / 8, t = c128 % 32 / 8;
  int const f = c128 / 32 * 2 + c128 % 8 / 4, r = upper + 2 * (c128 % 4 / 2), e = c128 % 2;
  int const p = 4 * f + r, lane = 4 * g + t;
  index_t const chunks = (w.in + 127) / 128;
  auto const* const chunk = w.codes + (row / 16 * chunks + column / 128) * 32 * 2 * bits;
  auto const word = [&](int i) {
    bool const half_part = bits == 3 && i >= 4;
    return half_part ? chunk[128 + 2 * lane + i - 4] : chunk[i / 4 * 128 + 4 * lane + i % 4];
  };
  if (bits == 3) {
    return static_cast<int>((word(p / 8) >> (2 * (p % 8) + 16 * e) & 3) |
                            (word(4 + p / 16) >> ((2 * (p % 8) + 2 + p / 8 % 2) % 16 + 16 * e) & 1) << 2);
  }
  int const pairs = 16 / bits;
  return static_cast<int>(word(p / pairs) >> (bits * (p % pairs) + 16 * e) & ((1u << bits) - 1));
}

template <class Format>
void there_and_back(test::random& random) {
  index_t const shapes[][2] = {{1, 8}, {16, 128}, {33, 136}, {40, 520}, {100, 1000}, {0, 128}};
  for (auto const& [out, in] : shapes) {
    for (bool const permuted : {false, true}) {
      INFO(gptq::to_string(gptq::to_spec<Format>()) << " " << out << " x " << in << " " << permuted);
      auto packed = random_matrix<Format>(out, in, permuted, random);
      cuda::prepacked_layout<Format> const layout{out, in};
      bool const ordered = !packed.order().empty();
      std::vector<std::uint8_t> memory(static_cast<std::size_t>(layout.bytes(ordered)) + 8, 0xa5);
      auto const view = cuda::prepack(packed.view(), memory.data());
      for (std::size_t i = memory.size() - 8; i < memory.size(); ++i) CHECK(memory[i] == 0xa5);
      for (int i = 0; i < 50 && out * in > 0; ++i) {
        index_t const row = random.below(static_cast<int>(out)), column = random.below(static_cast<int>(in));
        CHECK(documented_code(view, row, column) == packed.view().code(row, column));
      }
      auto back = cuda::unprepack(view);
      CHECK(same(packed, back));
    }
  }
}

template <class Format>
void on_the_device(test::random& random) {
  auto const packed = random_matrix<Format>(50, 712, true, random);
  auto const view = packed.view();
  auto const layout = view.layout();
  cuda::prepacked_layout<Format> const target{view.out, view.in};
  auto const copy = [](auto const* data, index_t size) {
    return test::device_vector(std::vector(data, data + size));
  };
  auto const codes = copy(view.codes, layout.code_bytes());
  auto const scales = copy(view.scales, layout.scale_count());
  auto const order = copy(view.order, view.in);
  test::device_vector<std::uint8_t> const zeros(
      std::vector<std::uint8_t>(view.zeros, view.zeros + layout.zero_bytes()));
  test::device_vector<std::uint8_t> memory(static_cast<std::size_t>(target.bytes(true)));
  cuda::prepack(
      gptq::packed_view<Format>{codes.data(), scales.data(), zeros.data(), order.data(), view.out, view.in},
      memory.data(), nullptr);
  auto const bytes = memory.host();
  auto back = cuda::unprepack(cuda::prepacked_at(bytes.data(), target, true));
  auto expected = packed;
  CHECK(same(expected, back));
  auto again = cuda::prepacked_matrix<Format>(view).unprepack();
  CHECK(same(expected, again));
}

using formats =
    gptq::format_list<gptq::format<gptq::symmetric, 4, 128>, gptq::format<gptq::asymmetric, 4, 32>,
                      gptq::format<gptq::asymmetric, 3, 64>,
                      gptq::format<gptq::half_step, 2, gptq::whole_row>,
                      gptq::format<gptq::asymmetric, 2, 128>, gptq::format<gptq::asymmetric, 8, 256, float>>;

template <class... Formats>
void each(gptq::format_list<Formats...>, auto&& f) {
  (f.template operator()<Formats>(), ...);
}

}  // namespace

TEST_CASE("prepacking on the host and back changes nothing, and codes lie where documented") {
  auto random = test::fresh_random();
  each(formats{}, [&]<class Format>() { there_and_back<Format>(random); });
}

TEST_CASE("prepacking on the device gives the same") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  each(formats{}, [&]<class Format>() { on_the_device<Format>(random); });
}

TEST_CASE("a shape that cannot be is an error") {
  CHECK_THROWS_AS(cuda::prepacked_at(
                      nullptr, cuda::prepacked_layout<gptq::format<gptq::symmetric, 4, 128>>{-1, 8}, false),
                  cuda::invalid_argument);
}
