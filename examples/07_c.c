/* The library from C: a matrix is packed into a file once, mapped from then on, and multiplied by a prompt and by a
   token, with threads of the program's own. Link with gptq::c or gptq::c_static (cmake -D GPTQ_C=ON).

     example_07_c [FILE]      the file is written if it is not there */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include <gptq/gptq.h>

enum { rows = 128, columns = 256, tokens = 5, threads = 2 };

static void stop(char const* what, int status) {
  fprintf(stderr, "%s: %s\n", what, gptq_error_string(status));
  exit(1);
}

/* A matrix whose weights are (row + column) mod 15 - 7, times 2^-6. In an engine they come from a checkpoint. */
static void write_matrix(char const* path) {
  gptq_format const format = {GPTQ_SYMMETRIC, 4, 32};
  size_t const size = gptq_packed_bytes(format, rows, columns, 0);
  uint8_t* const codes = malloc(rows * columns);
  float* const scales = malloc(rows * (columns / 32) * sizeof(float));
  void* const bytes = malloc(size);
  FILE* const file = fopen(path, "wb");
  int i, status;
  if (codes == NULL || scales == NULL || bytes == NULL || file == NULL) exit(2);
  for (i = 0; i < rows * columns; ++i) codes[i] = (uint8_t)((i / columns + i % columns) % 15 + 1);
  for (i = 0; i < rows * (columns / 32); ++i) scales[i] = 0.015625f;
  status = gptq_pack(format, rows, columns, codes, scales, NULL, NULL, bytes, size);
  if (status != GPTQ_OK) stop("gptq_pack", status);
  if (fwrite(bytes, 1, size, file) != size || fclose(file) != 0) exit(2);
  free(bytes);
  free(scales);
  free(codes);
}

/* What a thread works on. */
typedef struct share {
  gptq_matrix const* w;
  gptq_activations const* a;
  float* y;
  gptq_range some_rows;
} share;

static void* multiply(void* argument) {
  share const* const s = argument;
  int const status = gptq_multiply(s->w, s->a, s->y, rows, s->some_rows);
  if (status != GPTQ_OK) stop("gptq_multiply", status);
  return NULL;
}

int main(int argc, char** argv) {
  char const* const path = argc > 1 ? argv[1] : "example_07_c.packed";
  static float x[tokens * columns], y[tokens * rows], one[rows];
  gptq_range const all_tokens = {0, tokens}, first_token = {0, 1}, all_rows = {0, rows};
  gptq_input from = {GPTQ_FLOAT32, x, columns};
  gptq_activations a;
  gptq_matrix w;
  share shares[threads];
  pthread_t running[threads];
  struct stat about;
  void *bytes, *workspace;
  int file, i, status, wrong = 0;

  if (access(path, R_OK) != 0) write_matrix(path);
  file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &about) != 0) return 2;
  bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (bytes == MAP_FAILED) return 2;
  status = gptq_open(&w, bytes, (size_t)about.st_size);
  if (status != GPTQ_OK) stop(path, status);
  if (w.rows != rows || w.columns != columns) return 3;

  /* A prompt: x made ready once, and each thread some of the rows. Multiples of 32 are best. */
  for (i = 0; i < tokens * columns; ++i) x[i] = i % columns % 32 == 0 ? 127.0f : (float)(i % 19 - 9);
  workspace = malloc(gptq_workspace_bytes(&w, tokens));
  if (workspace == NULL) return 2;
  status = gptq_prepare(&a, &w, from, tokens, workspace, gptq_workspace_bytes(&w, tokens), all_tokens);
  if (status != GPTQ_OK) stop("gptq_prepare", status);
  for (i = 0; i < threads; ++i) {
    shares[i].w = &w;
    shares[i].a = &a;
    shares[i].y = y;
    shares[i].some_rows.first = rows / threads * i;
    shares[i].some_rows.last = rows / threads * (i + 1);
    if (pthread_create(&running[i], NULL, multiply, &shares[i]) != 0) return 2;
  }
  for (i = 0; i < threads; ++i) pthread_join(running[i], NULL);

  /* A token: the same function, and the same bits. */
  status = gptq_prepare(&a, &w, from, 1, workspace, gptq_workspace_bytes(&w, 1), first_token);
  if (status == GPTQ_OK) status = gptq_multiply(&w, &a, one, rows, all_rows);
  if (status != GPTQ_OK) stop("the first token", status);

  for (i = 0; i < tokens * rows; ++i) {
    int const row = i % rows, token = i / rows;
    float exact = 0.0f; /* x is whole numbers of 127ths: nothing is rounded */
    int k;
    for (k = 0; k < columns; ++k) exact += x[token * columns + k] * (float)((row + k) % 15 - 7) * 0.015625f;
    wrong += y[i] != exact || (token == 0 && one[row] != exact);
  }
  printf("%s, gptq %d, kernels for %s: %d of %d results wrong\n", path, gptq_version(), gptq_isa(), wrong,
         tokens * rows);
  free(workspace);
  munmap(bytes, (size_t)about.st_size);
  return wrong != 0;
}
