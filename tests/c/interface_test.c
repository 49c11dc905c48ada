/* The C interface, from C99: against the C++ library, bit for bit, and with everything wrong that can be. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reference.h"

#define ROWS 70 /* two row blocks and a part of one */
#define COLUMNS 200
#define TOKENS 130
#define STRIDE (ROWS + 3)
#define GROUPS ((COLUMNS + 31) / 32)

static int failures;
#define CHECK(condition)                                               \
  do {                                                                 \
    if (!(condition)) {                                                \
      printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                      \
    }                                                                  \
  } while (0)

static uint32_t state = 12345;
static uint32_t random_bits(void) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}
static float random_float(void) { return (float)random_bits() / 8388608.0f - 1.0f; }

static gptq_format const four_in_32 = {GPTQ_ASYMMETRIC, 4, 32};
static gptq_format const four_in_row = {GPTQ_FIXED_ZERO, 4, GPTQ_WHOLE_ROW};

static uint8_t codes[ROWS * COLUMNS], zeros[ROWS * GROUPS];
static float scales[ROWS * GROUPS], x[TOKENS * (COLUMNS + 5)], bias[ROWS];
static uint16_t x16[TOKENS * (COLUMNS + 5)];
static int32_t order[COLUMNS];
static uint32_t bytes[16384], workspace[65536], other_workspace[65536];
static float y[TOKENS * STRIDE], expected[TOKENS * STRIDE], residual[TOKENS * STRIDE];
static uint16_t y16[TOKENS * STRIDE], expected16[TOKENS * STRIDE];

static void fill(void) {
  int i;
  for (i = 0; i < ROWS * COLUMNS; ++i) codes[i] = (uint8_t)(random_bits() % 16);
  for (i = 0; i < ROWS * GROUPS; ++i) zeros[i] = (uint8_t)(random_bits() % 16);
  for (i = 0; i < ROWS * GROUPS; ++i) scales[i] = (float)((int)(random_bits() % 2047) - 1023) / 4096.0f;
  for (i = 0; i < TOKENS * (COLUMNS + 5); ++i) x[i] = random_float();
  for (i = 0; i < TOKENS * (COLUMNS + 5); ++i) x16[i] = (uint16_t)(0x3000 + random_bits() % 0x0c00);
  for (i = 0; i < ROWS; ++i) bias[i] = random_float();
  for (i = 0; i < TOKENS * STRIDE; ++i) residual[i] = random_float();
  for (i = 0; i < COLUMNS; ++i) order[i] = (i * 77 + 5) % COLUMNS;
}

