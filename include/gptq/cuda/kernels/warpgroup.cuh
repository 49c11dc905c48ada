// What only compute capability 9.0 has: products of four warps that run by themselves, registers that move
// from some warps to others. PTX ISA, "Asynchronous warpgroup level matrix instructions". Only sm_90a knows
// all of these instructions; for anything else a kernel that uses them is compiled to nothing, with a launch
// bound that the host recognizes: see compiled_for().
#pragma once

#include <gptq/cuda/kernels/bulk_copy.cuh>
#include <gptq/cuda/kernels/numbers.cuh>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GPTQ_WARPGROUPS 1
#else
#define GPTQ_WARPGROUPS 0
#endif

namespace gptq::cuda::detail {

inline constexpr int warpgroup_size = 128;

/// The launch bound of a kernel of `threads` threads that needs sm_90a.
GPTQ_HOST_DEVICE constexpr int warpgroup_bound(int threads) { return GPTQ_WARPGROUPS ? threads : 32; }

/// Registers that a thread begins with in a block of `threads` that has a multiprocessor to itself. What some
/// get beyond that, others have to give: more would be waited for forever.
constexpr int registers_at_start(int threads) { return 65536 / threads / 8 * 8; }

/// Bytes of shared memory beside those of a ring of operands: what aligns it, and its barriers.
inline constexpr int ring_alignment = 1024, ring_overhead = ring_alignment + 256;

#if GPTQ_WARPGROUPS

// compute-sanitizer's racecheck adds code to a kernel that needs registers of its own, and in some runs
// grow_to() then waits forever (memcheck and initcheck never did): GPTQ_CUDA_KEEP_REGISTERS leaves every
// thread what it started with.
template <int Registers>
__device__ __forceinline__ void shrink_to() {
#ifndef GPTQ_CUDA_KEEP_REGISTERS
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
template <int Registers>
__device__ __forceinline__ void grow_to() {
#ifndef GPTQ_CUDA_KEEP_REGISTERS
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

// ---- products ----

/// B in shared memory: rows (of columns of the product) of 128 bytes, numbers of a column, aligned to 1024
/// bytes; 16-byte unit u of row n lies at u ^ n % 8. This names 32 bytes of each row; `address` is where
/// those of row 0 begin.
__device__ __forceinline__ std::uint64_t operand_in_shared_memory(std::uint32_t address) {
  constexpr std::uint64_t layout =
      std::uint64_t{1} << 62 | std::uint64_t{1024 / 16} << 32 | std::uint64_t{1} << 16;
  return layout | (address & 0x3ffff) >> 4;
}

/// Before products that use registers written since the last.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until no more than `Left` of the committed groups are under way.
template <int Left>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

// The accumulators of a product, and the names of its operands.
#define GPTQ_C(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define GPTQ_C4(n) GPTQ_C(n), GPTQ_C(n + 1), GPTQ_C(n + 2), GPTQ_C(n + 3)
#define GPTQ_INT_C(n) "+r"(c[n][0]), "+r"(c[n][1]), "+r"(c[n][2]), "+r"(c[n][3])
#define GPTQ_INT_C4(n) GPTQ_INT_C(n), GPTQ_INT_C(n + 1), GPTQ_INT_C(n + 2), GPTQ_INT_C(n + 3)
#define GPTQ_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define GPTQ_NAMES_32 GPTQ_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define GPTQ_NAMES_64                                                                                \
  GPTQ_NAMES_32                                                                                      \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55" \
  ",%56,%57,%58,%59,%60,%61,%62,%63"
#define GPTQ_PRODUCT(shape, type, accumulators, a_names, b_name, adding, last, ...)                   \
  asm volatile(                                                                                       \
      "{\n"                                                                                           \
      ".reg .pred adding;\n"                                                                          \
      "setp.ne.b32 adding, " adding                                                                   \
      ", 0;\n"                                                                                        \
      "wgmma.mma_async.sync.aligned.m64" shape ".f32." type "." type " {" accumulators "}, {" a_names \
      "}, " b_name ", adding, 1, 1" last                                                              \
      ";\n"                                                                                           \
      "}"                                                                                             \
      : __VA_ARGS__                                                                                   \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)))

/// Starts c = a b, or, to add, c += a b: 64 x 16, rows 16w and on from warp w, times 16 x 8 * ColumnTiles.
/// Registers are as in multiply().
template <class T, int ColumnTiles>
__device__ __forceinline__ void start_product(float (&c)[ColumnTiles][4], std::uint32_t const (&a)[4],
                                              std::uint64_t b, bool add) {
  constexpr bool half = number<T>::fraction == 10;
  static_assert(ColumnTiles == 4 || ColumnTiles == 8 || ColumnTiles == 16);
  if constexpr (ColumnTiles == 4 && half) {
    GPTQ_PRODUCT("n32k16", "f16", GPTQ_NAMES_16, "%16,%17,%18,%19", "%20", "%21", ", 0", GPTQ_C4(0));
  } else if constexpr (ColumnTiles == 4) {
    GPTQ_PRODUCT("n32k16", "bf16", GPTQ_NAMES_16, "%16,%17,%18,%19", "%20", "%21", ", 0", GPTQ_C4(0));
  } else if constexpr (ColumnTiles == 8 && half) {
    GPTQ_PRODUCT("n64k16", "f16", GPTQ_NAMES_32, "%32,%33,%34,%35", "%36", "%37", ", 0", GPTQ_C4(0),
                 GPTQ_C4(4));
  } else if constexpr (ColumnTiles == 8) {
    GPTQ_PRODUCT("n64k16", "bf16", GPTQ_NAMES_32, "%32,%33,%34,%35", "%36", "%37", ", 0", GPTQ_C4(0),
                 GPTQ_C4(4));
  } else if constexpr (half) {
    GPTQ_PRODUCT("n128k16", "f16", GPTQ_NAMES_64, "%64,%65,%66,%67", "%68", "%69", ", 0", GPTQ_C4(0),
                 GPTQ_C4(4), GPTQ_C4(8), GPTQ_C4(12));
  } else {
    GPTQ_PRODUCT("n128k16", "bf16", GPTQ_NAMES_64, "%64,%65,%66,%67", "%68", "%69", ", 0", GPTQ_C4(0),
                 GPTQ_C4(4), GPTQ_C4(8), GPTQ_C4(12));
  }
}

/// The same of numbers of TF32: 64 x 8 times 8 x 128. Registers are as for 16 bits, each with one number.
__device__ __forceinline__ void start_product_tf32(float (&c)[16][4], std::uint32_t const (&a)[4],
                                                   std::uint64_t b, bool add) {
  GPTQ_PRODUCT("n128k8", "tf32", GPTQ_NAMES_64, "%64,%65,%66,%67", "%68", "%69", "", GPTQ_C4(0), GPTQ_C4(4),
               GPTQ_C4(8), GPTQ_C4(12));
}

/// The same of int8, exactly in int32: 64 x 32 times 32 x 8 * ColumnTiles. Registers are as for 16 bits, each
/// with four numbers.
template <int ColumnTiles>
__device__ __forceinline__ void start_product_int8(std::int32_t (&c)[ColumnTiles][4],
                                                   std::uint32_t const (&a)[4], std::uint64_t b, bool add) {
  static_assert(ColumnTiles == 16);
  asm volatile(
      "{\n"
      ".reg .pred adding;\n"
      "setp.ne.b32 adding, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" GPTQ_NAMES_64
      "}, {%64,%65,%66,%67}, %68, adding;\n"
      "}"
      : GPTQ_INT_C4(0), GPTQ_INT_C4(4), GPTQ_INT_C4(8), GPTQ_INT_C4(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}
#undef GPTQ_PRODUCT
#undef GPTQ_NAMES_64
#undef GPTQ_NAMES_32
#undef GPTQ_NAMES_16
#undef GPTQ_INT_C4
#undef GPTQ_INT_C
#undef GPTQ_C4
#undef GPTQ_C

/// Accumulators of products before the first, which does not add: had anything else written to them, products
/// would no longer overlap.
template <int ColumnTiles>
__device__ __forceinline__ void leave_undefined(float (&c)[ColumnTiles][4]) {
#pragma unroll
  for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "=f"(c[n][i]));
  }
}
template <int ColumnTiles>
__device__ __forceinline__ void leave_undefined(std::int32_t (&c)[ColumnTiles][4]) {
#pragma unroll
  for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "=r"(c[n][i]));
  }
}

/// Accumulators are read after this and not before: wait_products() does not say so of registers.
template <int ColumnTiles>
__device__ __forceinline__ void pin(float (&c)[ColumnTiles][4]) {
#pragma unroll
  for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(c[n][i])::"memory");
  }
}
template <int ColumnTiles>
__device__ __forceinline__ void pin(std::int32_t (&c)[ColumnTiles][4]) {
#pragma unroll
  for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(c[n][i])::"memory");
  }
}

#endif

}  // namespace gptq::cuda::detail
