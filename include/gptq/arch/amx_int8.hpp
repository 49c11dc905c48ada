// AMX: tiles of 16 tokens x 64 columns of digits times 64 columns x 16 rows of codes, for gemm, which fills
// them up with zeros. gemv, few tokens, a single row block and rows shorter than a tile are left to AVX-512
// VNNI.
#pragma once

#include <gptq/arch/isa.hpp>

#if defined(GPTQ_AMX_INT8)

#include <gptq/arch/avx512vnni.hpp>

namespace gptq::detail {

template <>
struct operations<isa::detail::amx_without_tiles> : operations<isa::avx512vnni> {};

template <>
struct operations<isa::amx_int8> : operations<isa::avx512vnni> {
  /// Rows of digits in a tile: whole tokens.
  template <int Planes>
  static constexpr int tile_rows = 16 / Planes* Planes;
  /// Columns in a tile, for chunks of `Columns` columns (0: any): divides the stride of their digits.
  template <int Columns>
  static constexpr int tile_columns = Columns == 64 || Columns == 128 ? 64 : 32;

  /// The tiles of this thread, for as long as this lives: 0..3 are sums, [digits][codes]; 4, 5 digits; 6, 7
  /// codes.
  template <int Planes, int Columns>
  struct tiles {
    GPTQ_INLINE tiles() {
      struct {
        std::uint8_t palette, start_row, reserved[14];
        std::uint16_t row_bytes[16];
        std::uint8_t rows[16];
      } config = {};
      config.palette = 1;
      for (int tile = 0; tile < 8; ++tile) {
        config.row_bytes[tile] = tile == 4 || tile == 5 ? tile_columns<Columns> : 64;
        config.rows[tile] = tile < 6 ? tile_rows<Planes> : tile_columns<Columns> / 4;
      }
      _tile_loadconfig(&config);
    }
    GPTQ_INLINE ~tiles() { _tile_release(); }
    tiles(tiles const&) = delete;
    tiles& operator=(tiles const&) = delete;
  };

  /// What tiles take: codes less `middle`, as int8.
  GPTQ_INLINE static codes centred(codes c, int middle) {
    return {_mm512_sub_epi8(c.v, _mm512_set1_epi8(static_cast<char>(middle)))};
  }

  /// Sums of (code - 2^(bits-1)) * digit over `columns` columns, a multiple of tile_columns, of two row
  /// blocks and `rows` rows of digits. Calls done(first_row, rows, words) for at most tile_rows of them at a
  /// time; words[row block][row of digits * 16 + row].
  template <int Planes, int Columns, class F>
  GPTQ_INLINE static void multiply_tiles(std::uint8_t const* first_panel, std::uint8_t const* second_panel,
                                         std::int8_t const* x, index_t stride, index_t columns, index_t rows,
                                         F&& done) {
    constexpr int step = tile_columns<Columns>;
    constexpr int high = tile_rows<Planes>;
    // A tile that the rows do not fill is filled with zeros.
    alignas(64) std::int8_t rest[16 * max_chunk_columns_of_tiles];
    index_t const whole = rows / high * high;
    if (whole < rows) {
      std::memset(rest, 0, static_cast<std::size_t>(high * stride));
      std::memcpy(rest, x + whole * stride, static_cast<std::size_t>((rows - whole) * stride));
    }
    // Tiles of the next rows are multiplied while the sums of the last ones are worked on.
    alignas(64) std::int32_t words[2][2][2][16 * 16];
    auto const finish = [&](index_t first) __attribute__((always_inline)) {
      auto& from = words[first / (2 * high) % 2];
      for (int half = 0; half < 2; ++half) {
        index_t const row = first + half * high;
        index_t const left = rows - row;
        if (left > 0) done(row, left < high ? left : index_t{high}, from[half]);
      }
    };
    for (index_t first = 0; first < rows; first += 2 * high) {
      auto& to = words[first / (2 * high) % 2];
      std::int8_t const* const upper = first < whole ? x + first * stride : rest;
      std::int8_t const* const lower = first + high < whole ? x + (first + high) * stride : rest;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (index_t k = 0; k < columns; k += step) {
        _tile_loadd(6, first_panel + 16 * k, 64);
        _tile_loadd(4, upper + k, stride);
        _tile_loadd(7, second_panel + 16 * k, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if (first + high < rows) {
          _tile_loadd(5, lower + k, stride);
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        }
      }
      _tile_stored(0, to[0][0], 64);
      _tile_stored(1, to[0][1], 64);
      _tile_stored(2, to[1][0], 64);
      _tile_stored(3, to[1][1], 64);
      if (first > 0) finish(first - 2 * high);
    }
    finish((rows - 1) / (2 * high) * (2 * high));
  }

 private:
  static constexpr int max_chunk_columns_of_tiles = 128;
};

}  // namespace gptq::detail

#endif
