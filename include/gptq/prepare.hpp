// Activations made ready for the kernels, once for all matrices with the same columns, groups and column
// order: q, k and v; gate and up. The width of the codes does not matter: matrices of 4 and of 8 bits share
// them.
//
//   auto a = gptq::prepare(w, x, 1, workspace);      // x[in]: float, float16 or bfloat16; rounded to int8
//   gptq::gemv(w, a, y);                             // gemv.hpp
//   gptq::gemv(w2, a, y2);
//
// workspace_bytes() of activations.hpp says how much memory it takes; nothing here allocates or throws.
#pragma once

#include <cstdint>

#include <gptq/activations.hpp>
#include <gptq/isa.hpp>
#include <gptq/kernels/prepare.hpp>

namespace gptq {

/// Prepares x[tokens, in] (float, float16 or bfloat16; row-major; any alignment) for `w` and every matrix of
/// the same columns, group size and order; rounds it as `Precision` says. `workspace` has workspace_bytes()
/// bytes, best aligned to 64, at least to 4. Only `share` of the tokens is worked on, a thread's share of the
/// work, say: all shares get the whole x and the same workspace, and return the same.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, input<T> x, index_t tokens, void* workspace,
                               token_range share) noexcept {
  chunk_layout const chunks{w.in, Format::group_columns(w.in)};
  auto a = detail::activations_at<Precision>(chunks, chunks.count(), tokens, static_cast<char*>(workspace));
  a.order = w.order;
  detail::prepare_chunks<Isa>(a, x.data, x.stride, w.in, w.order, 0, chunks.count(), share);
  return a;
}

/// The same for tokens from a list, of as many entries: what a router sends to experts, say.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, gathered_input<T> x, index_t tokens,
                               void* workspace, token_range share) noexcept {
  auto const a = prepare<Precision, Isa>(w, input<T>{x.data, 0}, tokens, workspace, {0, 0});
  for (index_t token = share.first; token < share.last; ++token) {
    input<T> const one{x.data + x.token_ids[token] * x.stride, 0};
    prepare<Precision, Isa>(w, one, tokens, workspace, {token, token + 1});
  }
  return a;
}

/// The same for x[tokens, in] without gaps.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, T const* x, index_t tokens, void* workspace,
                               token_range share) noexcept {
  return prepare<Precision, Isa>(w, input<T>{x, w.in}, tokens, workspace, share);
}

/// All tokens.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
activations<Precision> prepare(packed_view<Format> const& w, T const* x, index_t tokens,
                               void* workspace) noexcept {
  return prepare<Precision, Isa>(w, x, tokens, workspace, {0, tokens});
}

}  // namespace gptq
