// Where a code lies on the device: the layout that all CUDA kernels read, and the way to it and back.
//
//   gptq::cuda::prepacked_matrix<q4> w(packed.view());     // a copy on the device, made once
//   gptq::cuda::prepacked_view<q4> view = w.view();        // pointers and a shape: what gemv and gemm take
//
//   auto layout = gptq::cuda::prepacked_layout<q4>{out, in};
//   cudaMalloc(&memory, layout.bytes());                   // or memory of your own
//   auto view = gptq::cuda::prepack(packed, memory, stream);    // both in memory that the device can reach
//
// Rows are cut into tiles of 16, columns (in stored order) into chunks of 128; the last of each is padded
// with code 0. A (row tile, chunk) pair is what one warp reads at once: 2 * Bits words of 32 bits for each
// lane, as parts of four words a lane (16 bytes, so 512 for the warp) one after the other; with 3 bits the
// second part has two words a lane. Lane 4g+t holds the rows g and g+8 of the tile and, of each 32 columns,
// columns 8t..8t+7: eight fragments of mma.m16n8k16's A operand whose columns are permuted such that B's are
// 16 consecutive bytes of x. Fragment f (of 0..7), register r (of 0..3) and element e (of 0..1) are
//     row     g + 8 * (r % 2)
//     column  32 * (f / 2) + 8t + 4 * (f % 2) + 2 * (r / 2) + e
// and, with p = 4f + r, code bits 0..Bits-1 start at bit
//     2, 4, 8 bits   Bits * (p % (16 / Bits)) + 16e   of word p / (16 / Bits)
//     3 bits         the lower two as with 2 bits; the top one is, of word 4 + p / 16,
//                    bit (2 * (p % 8) + 2 + p / 8 % 2) % 16 + 16e
// so that a mask of a word has the two codes of a register, one in each half.
//
// Scales: 16 for each row tile and group, in the order of rows 0, 8, 1, 9, ...; zeros of the same rows, with
// up to 4 bits two a byte, the first in the low nibble. Groups of less than a chunk are padded to whole
// chunks, with scale and zero 0. Codes, scales, zeros and the column order follow one another, each aligned
// to 256 bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <cuda_runtime.h>
#include <utility>
#include <vector>

#include <gptq/cuda/error.cuh>
#include <gptq/packed.hpp>

namespace gptq::cuda {

/// Rows of a tile and columns of a chunk.
inline constexpr int tile_rows = 16;
inline constexpr int chunk_columns = 128;

/// A format that the CUDA kernels have: groups of 32, 64, multiples of 128, or whole rows; any scheme, width
/// and scale type.
template <class Format>
concept device_format = storage_format<Format> &&
    (Format::group_size == whole_row || Format::group_size == 32 || Format::group_size == 64 ||
     Format::group_size % chunk_columns == 0);

/// Sizes of a prepacked matrix.
template <device_format Format>
struct prepacked_layout {
  index_t out = 0;
  index_t in = 0;

  /// Groups of a chunk, and 32-bit words of codes that a lane has of one.
  static constexpr int chunk_groups = Format::group_size == 32 ? 4 : Format::group_size == 64 ? 2 : 1;
  static constexpr int lane_words = 2 * Format::bits;
  static constexpr int chunk_words = 32 * lane_words;
  /// Bytes of the scales and of the zeros of a row tile and group.
  static constexpr int scale_bytes = tile_rows * int{sizeof(typename Format::scale)};
  static constexpr int zero_bytes = !Format::has_zero_point ? 0 : Format::bits == 8 ? 16 : 8;

