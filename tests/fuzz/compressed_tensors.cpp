// Whatever the tensors of a compressed-tensors checkpoint hold, reading them ends in a gptq::error, or in a
// layer that is well-formed and has the codes, zero points and scales of the tensors.
//
// An input is a byte for format and type of the scales, one for out and one for in, two that say of each
// tensor whether it is too short or missing, one for weight_g_idx - none, groups in another order, or as it
// comes -, and the tensors: weight_packed, weight_scale, weight_zero_point, weight_g_idx, weight_shape, zeros
// where the input ends.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <gptq/checkpoint/compressed_tensors.hpp>
#include <gptq/packed.hpp>

#include "attempt.hpp"
#include "tensors.hpp"

namespace {

using namespace gptq::checkpoint;
using fuzz::require;
using gptq::index_t;

constexpr std::size_t head_bytes = 6;

template <class Format>
void read(compressed_view const& view) {
  fuzz::attempt([&] { scales_fit_float16(view); });
  gptq::quantized_layer<Format> layer;
  if (!fuzz::attempt([&] { layer = from_compressed<Format>(view); })) return;
  gptq::check(gptq::pack(layer).view());
  constexpr std::size_t bits = Format::bits;
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  std::size_t const row_bytes = (at(view.in) * bits + 31) / 32 * 4;
  for (index_t row = 0; row < view.out; ++row) {
    auto const stream = view.weight_packed.subspan(at(row) * row_bytes, row_bytes);
    for (index_t p = 0; p < view.in; ++p) {
      index_t const column = layer.order.empty() ? p : index_t{layer.order[at(p)]};
      require(layer.code(row, p) == fuzz::entry(stream, at(column), bits));
    }
    for (index_t g = 0; g < layer.groups(); ++g) {
      // A column of words, whose entries lie one after another.
      std::vector<std::byte> zeros;
      for (std::size_t word = 0; Format::has_zero_point && word < (at(view.out) * bits + 31) / 32; ++word) {
        auto const four = view.weight_zero_point.subspan(4 * (word * at(layer.groups()) + at(g)), 4);
        zeros.insert(zeros.end(), four.begin(), four.end());
      }
      if (Format::has_zero_point) require(layer.grid(row, g).zero == fuzz::entry(zeros, at(row), bits));
    }
  }
}

struct reader {
  std::size_t bits;
  std::size_t group_size;  // 0: whole rows
  void (*read)(compressed_view const&);
};

template <class Scheme, int Bits, int GroupSize, class Scale = gptq::float16>
constexpr reader reader_of{Bits, GroupSize == gptq::whole_row ? 0 : static_cast<std::size_t>(GroupSize),
                           read<gptq::format<Scheme, Bits, GroupSize, Scale>>};

using gptq::asymmetric;
using gptq::fixed_zero;
constexpr std::array readers{
    reader_of<asymmetric, 4, 32>,       reader_of<fixed_zero, 4, 8>,
    reader_of<asymmetric, 8, 8, float>, reader_of<fixed_zero, 8, gptq::whole_row, float>,
    reader_of<asymmetric, 3, 24>,       reader_of<fixed_zero, 2, 16>};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  if (size < head_bytes) return 0;
  reader const& format = readers[data[0] % readers.size()];
  auto const type = static_cast<compressed_scale>(data[0] / readers.size() % 3);
  std::size_t const out = data[1] % 40;
  std::size_t const in = data[2] % 80;
  std::size_t const columns = format.group_size == 0 ? in : format.group_size;
  std::size_t const groups = in == 0 ? 0 : (in + columns - 1) / columns;
  auto const words = [&](std::size_t count) { return (count * format.bits + 31) / 32; };
  fuzz::tensors<5> const tensors(
      std::as_bytes(std::span(data, size)).subspan(head_bytes),
      {out * words(in) * 4, out * groups * static_cast<std::size_t>(scale_bytes(type)),
       words(out) * groups * 4, in * 4, 16},
      data[3] | unsigned{data[4]} << 8);
  // Bytes that come as they may fill no groups, and are no shape.
  std::size_t const step = in % 7 == 0 ? 13 : 7;  // without a common factor with `in`
  std::vector<std::int32_t> g_idx(in);
  for (std::size_t c = 0; c < in; ++c) {
    g_idx[(step * c + data[5]) % in] = static_cast<std::int32_t>(c / columns);
  }
  std::array const shape{static_cast<std::int64_t>(out), static_cast<std::int64_t>(in)};
  compressed_view view{static_cast<index_t>(out),
                       static_cast<index_t>(in),
                       tensors[0],
                       tensors[1],
                       type,
                       tensors[2],
                       tensors[3],
                       tensors[4]};
  if (data[5] % 4 == 0) view.weight_g_idx = {};
  if (data[5] % 4 > 1) view.weight_g_idx = std::as_bytes(std::span(g_idx));
  if (data[5] % 8 < 4) view.weight_shape = {};
  if (data[5] % 8 > 4) view.weight_shape = std::as_bytes(std::span(shape));
  format.read(view);
  return 0;
}
