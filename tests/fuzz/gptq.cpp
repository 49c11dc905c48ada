// Whatever the tensors of a GPTQ checkpoint hold, both ways to read them end in a gptq::error, or in the same
// matrix, which is well-formed and written as the same tensors again.
//
// An input is a byte for format and version, one for extents out / 4 and one for in / 4, one that says of
// each tensor whether it is too short or missing, and the tensors: qweight, qzeros, scales, g_idx, zeros
// where the input ends.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <gptq/checkpoint/gptq.hpp>

#include "attempt.hpp"
#include "tensors.hpp"

namespace {

using namespace gptq::checkpoint;
using fuzz::require;
using gptq::index_t;

constexpr std::size_t head_bytes = 4;

template <class T>
bool same(std::span<std::byte const> bytes, std::vector<T> const& values) {
  auto const have = std::as_bytes(std::span(values));
  return std::equal(bytes.begin(), bytes.end(), have.begin(), have.end());
}

template <class T>
bool same(T const* a, T const* b, index_t count) {
  return count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(T)) == 0;
}

template <class Format>
void read(gptq_view const& view, gptq_version version) {
  fuzz::attempt([&] { proven_version(view, Format::bits, !Format::has_zero_point); });
  gptq::quantized_layer<Format> layer;
  gptq::packed_matrix<Format> packed;
  bool const is_read = fuzz::attempt([&] { layer = from_gptq<Format>(view, version); });
  require(is_read == fuzz::attempt([&] { packed = to_packed<Format>(view, version); }));
  if (!is_read) return;
  auto expected = gptq::pack(layer);  // checks the layer
  gptq::check(packed.view());
  auto const shape = packed.layout();
  require(packed.order() == expected.order());
  require(same(packed.codes(), expected.codes(), shape.code_bytes()));
  require(same(packed.scales(), expected.scales(), shape.scale_count()));
  require(same(packed.zeros(), expected.zeros(), shape.zero_bytes()));
  auto const written = to_gptq(layer, version);
  require(same(view.qweight, written.qweight) && same(view.qzeros, written.qzeros) &&
          same(view.scales, written.scales) && (view.g_idx.empty() || same(view.g_idx, written.g_idx)));
}

struct reader {
  index_t bits;
  int group_size;
  void (*read)(gptq_view const&, gptq_version);
};

template <class Scheme, int Bits, int GroupSize>
constexpr reader reader_of{Bits, GroupSize, read<gptq::format<Scheme, Bits, GroupSize>>};

using gptq::asymmetric;
using gptq::fixed_zero;
constexpr std::array readers{reader_of<asymmetric, 4, 32>, reader_of<fixed_zero, 4, 64>,
                             reader_of<asymmetric, 3, 32>, reader_of<fixed_zero, 3, 24>,
                             reader_of<asymmetric, 2, 8>,  reader_of<fixed_zero, 2, gptq::whole_row>,
                             reader_of<asymmetric, 8, 32>, reader_of<fixed_zero, 8, 8>};

/// The first bytes of an input.
struct head {
  reader const& format;
  gptq_version version;
  index_t out;
  index_t in;
  unsigned damage;  ///< two bits a tensor: 1 half of it, 2 nothing

  explicit head(std::uint8_t const* data)
      : format(readers[data[0] % readers.size()]),
        version((data[0] & 128) == 0 ? gptq_version::v1 : gptq_version::v2),
        out(data[1] % 16 * 4),
        in(data[2] % 32 * 4),
        damage(data[3]) {}

  index_t group_columns() const { return format.group_size == gptq::whole_row ? in : format.group_size; }
  /// Bytes of qweight, qzeros, scales, g_idx.
  std::array<std::size_t, 4> sizes() const {
    index_t const groups = in == 0 ? 0 : (in + group_columns() - 1) / group_columns();
    auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
    return {at(in * format.bits / 8 * out), at(groups * (out * format.bits / 8)), at(groups * out * 2),
            at(in * 4)};
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  if (size < head_bytes) return 0;
  head const h(data);
  fuzz::tensors<4> const tensors(std::as_bytes(std::span(data, size)).subspan(head_bytes), h.sizes(),
                                 h.damage);
  h.format.read({h.out, h.in, tensors[0], tensors[1], tensors[2], tensors[3]}, h.version);
  return 0;
}

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

/// Bytes that are inserted or erased move all tensors behind them, which ends in columns that fill no groups.
/// So tensors are also changed where they are, columns exchange their groups, and there are new shapes, whose
/// groups are filled.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  std::uint32_t state = seed;
  auto const below = [&](std::size_t n) {
    state = state * 1664525 + 1013904223;
    return static_cast<std::size_t>(std::uint64_t{state} * n >> 32);
  };
  std::size_t const action = below(8);
  if (action == 0 || size < head_bytes) return LLVMFuzzerMutate(data, size, max_size);
  if (action == 1) {
    for (std::size_t i = 0; i < 3; ++i) data[i] = static_cast<std::uint8_t>(below(256));
    data[3] = below(4) == 0 ? static_cast<std::uint8_t>(below(256)) : std::uint8_t{0};
  }
  head const h(data);
  auto const sizes = h.sizes();
  std::size_t const g_idx = head_bytes + sizes[0] + sizes[1] + sizes[2];
  std::size_t const whole = g_idx + sizes[3];
  if (whole > max_size) return LLVMFuzzerMutate(data, size, max_size);
  if (size < whole) std::memset(data + size, 0, whole - size);
  auto const columns = static_cast<std::size_t>(h.in);
  if (action == 1) {
    for (std::size_t c = 0; c < columns; ++c) {
      auto const group = static_cast<std::int32_t>(static_cast<index_t>(c) / h.group_columns());
      std::memcpy(data + g_idx + 4 * c, &group, 4);
    }
  } else if (action == 2 && columns > 0) {
    std::uint8_t* const a = data + g_idx + 4 * below(columns);
    std::swap_ranges(a, a + 4, data + g_idx + 4 * below(columns));
  } else {
    std::size_t const tensor = below(4);
    std::size_t start = head_bytes;
    for (std::size_t i = 0; i < tensor; ++i) start += sizes[i];
    if (sizes[tensor] > 0) LLVMFuzzerMutate(data + start, sizes[tensor], sizes[tensor]);
  }
  return whole;
}
