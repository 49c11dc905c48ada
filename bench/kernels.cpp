// Compiled once for each ISA, BENCH_ISA, for bench_gemv as BENCH_GEMV and for bench_gemm as
// BENCH_GEMM. Flags are the same for all: what they do not allow has an empty table.
#define GPTQ_WITH_GENERIC
#include "kernels.hpp"

#include <type_traits>

#include <gptq/gemm.hpp>

namespace {

using namespace bench;
using isa = gptq::isa::BENCH_ISA;

template <class Format>
gptq::packed_view<Format> typed(matrix const& w) {
  return {w.codes, static_cast<typename Format::scale const*>(w.scales), w.zeros, nullptr, w.out, w.in};
}

template <class Case>
constexpr kernel kernel_of() {
  using format = typename Case::format;
  kernel k;
  k.scheme = format::scheme::name;
  k.bits = format::bits;
  k.group_size = format::group_size;
  k.x = Case::x;
#if defined(BENCH_GEMV)
  k.gemv = [](matrix const& w, float const* x, float* y, index_t first_row, index_t last_row) {
    gptq::gemv<Case::x, isa>(typed<format>(w), x, y, {first_row, last_row});
  };
#endif
#if defined(BENCH_GEMM)
  k.prepare = [](matrix const& w, float const* x, index_t tokens, void* workspace, index_t first_token,
                 index_t last_token) {
    gptq::prepare<Case::x, isa>(typed<format>(w), x, tokens, workspace, {first_token, last_token});
  };
  k.gemm = [](matrix const& w, index_t tokens, void* workspace, float* y, index_t first_row,
              index_t last_row) {
    // No token's share: where everything lies.
    float const* const x = nullptr;
    auto const a = gptq::prepare<Case::x, isa>(typed<format>(w), x, tokens, workspace, {0, 0});
    gptq::gemm<Case::x, isa>(typed<format>(w), a, y, {first_row, last_row});
  };
#endif
  return k;
}

template <class... Cases>
kernel_table table_of(case_list<Cases...>) {
  static constexpr kernel kernels[] = {kernel_of<Cases>()...};
  return {kernels, roofline::readers<isa>};
}

/// A template, so that nothing of an architecture that is not there is looked at.
template <class Isa>
kernel_table table_for() {
  if constexpr (!Isa::compiled) {
    return {};
  } else if constexpr (std::is_same_v<Isa, gptq::isa::generic>) {
    return table_of(generic_cases{});
  } else {
    return table_of(cases{});
  }
}

}  // namespace

template <>
bench::kernel_table bench::kernels_for<isa>() {
  return table_for<isa>();
}