  GPTQ_HOST_DEVICE constexpr index_t row_tiles() const { return (out + tile_rows - 1) / tile_rows; }
  GPTQ_HOST_DEVICE constexpr index_t chunks() const { return (in + chunk_columns - 1) / chunk_columns; }
  /// Groups of a row, padding included.
  GPTQ_HOST_DEVICE constexpr index_t groups() const {
    return chunk_groups > 1 ? chunks() * chunk_groups : Format::groups(in);
  }
  /// The (first) group of a chunk.
  GPTQ_HOST_DEVICE constexpr index_t group_of(index_t chunk) const {
    if constexpr (Format::group_size == whole_row) {
      return 0;
    } else if constexpr (chunk_groups > 1) {
      return chunk * chunk_groups;
    } else {
      return chunk / (Format::group_size / chunk_columns);
    }
  }

  /// Offsets from the start of the memory, in bytes.
  constexpr index_t scale_offset() const { return aligned(row_tiles() * chunks() * chunk_words * 4); }
  constexpr index_t zero_offset() const {
    return scale_offset() + aligned(row_tiles() * groups() * scale_bytes);
  }
  constexpr index_t order_offset() const {
    return zero_offset() + aligned(row_tiles() * groups() * zero_bytes);
  }
  /// Bytes of memory, aligned to 256: with a column order, and without.
  constexpr index_t bytes(bool permuted) const { return order_offset() + (permuted ? aligned(4 * in) : 0); }

 private:
  static constexpr index_t aligned(index_t bytes) { return (bytes + 255) / 256 * 256; }
};

/// A prepacked matrix that somebody else owns, on the device or, for the tests, on the host.
template <device_format Format>
struct prepacked_view {
  std::uint32_t const* codes = nullptr;
  typename Format::scale const* scales = nullptr;
  std::uint8_t const* zeros = nullptr;  ///< null without a stored zero point
  std::int32_t const* order = nullptr;  ///< [in] original column of each stored one; null: the same
  index_t out = 0;
  index_t in = 0;

  GPTQ_HOST_DEVICE constexpr prepacked_layout<Format> layout() const { return {out, in}; }
};

/// The view of a prepacked matrix in memory of layout.bytes(permuted) bytes, aligned to 256 bytes.
template <device_format Format>
prepacked_view<Format> prepacked_at(void const* memory, prepacked_layout<Format> layout, bool permuted);

/// Prepacks on the host: `packed` and `memory` are host memory.
template <device_format Format>
prepacked_view<Format> prepack(packed_view<Format> const& packed, void* memory);

/// Prepacks on the device, in stream order: `packed` points to device memory, and so does `memory`.
template <device_format Format>
prepacked_view<Format> prepack(packed_view<Format> const& packed, void* memory, cudaStream_t stream);

/// The packed matrix again, exactly: the view is of host memory.
template <device_format Format>
packed_matrix<Format> unprepack(prepacked_view<Format> const& view);

/// A prepacked matrix that owns device memory. Copying and prepacking are done when the constructor returns.
template <device_format Format>
class prepacked_matrix {
 public:
  /// From a matrix in host memory.
  explicit prepacked_matrix(packed_view<Format> const& packed);
  prepacked_matrix(prepacked_matrix&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), layout_(other.layout_), permuted_(other.permuted_) {}
  prepacked_matrix& operator=(prepacked_matrix other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(layout_, other.layout_);
    std::swap(permuted_, other.permuted_);
    return *this;
  }
  ~prepacked_matrix() { cudaFree(memory_); }

  prepacked_view<Format> view() const { return prepacked_at(memory_, layout_, permuted_); }
  index_t bytes() const { return layout_.bytes(permuted_); }
  /// Back to the host.
  packed_matrix<Format> unprepack() const;

