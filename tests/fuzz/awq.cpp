// Whatever the tensors of an AWQ checkpoint hold, reading them ends in a gptq::error, or in a layer that is
// well-formed and has the codes, zero points and scales of the tensors.
//
// An input is a byte for the group size, one for extents out / 4 and one for in, one that says of each tensor
// whether it is too short or missing, and the tensors: qweight, qzeros, scales, zeros where the input ends.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <gptq/checkpoint/awq.hpp>
#include <gptq/packed.hpp>

#include "attempt.hpp"
#include "tensors.hpp"

namespace {

using fuzz::require;
using gptq::index_t;
using gptq::checkpoint::awq_view;

constexpr std::size_t head_bytes = 4;

/// Number `i` of a row of words.
int number(std::span<std::byte const> matrix, index_t row, index_t per_row, index_t i) {
  constexpr std::array<index_t, 8> output_of_nibble{0, 2, 4, 6, 1, 3, 5, 7};
  for (std::size_t nibble = 0; nibble < 8; ++nibble) {
    if (output_of_nibble[nibble] != i % 8) continue;
    index_t const first_of_word = row * per_row + i / 8 * 8;
    return fuzz::entry(matrix, static_cast<std::size_t>(first_of_word) + nibble, 4);
  }
  return -1;
}

template <int GroupSize>
void read(awq_view const& view) {
  using format = gptq::format<gptq::asymmetric, 4, GroupSize>;
  gptq::quantized_layer<format> layer;
  if (!fuzz::attempt([&] { layer = gptq::checkpoint::from_awq<format>(view); })) return;
  gptq::check(gptq::pack(layer).view());
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t p = 0; p < view.in; ++p)
      require(layer.code(row, p) == number(view.qweight, p, view.out, row));
    for (index_t g = 0; g < layer.groups(); ++g) {
      require(layer.grid(row, g).zero == number(view.qzeros, g, view.out, row));
      gptq::float16 scale;
      std::memcpy(&scale, view.scales.data() + 2 * (g * view.out + row), sizeof scale);
      require(layer.grid(row, g).scale == static_cast<float>(scale));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  if (size < head_bytes) return 0;
  constexpr std::array readers{read<32>, read<8>, read<gptq::whole_row>};
  constexpr std::array<std::size_t, 3> group_sizes{32, 8, 0};
  std::size_t const which = data[0] % readers.size();
  std::size_t const out = data[1] % 16 * 4;
  std::size_t const in = data[2] % 80;
  std::size_t const columns = group_sizes[which] == 0 ? in : group_sizes[which];
  std::size_t const groups = in == 0 ? 0 : (in + columns - 1) / columns;
  fuzz::tensors<3> const tensors(std::as_bytes(std::span(data, size)).subspan(head_bytes),
                                 {in * out / 2, groups * out / 2, groups * out * 2}, data[3]);
  readers[which]({static_cast<index_t>(out), static_cast<index_t>(in), tensors[0], tensors[1], tensors[2]});
  return 0;
}