/* Of floats that fused multiply-adds may have rounded once less. */
static int close_to(float const* a, float const* b, int n) {
  int i;
  for (i = 0; i < n; ++i)
    if (!(fabsf(a[i] - b[i]) <= 1e-5f * (1.0f + fabsf(b[i])))) return 0;
  return 1;
}
static int same(float const* a, float const* b, int n) {
  if (strcmp(gptq_isa(), "generic") == 0) return close_to(a, b, n);
  return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

static void check_weights(gptq_matrix const* w, int group_size, int ordered) {
  static float weights[ROWS * COLUMNS];
  gptq_range const all = {0, ROWS}, last = {ROWS - 1, ROWS};
  int const groups = group_size == GPTQ_WHOLE_ROW ? 1 : GROUPS;
  int r, p, wrong = 0;
  CHECK(gptq_dequantize(w, all, weights) == GPTQ_OK);
  for (r = 0; r < ROWS; ++r)
    for (p = 0; p < COLUMNS; ++p) {
      int const group = r * groups + (groups == 1 ? 0 : p / 32);
      int const zero = w->format.scheme == GPTQ_ASYMMETRIC ? zeros[group] : 8;
      wrong += weights[r * COLUMNS + (ordered ? order[p] : p)] !=
               scales[group] * (float)((int)codes[r * COLUMNS + p] - zero);
    }
  CHECK(wrong == 0);
  memset(weights + COLUMNS, 0, COLUMNS * sizeof *weights);
  CHECK(gptq_dequantize(w, last, weights + COLUMNS) == GPTQ_OK);
  CHECK(weights[COLUMNS] == weights[(ROWS - 1) * COLUMNS]);
}

static void check_products(gptq_format format, int ordered) {
  static int const token_counts[] = {1, 2, 5, TOKENS};
  size_t const size = gptq_packed_bytes(format, ROWS, COLUMNS, ordered);
  gptq_epilogue const none = {NULL, NULL, 0};
  gptq_matrix w;
  size_t t;
  CHECK(gptq_has_format(format) == 1 && size > 0 && size <= sizeof bytes && size % 64 == 0);
  CHECK(gptq_pack(format, ROWS, COLUMNS, codes, scales, zeros, ordered ? order : NULL, bytes, size) ==
        GPTQ_OK);
  CHECK(gptq_open(&w, bytes, size) == GPTQ_OK && w.rows == ROWS && w.columns == COLUMNS);
  CHECK(w.format.scheme == format.scheme && w.format.bits == 4 && w.format.group_size == format.group_size);
  check_weights(&w, format.group_size, ordered);
  for (t = 0; t < sizeof token_counts / sizeof *token_counts; ++t) {
    int const tokens = token_counts[t];
    gptq_input const from = {GPTQ_FLOAT32, x, COLUMNS + 5};
    gptq_output const to = {GPTQ_FLOAT32, expected, STRIDE};
    gptq_range const first = {0, tokens / 2}, rest = {tokens / 2, tokens};
    gptq_range const upper = {0, 33}, lower = {33, ROWS}, empty = {7, 7};
    gptq_activations a;
    size_t const needed = gptq_workspace_bytes(&w, tokens);
    int type;
    CHECK(needed <= sizeof workspace);
    memset(y, 0, sizeof y);
    memset(expected, 0, sizeof expected);
    CHECK(reference_multiply(format, bytes, size, from, tokens, other_workspace, to, none) == 0);
    CHECK(gptq_prepare(&a, &w, from, tokens, workspace, needed, rest) == GPTQ_OK);
    CHECK(gptq_prepare(&a, &w, from, tokens, workspace, needed, first) == GPTQ_OK);
    CHECK(memcmp(workspace, other_workspace, needed) == 0);
    CHECK(gptq_multiply(&w, &a, y, STRIDE, empty) == GPTQ_OK && y[7] == 0.0f);
    CHECK(gptq_multiply(&w, &a, y, STRIDE, upper) == GPTQ_OK);
    CHECK(y[33] == 0.0f);
    CHECK(gptq_multiply(&w, &a, y, STRIDE, lower) == GPTQ_OK);
    CHECK(same(y, expected, TOKENS * STRIDE));

    /* In place: y is the residual. */
    {
      gptq_output const in_place = {GPTQ_FLOAT32, y, STRIDE};
      gptq_epilogue both = {NULL, NULL, STRIDE};
      both.bias = bias;
      both.residual = y;
      memcpy(y, residual, sizeof y);
      memcpy(expected, residual, sizeof y);
      CHECK(gptq_multiply_add(&w, &a, in_place, lower, both) == GPTQ_OK);
      CHECK(gptq_multiply_add(&w, &a, in_place, upper, both) == GPTQ_OK);
      both.residual = expected;
      CHECK(reference_multiply(format, bytes, size, from, tokens, other_workspace, to, both) == 0);
      CHECK(same(y, expected, TOKENS * STRIDE));
    }
    for (type = GPTQ_FLOAT16; type <= GPTQ_BFLOAT16 && strcmp(gptq_isa(), "generic") != 0; ++type) {
      gptq_input from16 = {0, NULL, COLUMNS};
      gptq_output to16 = {0, NULL, STRIDE};
      gptq_range const all = {0, ROWS}, every = {0, tokens};
      from16.type = to16.type = type;
      from16.data = x16;
      to16.data = y16;
      memset(y16, 0, sizeof y16);
      memset(expected16, 0, sizeof y16);
      CHECK(gptq_prepare(&a, &w, from16, tokens, workspace, needed, every) == GPTQ_OK);
      CHECK(gptq_multiply_add(&w, &a, to16, all, none) == GPTQ_OK);
      to16.data = expected16;
      CHECK(reference_multiply(format, bytes, size, from16, tokens, other_workspace, to16, none) == 0);
      CHECK(memcmp(y16, expected16, sizeof y16) == 0);
    }
  }
}

static void check_packing_errors(void) {
  gptq_format const unknown[] = {{4, 4, 32}, {GPTQ_ASYMMETRIC, 5, 32}, {GPTQ_ASYMMETRIC, 4, 40}, {-1, 4, 32}};
  size_t const size = gptq_packed_bytes(four_in_32, ROWS, COLUMNS, 1);
  int const places[] = {0, ROWS * GROUPS / 2, ROWS * GROUPS - 1};
  int i, p;
  for (i = 0; i < 4; ++i) {
    CHECK(gptq_has_format(unknown[i]) == 0 && gptq_packed_bytes(unknown[i], 1, 1, 0) == 0);
    CHECK(gptq_pack(unknown[i], ROWS, COLUMNS, codes, scales, zeros, NULL, bytes, size) == GPTQ_ERROR_FORMAT);
  }
  CHECK(gptq_packed_bytes(four_in_32, -1, 8, 0) == 0 && gptq_packed_bytes(four_in_32, 8, INT64_MAX, 0) == 0);
#define PACK(c, s, z, o, b, n) gptq_pack(four_in_32, ROWS, COLUMNS, c, s, z, o, b, n)
  memset(bytes, 0x55, sizeof bytes);
  CHECK(gptq_pack(four_in_32, -1, COLUMNS, codes, scales, zeros, NULL, bytes, size) == GPTQ_ERROR_SHAPE);
  CHECK(PACK(NULL, scales, zeros, order, bytes, size) == GPTQ_ERROR_NO_CODES);
  CHECK(PACK(codes, NULL, zeros, order, bytes, size) == GPTQ_ERROR_NO_SCALES);
  CHECK(PACK(codes, scales, NULL, order, bytes, size) == GPTQ_ERROR_NO_ZEROS);
  CHECK(PACK(codes, scales, zeros, order, NULL, size) == GPTQ_ERROR_NULL);
  CHECK(PACK(codes, scales, zeros, order, bytes, size - 1) == GPTQ_ERROR_ROOM);
  CHECK(PACK(codes, scales, zeros, order, (char*)bytes + 2, size) == GPTQ_ERROR_ALIGNMENT);
  for (p = 0; p < 3; ++p) {
    int const at = places[p], code_at = p == 2 ? ROWS * COLUMNS - 1 : at,
              column = at * COLUMNS / (ROWS * GROUPS);
    float const scale = scales[at];
    uint8_t const zero = zeros[at], code = codes[code_at];
    int32_t const first = order[column];
    scales[at] = 1e9f;
    CHECK(PACK(codes, scales, zeros, order, bytes, size) == GPTQ_ERROR_SCALE_ROUNDS);
    scales[at] = HUGE_VALF;
    CHECK(PACK(codes, scales, zeros, order, bytes, size) == GPTQ_ERROR_SCALE_VALUE);
    scales[at] = scale;
    zeros[at] = 16;
    CHECK(PACK(codes, scales, zeros, order, bytes, size) == GPTQ_ERROR_ZERO_VALUE);
    zeros[at] = zero;
    codes[code_at] = 16;
    CHECK(PACK(codes, scales, zeros, order, bytes, size) == GPTQ_ERROR_CODE_VALUE);
    codes[code_at] = code;
    order[column] = COLUMNS;
    CHECK(PACK(codes, scales, zeros, order, bytes, size) == GPTQ_ERROR_ORDER);
    order[column] = order[(column + 1) % COLUMNS];
    CHECK(PACK(codes, scales, zeros, order, bytes, size) == GPTQ_ERROR_ORDER);
    order[column] = first;
  }
  for (i = 0; i < (int)(sizeof bytes / sizeof *bytes) && bytes[i] == 0x55555555u; ++i) continue;
  CHECK(i == (int)(sizeof bytes / sizeof *bytes)); /* nothing written */
  {
    /* The lowest code of `symmetric` is not in use. */
    gptq_format const symmetric = {GPTQ_SYMMETRIC, 4, 32};
    if (gptq_has_format(symmetric)) {
      codes[ROWS * COLUMNS - 1] = 0;
      CHECK(gptq_pack(symmetric, ROWS, COLUMNS, codes, scales, NULL, NULL, bytes, size) ==
            GPTQ_ERROR_CODE_VALUE);
    }
  }
  /* No columns, no rows. */
  CHECK(gptq_pack(four_in_32, 0, COLUMNS, NULL, NULL, NULL, NULL, bytes, sizeof bytes) == GPTQ_OK);
  CHECK(gptq_pack(four_in_row, 5, 0, NULL, NULL, NULL, NULL, bytes, sizeof bytes) == GPTQ_OK);
  {
    gptq_matrix w;
    gptq_activations a;
    gptq_input const nothing = {GPTQ_FLOAT32, NULL, 0};
    gptq_range const one = {0, 1}, five = {0, 5};
    memset(y, 0x55, sizeof y);
    CHECK(gptq_open(&w, bytes, 64) == GPTQ_OK && w.rows == 5 && w.columns == 0);
    CHECK(gptq_prepare(&a, &w, nothing, 1, NULL, 0, one) == GPTQ_OK);
    CHECK(gptq_multiply(&w, &a, y, 0, five) == GPTQ_OK && y[0] == 0.0f && y[4] == 0.0f && y[5] != 0.0f);
  }
}

static void check_opening_errors(void) {
  size_t const size = gptq_packed_bytes(four_in_32, ROWS, COLUMNS, 1);
  size_t const places[] = {64, 0, 0};
  unsigned char* const raw = (unsigned char*)bytes;
  gptq_matrix w, before;
  size_t i;
  memset(&before, 0x33, sizeof before);
  w = before;
  CHECK(PACK(codes, scales, zeros, order, bytes, size) == GPTQ_OK);
  CHECK(gptq_open(NULL, bytes, size) == GPTQ_ERROR_NULL && gptq_open(&w, NULL, size) == GPTQ_ERROR_NULL);
  CHECK(gptq_open(&w, bytes, 0) == GPTQ_ERROR_NO_PACKED_MATRIX);
  CHECK(gptq_open(&w, bytes, 63) == GPTQ_ERROR_NO_PACKED_MATRIX);
  CHECK(gptq_open(&w, bytes, 64) == GPTQ_ERROR_SIZE);
  CHECK(gptq_open(&w, bytes, size - 1) == GPTQ_ERROR_SIZE);
  for (i = 0; i < 3; ++i) {
    size_t const at = i == 0 ? places[0] : i == 1 ? size / 2 : size - 1;
    raw[at] ^= 1;
    CHECK(gptq_open(&w, bytes, size) == GPTQ_ERROR_CHECKSUM);
    raw[at] ^= 1;
  }
  raw[0] ^= 1;
  CHECK(gptq_open(&w, bytes, size) == GPTQ_ERROR_NO_PACKED_MATRIX);
  raw[0] ^= 1;
  raw[12] ^= 2;
  CHECK(gptq_open(&w, bytes, size) == GPTQ_ERROR_VERSION);
  raw[12] ^= 2;
  raw[16] = 5;
  CHECK(gptq_open(&w, bytes, size) == GPTQ_ERROR_FORMAT);
  raw[16] = 4;
  memmove(raw + 2, raw, size);
  CHECK(gptq_open(&w, raw + 2, size) == GPTQ_ERROR_ALIGNMENT);
  memmove(raw, raw + 2, size);
  CHECK(memcmp(&w, &before, sizeof w) == 0);
  CHECK(gptq_open(&w, bytes, sizeof bytes) == GPTQ_OK);
}

static void check_product_errors(void) {
  static uint32_t row_bytes[16384];
  size_t const size = gptq_packed_bytes(four_in_row, ROWS, COLUMNS, 0);
  gptq_input from = {GPTQ_FLOAT32, NULL, COLUMNS};
  gptq_output to = {GPTQ_FLOAT32, NULL, STRIDE};
  gptq_range all = {0, ROWS}, two = {0, 2}, wrong_rows[] = {{-1, 3}, {0, ROWS + 1}},
             wrong_tokens[] = {{-1, 1}, {0, 3}};
  gptq_epilogue const none = {NULL, NULL, 0};
  gptq_matrix w, in_row, empty;
  gptq_activations a, of_row;
  size_t needed;
  int i;
  from.data = x;
  to.data = y;
  memset(&empty, 0xff, sizeof empty);
  CHECK(gptq_open(&w, bytes, sizeof bytes) == GPTQ_OK);
  needed = gptq_workspace_bytes(&w, 2);
  CHECK(gptq_workspace_bytes(NULL, 2) == 0 && gptq_workspace_bytes(&w, 0) == 0);
  CHECK(gptq_prepare(NULL, &w, from, 2, workspace, needed, two) == GPTQ_ERROR_NULL);
  CHECK(gptq_prepare(&a, &empty, from, 2, workspace, needed, two) == GPTQ_ERROR_NULL);
  CHECK(gptq_prepare(&a, &w, from, 2, NULL, needed, two) == GPTQ_ERROR_NULL);
  CHECK(gptq_prepare(&a, &w, from, 2, workspace, needed - 1, two) == GPTQ_ERROR_WORKSPACE);
  CHECK(gptq_prepare(&a, &w, from, 2, (char*)workspace + 1, needed, two) == GPTQ_ERROR_ALIGNMENT);
  for (i = 0; i < 2; ++i) {
    CHECK(gptq_prepare(&a, &w, from, 2, workspace, needed, wrong_tokens[i]) == GPTQ_ERROR_TOKENS);
  }
  from.stride = COLUMNS - 1;
  CHECK(gptq_prepare(&a, &w, from, 2, workspace, needed, two) == GPTQ_ERROR_STRIDE);
  from.stride = COLUMNS;
  from.type = 3;
  CHECK(gptq_prepare(&a, &w, from, 2, workspace, needed, two) == GPTQ_ERROR_TYPE);
  from.type = GPTQ_FLOAT32;
  from.data = NULL;
  CHECK(gptq_prepare(&a, &w, from, 2, workspace, needed, two) == GPTQ_ERROR_NULL);
  from.data = x;
  CHECK(gptq_prepare(&a, &w, from, 2, workspace, needed, two) == GPTQ_OK);

  CHECK(gptq_multiply(NULL, &a, y, STRIDE, all) == GPTQ_ERROR_NULL);
  CHECK(gptq_multiply(&w, NULL, y, STRIDE, all) == GPTQ_ERROR_NULL);
  CHECK(gptq_multiply(&w, &a, NULL, STRIDE, all) == GPTQ_ERROR_NULL);
  CHECK(gptq_multiply(&w, &a, y, ROWS - 1, all) == GPTQ_ERROR_STRIDE);
  CHECK(gptq_multiply(&w, &a, y, ROWS, all) == GPTQ_OK);
  for (i = 0; i < 2; ++i) {
    CHECK(gptq_multiply(&w, &a, y, STRIDE, wrong_rows[i]) == GPTQ_ERROR_ROWS);
    CHECK(gptq_dequantize(&w, wrong_rows[i], y) == GPTQ_ERROR_ROWS);
  }
  CHECK(gptq_dequantize(&w, all, NULL) == GPTQ_ERROR_NULL);
  to.type = -1;
  CHECK(gptq_multiply_add(&w, &a, to, all, none) == GPTQ_ERROR_TYPE);

  /* Activations of another matrix. */
  CHECK(gptq_pack(four_in_row, ROWS, COLUMNS, codes, scales, NULL, NULL, row_bytes, size) == GPTQ_OK);
  CHECK(gptq_open(&in_row, row_bytes, size) == GPTQ_OK);
  CHECK(gptq_multiply(&in_row, &a, y, STRIDE, all) == GPTQ_ERROR_OTHER_GROUPS);
  CHECK(gptq_prepare(&of_row, &in_row, from, 2, other_workspace, sizeof other_workspace, two) == GPTQ_OK);
  a.columns = 32;
  CHECK(gptq_multiply(&w, &a, y, STRIDE, all) == GPTQ_ERROR_OTHER_COLUMNS);
  a.columns = COLUMNS;
  {
    /* An order that differs in its last place. */
    static int32_t other[COLUMNS];
    memcpy(other, order, sizeof other);
    a.order = other;
    CHECK(gptq_multiply(&w, &a, y, STRIDE, all) == GPTQ_OK);
    other[COLUMNS - 1] ^= 1;
    CHECK(gptq_multiply(&w, &a, y, STRIDE, all) == GPTQ_ERROR_OTHER_ORDER);
    a.order = NULL;
    CHECK(gptq_multiply(&w, &a, y, STRIDE, all) == GPTQ_ERROR_OTHER_ORDER);
  }
}

static void check_words(void) {
  int i;
  for (i = -2; i < 130; ++i) CHECK(gptq_error_string(i) != NULL && strlen(gptq_error_string(i)) > 5);
  CHECK(strcmp(gptq_error_string(GPTQ_OK), "nothing is wrong") == 0);
  CHECK(strcmp(gptq_error_string(GPTQ_ERROR_CHECKSUM), "a packed matrix whose bytes have changed") == 0);
  CHECK(strcmp(gptq_error_string(GPTQ_ERROR_CHECKSUM + 1), gptq_error_string(-1)) == 0);
  CHECK(strcmp(gptq_error_string(GPTQ_ERROR_ISA + 1), gptq_error_string(-1)) == 0);
  CHECK(gptq_version() == GPTQ_VERSION);
}

/* interface_test [ISA...]: each of those that the library has. */
int main(int argc, char** argv) {
  char const* const best = gptq_isa();
  int i, ran = 0;
  if (reference_is_missing()) return 77;
  fill();
  check_words();
  CHECK(gptq_use_isa("sse9") == GPTQ_ERROR_ISA && strcmp(gptq_isa(), best) == 0);
  for (i = 1; i < argc; ++i) {
    if (gptq_use_isa(argv[i]) != GPTQ_OK) continue;
    CHECK(strcmp(gptq_isa(), argv[i]) == 0);
    ++ran;
    check_products(four_in_32, 0);
    check_products(four_in_32, 1);
    check_products(four_in_row, 0);
    printf("%s: %d failures\n", gptq_isa(), failures);
  }
  CHECK(ran > 0 && strcmp(best, argv[argc - ran]) == 0);
  CHECK(gptq_use_isa(NULL) == GPTQ_OK && strcmp(gptq_isa(), best) == 0);
  fill();
  check_packing_errors();
  fill();
  check_opening_errors();
  check_product_errors();
  printf("best: %s, %d failures\n", best, failures);
  return failures != 0;
}