 private:
  void* memory_ = nullptr;
  prepacked_layout<Format> layout_;
  bool permuted_;
};

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// Position of a code among the words that its lane has of a chunk.
struct code_place {
  int word;
  int bit;
};

/// Of pair p = 4 * fragment + register, element e; the lower two bits of a 3-bit code.
template <int Bits>
GPTQ_HOST_DEVICE constexpr code_place place_of(int p, int e) {
  constexpr int width = Bits == 3 ? 2 : Bits;
  constexpr int pairs = 16 / width;
  return {p / pairs, width * (p % pairs) + 16 * e};
}
/// The top bit of a 3-bit code.
GPTQ_HOST_DEVICE constexpr code_place top_place_of(int p, int e) {
  return {4 + p / 16, (2 * (p % 8) + 2 + p / 8 % 2) % 16 + 16 * e};
}

GPTQ_HOST_DEVICE constexpr int row_of(int lane, int p) { return lane / 4 + 8 * (p % 2); }
GPTQ_HOST_DEVICE constexpr int column_of(int lane, int p, int e) {
  return 32 * (p / 8) + 8 * (lane % 4) + 4 * (p / 4 % 2) + 2 * (p / 2 % 2) + e;
}
/// The row of entry i of a tile's scales and zeros.
GPTQ_HOST_DEVICE constexpr int row_of_entry(int i) { return i / 2 + 8 * (i % 2); }

/// Word w of a lane, from the start of its chunk.
template <int Bits>
GPTQ_HOST_DEVICE constexpr int word_offset(int lane, int w) {
  if (Bits == 3 && w >= 4) return 128 + 2 * lane + (w - 4);
  return w / 4 * 128 + 4 * lane + w % 4;
}

template <device_format Format>
GPTQ_HOST_DEVICE constexpr prepacked_layout<Format> layout_of(packed_view<Format> const& packed) {
  return {packed.out, packed.in};
}

template <device_format Format>
GPTQ_HOST_DEVICE void prepack_lane(packed_view<Format> const& packed, index_t tile, index_t chunk, int lane,
                                   std::uint32_t* codes) {
  std::uint32_t words[2 * Format::bits] = {};
  for (int i = 0; i < 64; ++i) {
    int const p = i / 2, e = i % 2;
    index_t const row = tile * tile_rows + row_of(lane, p);
    index_t const column = chunk * chunk_columns + column_of(lane, p, e);
    if (row >= packed.out || column >= packed.in) continue;
    auto const code = static_cast<std::uint32_t>(packed.code(row, column));
    code_place const at = place_of<Format::bits>(p, e);
    if constexpr (Format::bits == 3) {
      words[at.word] |= (code & 3u) << at.bit;
      words[top_place_of(p, e).word] |= (code >> 2) << top_place_of(p, e).bit;
    } else {
      words[at.word] |= code << at.bit;
    }
  }
  index_t const first = (tile * layout_of(packed).chunks() + chunk) * prepacked_layout<Format>::chunk_words;
  for (int w = 0; w < 2 * Format::bits; ++w) codes[first + word_offset<Format::bits>(lane, w)] = words[w];
}

/// Scales and zeros of a row tile and group.
template <device_format Format>
GPTQ_HOST_DEVICE void prepack_group(packed_view<Format> const& packed, index_t tile, index_t group,
                                    typename Format::scale* scales, std::uint8_t* zeros) {
  constexpr int bytes = prepacked_layout<Format>::zero_bytes;
  index_t const at = tile * layout_of(packed).groups() + group;
  int before = 0;
  for (int i = 0; i < tile_rows; ++i) {
    index_t const row = tile * tile_rows + row_of_entry(i);
    bool const inside = row < packed.out && group < Format::groups(packed.in);
    auto const shape = packed.layout();
    index_t const from = inside ? shape.scale_offset(row / packed_rows, group) + row % packed_rows : 0;
    if (inside) {
      scales[at * tile_rows + i] = packed.scales[from];
    } else {
      scales[at * tile_rows + i] = {};
    }
    if constexpr (Format::has_zero_point) {
      int const zero = inside ? packed.grid(row, group).zero : 0;
      if constexpr (Format::bits == 8) {
        zeros[at * bytes + i] = static_cast<std::uint8_t>(zero);
      } else if (i % 2 != 0) {
        zeros[at * bytes + i / 2] = static_cast<std::uint8_t>(before | zero << 4);
      }
      before = zero;
    }
  }
}

template <device_format Format>
__global__ void prepack_codes(packed_view<Format> packed, std::uint32_t* codes) {
  auto const layout = layout_of(packed);
  index_t const chunk = index_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (chunk >= layout.row_tiles() * layout.chunks()) return;
  prepack_lane(packed, chunk / layout.chunks(), chunk % layout.chunks(), threadIdx.x % 32, codes);
}

template <device_format Format>
__global__ void prepack_groups(packed_view<Format> packed, typename Format::scale* scales,
                               std::uint8_t* zeros) {
  auto const layout = layout_of(packed);
  index_t const group = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (group >= layout.row_tiles() * layout.groups()) return;
  prepack_group(packed, group / layout.groups(), group % layout.groups(), scales, zeros);
}

inline void check_shape(index_t out, index_t in) {
  if (out < 0 || in < 0 || out > index_t{1} << 22 || in > index_t{1} << 24) {
    throw invalid_argument("gptq::cuda: a matrix of " + std::to_string(out) + " x " + std::to_string(in) +
                           "; up to 2^22 rows and 2^24 columns are possible");
  }
}

}  // namespace detail

