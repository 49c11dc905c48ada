// Where the codes of a chunk come from: units of the packed layout, or a panel, which holds them unpacked.
#pragma once

#include <cstdint>

#include <gptq/kernels/dot.hpp>
#include <gptq/kernels/operations.hpp>
#include <gptq/kernels/units.hpp>
#include <gptq/layout.hpp>

namespace gptq::detail {

/// Where the codes of a chunk come from: units of the packed layout.
template <class Ops, int Bits>
struct packed_source {
  template <int Planes>
  using sums = integer_sums<Ops, Bits, true, Planes>;
  using unit_type = unit<Ops, Bits, true>;
  static constexpr index_t unit_columns = detail::unit_columns<Bits>;
  static constexpr index_t unit_bytes = 2 * half_unit_bytes<Bits>;
  GPTQ_INLINE static constexpr index_t units(index_t columns) {
    return (columns + unit_columns - 1) / unit_columns;
  }

  template <int Planes>
  static constexpr bool share_digits = Ops::template shared_digits<Bits, Planes>;

  std::uint8_t const* tile;
  bool fetches;  ///< ahead, from memory
  GPTQ_INLINE unit_type at(index_t unit) const { return unit_type(tile + unit * unit_bytes); }
  /// Fetches what comes later.
  GPTQ_INLINE void prefetch(index_t unit) const {
    if constexpr (Ops::prefetch_bytes != 0) {
      if (!fetches) return;
      for (index_t line = 0; line < half_unit_bytes<Bits>; line += 64) {
        __builtin_prefetch(tile + unit * unit_bytes + Ops::prefetch_bytes + line, 0, 2);
      }
    }
  }
  template <int Step>
  GPTQ_INLINE static typename Ops::codes codes(unit_type const& u) {
    return u.template codes<Step>();
  }
};

/// The same from a panel: one code a byte, 64 bytes a step, as unpack_panel() leaves them.
template <class Ops, int Bits>
struct panel_source {
  template <int Planes>
  using sums = integer_sums<Ops, Bits, false, Planes>;
  using unit_type = std::uint8_t const*;
  static constexpr index_t unit_columns = detail::unit_columns<Bits>;
  static constexpr index_t unit_bytes = 64 * unit<Ops, Bits, false>::steps;

  template <int Planes>
  static constexpr bool share_digits = true;

  std::uint8_t const* tile;
  GPTQ_INLINE unit_type at(index_t unit) const { return tile + unit * unit_bytes; }
  GPTQ_INLINE void prefetch(index_t /*unit*/) const {}  // in the first-level cache
  template <int Step>
  GPTQ_INLINE static typename Ops::codes codes(unit_type const& u) {
    return Ops::load_codes(u + 64 * Step);
  }
};

/// Units of the packed layout whose codes stand for levels of a code book.
template <class Ops, int Bits, bool Small>
struct table_source : packed_source<Ops, Bits> {
  template <int /*Planes*/>
  using sums = table_sums<Ops, Bits, Small>;
  // With a table there are fewer registers for both halves.
  template <int Planes>
  static constexpr bool share_digits = Ops::wide ? Ops::template shared_digits<Bits, Planes> : false;

  struct unit_type {
    unit<Ops, Bits, false> packed;
    typename Ops::table table;
  };

  typename Ops::table table;
  GPTQ_INLINE unit_type at(index_t unit) const {
    return {detail::unit<Ops, Bits, false>(this->tile + unit * packed_source<Ops, Bits>::unit_bytes), table};
  }
  template <int Step>
  GPTQ_INLINE static typename Ops::codes codes(unit_type const& u) {
    return Ops::look_up(u.table, u.packed.template codes<Step>());
  }
};

/// A panel of levels.
template <class Ops, int Bits, bool Small>
struct level_panel_source : panel_source<Ops, Bits> {
  template <int /*Planes*/>
  using sums = table_sums<Ops, Bits, Small>;
};

/// Moves the codes of a chunk to a byte each, as panel_source reads them.
template <class Ops, int Bits, class F>
GPTQ_INLINE void unpack_panel(std::uint8_t const* tile, index_t units, std::uint8_t* panel, F&& change) {
  using unit_type = unit<Ops, Bits, false>;
#pragma GCC unroll 1
  for (index_t u = 0; u < units; ++u) {
    unit_type const from(tile + u * packed_source<Ops, Bits>::unit_bytes);
    std::uint8_t* const to = panel + u * panel_source<Ops, Bits>::unit_bytes;
    unrolled<unit_type::steps>([&]<int S>() __attribute__((always_inline)) {
      Ops::store_codes(to + 64 * S, change(from.template codes<S>()));
    });
  }
}

}  // namespace gptq::detail
