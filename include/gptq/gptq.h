// Packed low-bit matrices and products on them for C, and for languages that call C: the libraries gptq::c (shared) and
// gptq::c_static, which cmake -D GPTQ_C=ON builds. They take the best kernels that the CPU under them can run, and need
// C's library and nothing of C++'s.
//
//   gptq_matrix w;                                                    // of a mapped file, or of gptq_pack()'s bytes
//   int status = gptq_open(&w, bytes, size);
//   if (status != GPTQ_OK) puts(gptq_error_string(status));
//   gptq_input x = {GPTQ_FLOAT32, values, w.columns};                 // values[tokens, columns]
//   gptq_range all_tokens = {0, tokens}, all_rows = {0, w.rows};
//   gptq_activations a;                                               // x in int8; workspace is yours
//   status = gptq_prepare(&a, &w, x, tokens, workspace, gptq_workspace_bytes(&w, tokens), all_tokens);
//   status = gptq_multiply(&w, &a, y, w.rows, all_rows);              // y[tokens, rows] = X W'
//
// Threads are yours: a range is a thread's share, of tokens or, best in multiples of 32, of rows. Nothing here keeps
// state that a call changes, but for gptq_use_isa(). Nothing allocates but gptq_open(), for as long as it looks at a
// column order. What is wrong with an argument is returned, and then nothing has been written. Results are, bit for bit,
// those of gptq::gemm() of gemm.hpp with int8 activations; activations.hpp says how large the error of these is.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <gptq/version.hpp>

#if defined(_WIN32)
#define GPTQ_C_API
#else
#define GPTQ_C_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// What a function returns: GPTQ_OK, or what is wrong. gptq_error_string() says it in words.
enum gptq_status {
  GPTQ_OK,
  GPTQ_ERROR_SHAPE,
  GPTQ_ERROR_NO_CODES,
  GPTQ_ERROR_NO_SCALES,
  GPTQ_ERROR_NO_ZEROS,
  GPTQ_ERROR_ALIGNMENT = 9,
  GPTQ_ERROR_ORDER = 11,
  GPTQ_ERROR_SCALE_VALUE,
  GPTQ_ERROR_NO_MEMORY,
  GPTQ_ERROR_OTHER_COLUMNS,
  GPTQ_ERROR_OTHER_GROUPS,
  GPTQ_ERROR_OTHER_ORDER,
  GPTQ_ERROR_ROWS = 18,
  GPTQ_ERROR_NO_PACKED_MATRIX = 20,
  GPTQ_ERROR_VERSION,
  GPTQ_ERROR_SIZE = 23,
  GPTQ_ERROR_CHECKSUM,
  GPTQ_ERROR_FORMAT = 100,
  GPTQ_ERROR_NULL,
  GPTQ_ERROR_TYPE,
  GPTQ_ERROR_TOKENS,
  GPTQ_ERROR_STRIDE,
  GPTQ_ERROR_WORKSPACE,
  GPTQ_ERROR_CODE_VALUE,
  GPTQ_ERROR_ZERO_VALUE,
  GPTQ_ERROR_SCALE_ROUNDS,
  GPTQ_ERROR_ROOM,
  GPTQ_ERROR_ISA
};

/// What a code means: scheme.hpp.
enum gptq_scheme { GPTQ_ASYMMETRIC, GPTQ_SYMMETRIC, GPTQ_FIXED_ZERO, GPTQ_HALF_STEP };
/// A number in an array.
enum gptq_type { GPTQ_FLOAT32, GPTQ_FLOAT16, GPTQ_BFLOAT16 };
/// Group size: all columns of a row share a scale.
#define GPTQ_WHOLE_ROW (-1)

/// A format of packed matrices, with scales in float16. The library has those that it was configured for.
typedef struct gptq_format {
  int scheme;  ///< enum gptq_scheme
  int bits;
  int group_size;  ///< columns, or GPTQ_WHOLE_ROW
} gptq_format;

/// Numbers first..last-1 of tokens or rows.
typedef struct gptq_range {
  int64_t first, last;
} gptq_range;

/// x[token, column] at data[token * stride + column], at a multiple of the size of an element.
typedef struct gptq_input {
  int type;  ///< enum gptq_type
  void const* data;
  int64_t stride;
} gptq_input;

/// y[token, row] at data[token * stride + row].
typedef struct gptq_output {
  int type;  ///< enum gptq_type
  void* data;
  int64_t stride;
} gptq_output;