template <device_format Format>
prepacked_view<Format> prepacked_at(void const* memory, prepacked_layout<Format> layout, bool permuted) {
  detail::check_shape(layout.out, layout.in);
  auto const* const base = static_cast<std::uint8_t const*>(memory);
  return {reinterpret_cast<std::uint32_t const*>(base),
          reinterpret_cast<typename Format::scale const*>(base + layout.scale_offset()),
          Format::has_zero_point ? base + layout.zero_offset() : nullptr,
          permuted ? reinterpret_cast<std::int32_t const*>(base + layout.order_offset()) : nullptr,
          layout.out,
          layout.in};
}

template <device_format Format>
prepacked_view<Format> prepack(packed_view<Format> const& packed, void* memory) {
  auto const layout = detail::layout_of(packed);
  auto const view = prepacked_at(memory, layout, packed.order != nullptr);
  std::memset(memory, 0, static_cast<std::size_t>(layout.bytes(packed.order != nullptr)));
  for (index_t tile = 0; tile < layout.row_tiles(); ++tile) {
    for (index_t chunk = 0; chunk < layout.chunks(); ++chunk) {
      for (int lane = 0; lane < 32; ++lane) {
        detail::prepack_lane(packed, tile, chunk, lane, const_cast<std::uint32_t*>(view.codes));
      }
    }
    for (index_t group = 0; group < layout.groups(); ++group) {
      detail::prepack_group(packed, tile, group, const_cast<typename Format::scale*>(view.scales),
                            const_cast<std::uint8_t*>(view.zeros));
    }
  }
  if (packed.order != nullptr) {
    std::memcpy(const_cast<std::int32_t*>(view.order), packed.order, 4 * static_cast<std::size_t>(packed.in));
  }
  return view;
}

template <device_format Format>
prepacked_view<Format> prepack(packed_view<Format> const& packed, void* memory, cudaStream_t stream) {
  device::current();
  auto const layout = detail::layout_of(packed);
  auto const view = prepacked_at(memory, layout, packed.order != nullptr);
  if (packed.out == 0 || packed.in == 0) return view;
  constexpr unsigned threads = 128;
  auto const blocks = [](index_t items, index_t of_block) {
    return static_cast<unsigned>((items + of_block - 1) / of_block);
  };
  launch(detail::prepack_codes<Format>,
         {.grid = blocks(layout.row_tiles() * layout.chunks(), threads / 32),
          .block = threads,
          .stream = stream},
         packed, const_cast<std::uint32_t*>(view.codes));
  launch(detail::prepack_groups<Format>,
         {.grid = blocks(layout.row_tiles() * layout.groups(), threads), .block = threads, .stream = stream},
         packed, const_cast<typename Format::scale*>(view.scales), const_cast<std::uint8_t*>(view.zeros));
  if (packed.order != nullptr) {
    check(cudaMemcpyAsync(const_cast<std::int32_t*>(view.order), packed.order,
                          4 * static_cast<std::size_t>(packed.in), cudaMemcpyDeviceToDevice, stream),
          "copying a column order");
  }
  return view;
}

