// Activations as int8 digits: what they are, where they lie, what memory that takes.
//
//   std::size_t const bytes = gptq::cuda::activation_bytes(w.in, tokens);      // yours to allocate, on the device
//   auto a = gptq::cuda::prepare(w, x, tokens, memory, {.stream = stream});    // prepare.cuh; x[tokens, in]
//   gptq::cuda::gemm(w, a, y, {.stream = stream});                             // gemm.cuh; y[tokens, out]
//
// A chunk of 128 columns of a token has a scale of its own, its largest magnitude a / 127, and a digit for
// each column: what a product computes with is x' with |x' - x| at most a / 253, as precision::int8 has it on
// the CPU, plus 2^-100. With groups of 128 columns or more digits and scales are the CPU's; with shorter
// groups chunks are the groups there.
#pragma once

#include <cstddef>
#include <cstdint>

#include <gptq/cuda/prepacked.cuh>

namespace gptq::cuda {

/// Tokens that lie together.
inline constexpr index_t activation_tokens = 128;

/// Prepared activations: pointers into the memory given to prepare().
///
/// Column 32k + 8t + 4h + i of a chunk, i < 4, is digit 4t + {0, 2, 1, 3}[i] of unit 2k + h, of 16 digits
/// each; unit u of token n is at u ^ n % 8. Columns and tokens beyond the last are zeros.
struct int8_activations {
  std::int8_t const* digits = nullptr;  ///< [block of tokens, chunk, token of the block, 128]
  float const* scales =
      nullptr;  ///< [block of tokens, chunk, token of the block]; NaN where an x is not finite
  index_t in = 0;
  index_t tokens = 0;
  std::int32_t const* order = nullptr;  ///< the column order of the matrices that they are prepared for

  constexpr index_t chunks() const { return (in + chunk_columns - 1) / chunk_columns; }
  constexpr index_t token_blocks() const { return (tokens + activation_tokens - 1) / activation_tokens; }
  constexpr index_t digit_bytes() const {
    return token_blocks() * chunks() * activation_tokens * chunk_columns;
  }
  constexpr index_t bytes() const {
    return digit_bytes() + token_blocks() * chunks() * activation_tokens * index_t{sizeof(float)};
  }
};

/// Bytes of device memory that prepare() needs for `tokens` tokens of `in` columns.
constexpr std::size_t activation_bytes(index_t in, index_t tokens) {
  return static_cast<std::size_t>(int8_activations{.in = in, .tokens = tokens}.bytes());
}

}  // namespace gptq::cuda