/// What is added to a product while it is in the cache, null for nothing, in this order. epilogue.hpp has more.
typedef struct gptq_epilogue {
  float const* bias;     ///< [rows]
  void const* residual;  ///< of y's type: [token, row] at residual[token * residual_stride + row]; may be y
  int64_t residual_stride;
} gptq_epilogue;

/// A packed matrix: a shape and pointers into bytes of yours, to be filled by gptq_open() and read by you.
typedef struct gptq_matrix {
  gptq_format format;
  int place_of_format;
  int64_t rows, columns;
  uint8_t const* codes;
  void const* scales;
  uint8_t const* zeros;
  int32_t const* order;
} gptq_matrix;

/// Prepared activations: pointers into a workspace of yours, to be filled by gptq_prepare().
typedef struct gptq_activations {
  int64_t tokens, columns, group_columns;
  void const *digits, *sums;
  float const* scales;
  int32_t const* order;
} gptq_activations;

/// GPTQ_VERSION of version.hpp that the library was built with.
GPTQ_C_API int gptq_version(void);
/// In words, whatever the number is; never null.
GPTQ_C_API char const* gptq_error_string(int status);
/// The CPU instruction set whose kernels are used.
GPTQ_C_API char const* gptq_isa(void);
/// Uses another from now on, "avx2" or null for the best; for tests. GPTQ_ERROR_ISA: there are no such kernels in the
/// library, or the CPU cannot run them.
GPTQ_C_API int gptq_use_isa(char const* name);
/// Whether the library has kernels for a format: 1 or 0.
GPTQ_C_API int gptq_has_format(gptq_format format);

/// Bytes of a packed matrix; 0 for a format that the library does not have, or an impossible shape.
GPTQ_C_API size_t gptq_packed_bytes(gptq_format format, int64_t rows, int64_t columns, int has_order);
/// Writes a packed matrix, with a checksum, to bytes[gptq_packed_bytes()], at a multiple of 4, best of 64. They are what
/// packed_file.hpp describes: to be kept in a file. There are ceil(columns / group_size) groups a row.
/// @param codes   [rows, columns], one a byte, columns as they are stored
/// @param scales  [rows, groups], each a number that float16 holds exactly
/// @param zeros   [rows, groups], for GPTQ_ASYMMETRIC
/// @param order   [columns]: the original column of each stored one; null: the same
GPTQ_C_API int gptq_pack(gptq_format format, int64_t rows, int64_t columns, uint8_t const* codes,
                         float const* scales, uint8_t const* zeros, int32_t const* order, void* bytes,
                         size_t size);
/// A matrix of packed bytes, which stay where they are: written by gptq_pack(), by gptq::write_packed() or to a file by
/// either, at a multiple of 4, best of 64. Reads and checks all of them. `size` may be larger than the matrix.
GPTQ_C_API int gptq_open(gptq_matrix* w, void const* bytes, size_t size);
/// Some rows as floats, weights[rows, columns], columns in their original order: a row of an embedding, say.
GPTQ_C_API int gptq_dequantize(gptq_matrix const* w, gptq_range rows, float* weights);

/// Bytes that activations of so many tokens take.
GPTQ_C_API size_t gptq_workspace_bytes(gptq_matrix const* w, int64_t tokens);
/// x[tokens, columns] made ready for `w` and all matrices of the same columns, group size and column order, whatever
/// their widths. Works on `share` of the tokens alone: all shares get the same x, workspace and `tokens`, and fill `a`
/// with the same.
/// @param workspace  at a multiple of 4, best of 64
GPTQ_C_API int gptq_prepare(gptq_activations* a, gptq_matrix const* w, gptq_input x, int64_t tokens,
                            void* workspace, size_t workspace_bytes, gptq_range share);
/// y[token, row] = X W' for all tokens and some rows, `stride` floats from token to token: of one token or many.
GPTQ_C_API int gptq_multiply(gptq_matrix const* w, gptq_activations const* a, float* y, int64_t stride,
                             gptq_range rows);
/// The same, to which `epilogue` adds before it is rounded to the type of y.
GPTQ_C_API int gptq_multiply_add(gptq_matrix const* w, gptq_activations const* a, gptq_output y,
                                 gptq_range rows, gptq_epilogue epilogue);

#ifdef __cplusplus
}
#endif