template <device_format Format>
packed_matrix<Format> unprepack(prepacked_view<Format> const& view) {
  constexpr int bits = Format::bits;
  auto const layout = view.layout();
  packed_matrix<Format> packed(view.out, view.in);
  auto const shape = packed.layout();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(layout.chunks() * chunk_columns));
  for (index_t row = 0; row < view.out; ++row) {
    index_t const tile = row / tile_rows;
    int const in_tile = static_cast<int>(row % tile_rows);
    int const lanes = 4 * (in_tile % 8);  // the first of the four that hold the row
    for (index_t chunk = 0; chunk < layout.chunks(); ++chunk) {
      std::uint32_t const* const words =
          view.codes + (tile * layout.chunks() + chunk) * prepacked_layout<Format>::chunk_words;
      for (int lane = lanes; lane < lanes + 4; ++lane) {
        for (int p = in_tile / 8; p < 32; p += 2) {
          for (int e = 0; e < 2; ++e) {
            auto const read = [&](detail::code_place at, int width) {
              return words[detail::word_offset<bits>(lane, at.word)] >> at.bit & ((1u << width) - 1u);
            };
            std::uint32_t code = read(detail::place_of<bits>(p, e), bits == 3 ? 2 : bits);
            if constexpr (bits == 3) code |= read(detail::top_place_of(p, e), 1) << 2;
            codes[static_cast<std::size_t>(chunk * chunk_columns + detail::column_of(lane, p, e))] =
                static_cast<std::uint8_t>(code);
          }
        }
      }
    }
    index_t const block = row / packed_rows;
    for (index_t group = 0; group < shape.groups(); ++group) {
      gptq::detail::pack_row<bits>(codes.data() + group * shape.group_columns(), shape.columns_of(group),
                                   row % packed_rows, packed.codes() + shape.code_offset(block, group));
      int const entry = 2 * (in_tile % 8) + in_tile / 8;
      index_t const at = tile * layout.groups() + group;
      packed.scales()[shape.scale_offset(block, group) + row % packed_rows] =
          view.scales[at * tile_rows + entry];
      if constexpr (Format::has_zero_point) {
        std::uint8_t const* const zeros = view.zeros + at * prepacked_layout<Format>::zero_bytes;
        int const zero = bits == 8 ? zeros[entry] : zeros[entry / 2] >> (4 * (entry % 2)) & 15;
        gptq::detail::set_stream_code<bits>(packed.zeros() + shape.zero_offset(block, group),
                                            row % packed_rows, zero);
      }
    }
  }
  if (view.order != nullptr) packed.order().assign(view.order, view.order + view.in);
  return packed;
}

template <device_format Format>
prepacked_matrix<Format>::prepacked_matrix(packed_view<Format> const& packed)
    : layout_{packed.out, packed.in}, permuted_(packed.order != nullptr) {
  device::current();
  auto const size = static_cast<std::size_t>(bytes());
  std::vector<std::uint8_t> host(size);
  prepack(packed, host.data());
  check(cudaMalloc(&memory_, size + 1), "allocating a prepacked matrix");
  if (cudaError_t const e = cudaMemcpy(memory_, host.data(), size, cudaMemcpyHostToDevice);
      e != cudaSuccess) {
    cudaFree(memory_);
    check(e, "copying a prepacked matrix to the device");
  }
}

template <device_format Format>
packed_matrix<Format> prepacked_matrix<Format>::unprepack() const {
  std::vector<std::uint8_t> host(static_cast<std::size_t>(bytes()));
  check(cudaMemcpy(host.data(), memory_, host.size(), cudaMemcpyDeviceToHost),
        "copying a prepacked matrix from the device");
  return cuda::unprepack(prepacked_at(host.data(), layout_, permuted_));
}

}  // namespace gptq::cuda
