// AMX: tiles of 16 tokens x 64 columns of digits times 64 columns x 16 rows of codes, for gemm, which fills
// them up with zeros. gemv, few tokens, rows shorter than a tile, and groups that are no multiple of 32
// columns are left to AVX-512 VNNI.
#pragma once

#include <gptq/isa/flags.hpp>

#if GPTQ_AMX_INT8

#include <gptq/isa/avx512vnni.hpp>

namespace gptq::detail {

template <>
struct operations<isa::detail::amx_without_tiles> : operations<isa::avx512vnni> {};

template <>
struct operations<isa::amx_int8> : operations<isa::avx512vnni> {
  using without_tiles = isa::detail::amx_without_tiles;
  /// Rows of digits in a tile: whole tokens.
  template <int Planes>
  static constexpr int tile_rows = 16 - 16 % Planes;
  /// Columns in a tile, for chunks of `Columns` columns.
  template <int Columns>
  static constexpr int tile_columns = Columns < 64 ? Columns : 64;

  /// The tiles of this thread, for as long as this lives: 0..3 are codes, [columns][half block]; 4, 5 digits,
  /// [columns]; 6, 7 sums, [half block].
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
        config.rows[tile] = tile < 4 ? tile_columns<Columns> / 4 : tile_rows<Planes>;
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

  /// Sums of (code - 2^(bits-1)) * digit over `columns` columns, one or two times tile_columns, of both
  /// halves of a row block and `rows` rows of digits. Calls done(first_row, rows, words) for at most
  /// tile_rows of them at a time; words[half][row of digits * 16 + row].
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
    bool const two = columns > step;
    _tile_loadd(0, first_panel, 64);
    _tile_loadd(1, second_panel, 64);
    if (two) {
      _tile_loadd(2, first_panel + 16 * step, 64);
      _tile_loadd(3, second_panel + 16 * step, 64);
    }
    // Tiles of the next rows are multiplied while the sums of the last ones are worked on.
    alignas(64) std::int32_t words[2][2][16 * 16];
    for (index_t row = 0; row < rows; row += high) {
      std::int8_t const* const digits = row < whole ? x + row * stride : rest;
      auto& to = words[row / high % 2];
      _tile_zero(6);
      _tile_zero(7);
      _tile_loadd(4, digits, stride);
      _tile_dpbssd(6, 4, 0);
      _tile_dpbssd(7, 4, 1);
      if (two) {
        _tile_loadd(5, digits + step, stride);
        _tile_dpbssd(6, 5, 2);
        _tile_dpbssd(7, 5, 3);
      }
      _tile_stored(6, to[0], 64);
      _tile_stored(7, to[1], 64);
      if (row > 0) done(row - high, index_t{high}, words[(row / high + 1) % 2]);
    }
    index_t const last = (rows - 1) / high * high;
    done(last, rows - last, words[last / high % 2]);
  }

 private:
  static constexpr int max_chunk_columns_of_tiles = 128;
};

}  // namespace gptq::detail

#endif
