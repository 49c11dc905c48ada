// What the ground floor needs: the type of sizes, and how functions are marked.
#pragma once

#if __cplusplus < 202002L
#error "gptq is written in C++20: compile with -std=c++20 or a later standard."
#include <gptq needs -std=c++20>  // the compiler stops here, before hundreds of errors that say less
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "gptq is for little-endian machines: so are packed matrices and model files."
#include <gptq needs a little-endian machine>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#error "gptq is compiled by g++ or clang: on Windows by MinGW-w64's g++ or by clang-cl."
#include <gptq needs another compiler>
#endif

#include <cstddef>

#include <gptq/version.hpp>

#if defined(__CUDACC__)
/// Marks functions that device code calls, too.
#define GPTQ_HOST_DEVICE __host__ __device__
#else
#define GPTQ_HOST_DEVICE
#endif

/// One program may hold kernels compiled for several instruction sets. What they call is inlined into them, even
/// without optimization: the linker keeps one copy of a shared function, and that could be one this CPU cannot
/// run.
#define GPTQ_INLINE [[gnu::always_inline]] inline

namespace gptq {

/// Sizes and positions, as in Eigen: signed.
using index_t = std::ptrdiff_t;

}  // namespace gptq
