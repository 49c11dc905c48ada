// How a matrix gets into the layout of prepacked.cuh and back.
#pragma once

#include <cstdint>
#include <cstring>
#include <cuda_runtime.h>
#include <string>
#include <vector>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/code_places.cuh>
#include <gptq/cuda/prepacked.cuh>
#include <gptq/packed.hpp>

namespace gptq::cuda::detail {

template <device_format Format>
GPTQ_HOST_DEVICE constexpr prepacked_layout<Format> device_layout(packed_view<Format> const& packed) {
  return {packed.out, packed.in};
}

template <device_format Format>
GPTQ_HOST_DEVICE void prepack_lane(packed_view<Format> const& packed, index_t row_tile, index_t chunk,
                                   int lane, std::uint32_t* codes) {
  std::uint32_t words[2 * Format::bits] = {};
  for (int i = 0; i < 64; ++i) {
    int const p = i / 2, e = i % 2;
    index_t const row = row_tile * tile_rows + fragment_row(lane, p);
    index_t const column = chunk * chunk_columns + fragment_column(lane, p, e);
    if (row >= packed.out || column >= packed.in) continue;
    auto const code = static_cast<std::uint32_t>(packed.code(row, column));
    code_place const at = code_place_at<Format::bits>(p, e);
    if constexpr (Format::bits == 3) {
      words[at.word] |= (code & 3u) << at.bit;
      words[top_place(p, e).word] |= (code >> 2) << top_place(p, e).bit;
    } else {
      words[at.word] |= code << at.bit;
    }
  }
  index_t const first =
      (row_tile * device_layout(packed).chunks() + chunk) * prepacked_layout<Format>::chunk_words;
  for (int w = 0; w < 2 * Format::bits; ++w) codes[first + word_offset<Format::bits>(lane, w)] = words[w];
}

/// The scales and zeros of a row tile and group.
template <device_format Format>
GPTQ_HOST_DEVICE void prepack_group(packed_view<Format> const& packed, index_t row_tile, index_t group,
                                    typename Format::scale* scales, std::uint8_t* zeros) {
  constexpr int bytes = prepacked_layout<Format>::zero_bytes;
  index_t const at = row_tile * device_layout(packed).groups() + group;
  int before = 0;
  for (int i = 0; i < tile_rows; ++i) {
    index_t const row = row_tile * tile_rows + entry_row(i);
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
  auto const layout = device_layout(packed);
  index_t const chunk = index_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (chunk >= layout.row_tiles() * layout.chunks()) return;
  prepack_lane(packed, chunk / layout.chunks(), chunk % layout.chunks(), threadIdx.x % 32, codes);
}

template <device_format Format>
__global__ void prepack_groups(packed_view<Format> packed, typename Format::scale* scales,
                               std::uint8_t* zeros) {
  auto const layout = device_layout(packed);
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

template <device_format Format>
prepacked_view<Format> view_at(void const* memory, prepacked_layout<Format> layout, bool permuted) {
  check_shape(layout.out, layout.in);
  auto const* const base = static_cast<std::uint8_t const*>(memory);
  return {reinterpret_cast<std::uint32_t const*>(base),
          reinterpret_cast<typename Format::scale const*>(base + layout.scale_offset()),
          Format::has_zero_point ? base + layout.zero_offset() : nullptr,
          permuted ? reinterpret_cast<std::int32_t const*>(base + layout.order_offset()) : nullptr,
          layout.out,
          layout.in};
}

template <device_format Format>
prepacked_view<Format> prepack_on_host(packed_view<Format> const& packed, void* memory) {
  auto const layout = device_layout(packed);
  auto const view = view_at(memory, layout, packed.order != nullptr);
  std::memset(memory, 0, static_cast<std::size_t>(layout.bytes(packed.order != nullptr)));
  for (index_t row_tile = 0; row_tile < layout.row_tiles(); ++row_tile) {
    for (index_t chunk = 0; chunk < layout.chunks(); ++chunk) {
      for (int lane = 0; lane < 32; ++lane) {
        prepack_lane(packed, row_tile, chunk, lane, const_cast<std::uint32_t*>(view.codes));
      }
    }
    for (index_t group = 0; group < layout.groups(); ++group) {
      prepack_group(packed, row_tile, group, const_cast<typename Format::scale*>(view.scales),
                    const_cast<std::uint8_t*>(view.zeros));
    }
  }
  if (packed.order != nullptr) {
    std::memcpy(const_cast<std::int32_t*>(view.order), packed.order, 4 * static_cast<std::size_t>(packed.in));
  }
  return view;
}

template <device_format Format>
prepacked_view<Format> prepack_on_device(packed_view<Format> const& packed, void* memory,
                                         cudaStream_t stream) {
  device::current();
  auto const layout = device_layout(packed);
  auto const view = view_at(memory, layout, packed.order != nullptr);
  if (packed.out == 0 || packed.in == 0) return view;
  constexpr unsigned threads = 128;
  auto const blocks = [](index_t items, index_t of_block) {
    return static_cast<unsigned>((items + of_block - 1) / of_block);
  };
  launch(prepack_codes<Format>,
         {.grid = blocks(layout.row_tiles() * layout.chunks(), threads / 32),
          .block = threads,
          .stream = stream},
         packed, const_cast<std::uint32_t*>(view.codes));
  launch(prepack_groups<Format>,
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
packed_matrix<Format> unprepack_on_host(prepacked_view<Format> const& view) {
  constexpr int bits = Format::bits;
  auto const layout = view.layout();
  packed_matrix<Format> packed(view.out, view.in);
  auto const shape = packed.layout();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(layout.chunks() * chunk_columns));
  for (index_t row = 0; row < view.out; ++row) {
    index_t const row_tile = row / tile_rows;
    int const in_tile = static_cast<int>(row % tile_rows);
    int const lanes = 4 * (in_tile % 8);  // the first of the four that hold the row
    for (index_t chunk = 0; chunk < layout.chunks(); ++chunk) {
      std::uint32_t const* const words =
          view.codes + (row_tile * layout.chunks() + chunk) * prepacked_layout<Format>::chunk_words;
      for (int lane = lanes; lane < lanes + 4; ++lane) {
        for (int p = in_tile / 8; p < 32; p += 2) {
          for (int e = 0; e < 2; ++e) {
            auto const read = [&](code_place at, int width) {
              return words[word_offset<bits>(lane, at.word)] >> at.bit & ((1u << width) - 1u);
            };
            std::uint32_t code = read(code_place_at<bits>(p, e), bits == 3 ? 2 : bits);
            if constexpr (bits == 3) code |= read(top_place(p, e), 1) << 2;
            codes[static_cast<std::size_t>(chunk * chunk_columns + fragment_column(lane, p, e))] =
                static_cast<std::uint8_t>(code);
          }
        }
      }
    }
    index_t const block = row / packed_rows;
    for (index_t group = 0; group < shape.groups(); ++group) {
      gptq::detail::pack_row<bits>(codes.data() + group * shape.group_columns(), shape.group_columns(group),
                                   row % packed_rows, packed.codes() + shape.code_offset(block, group));
      int const entry = 2 * (in_tile % 8) + in_tile / 8;
      index_t const at = row_tile * layout.groups() + group;
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

/// A prepacked copy of a matrix in host memory, in memory from cudaMalloc().
template <device_format Format>
void* prepacked_copy(packed_view<Format> const& packed) {
  device::current();
  auto const size = static_cast<std::size_t>(device_layout(packed).bytes(packed.order != nullptr));
  std::vector<std::uint8_t> host(size);
  prepack_on_host(packed, host.data());
  void* memory = nullptr;
  check(cudaMalloc(&memory, size + 1), "allocating a prepacked matrix");
  if (cudaError_t const e = cudaMemcpy(memory, host.data(), size, cudaMemcpyHostToDevice); e != cudaSuccess) {
    cudaFree(memory);
    check(e, "copying a prepacked matrix to the device");
  }
  return memory;
}

}  // namespace gptq::cuda::detail
