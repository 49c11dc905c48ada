/* A stranger's program in C. Returns 0 when the result is what it should be. */
#include <stdio.h>

#include <gptq/gptq.h>

static uint32_t bytes[160], workspace[64];
static uint8_t codes[32];

int main(void) {
  gptq_format const format = {GPTQ_FIXED_ZERO, 4, 32};
  gptq_range const one = {0, 1};
  float const scale = 0.5f, x[32] = {127.0f, 1.0f, 2.0f};
  gptq_input from = {GPTQ_FLOAT32, 0, 32};
  gptq_activations a;
  gptq_matrix w;
  float y = 0.0f;
  int i, status;
  for (i = 0; i < 32; ++i) codes[i] = 9; /* every weight (9 - 8) * 0.5 */
  from.data = x;
  status = gptq_pack(format, 1, 32, codes, &scale, NULL, NULL, bytes, sizeof bytes);
  if (status == GPTQ_OK) status = gptq_open(&w, bytes, sizeof bytes);
  if (status == GPTQ_OK) status = gptq_prepare(&a, &w, from, 1, workspace, sizeof workspace, one);
  if (status == GPTQ_OK) status = gptq_multiply(&w, &a, &y, 1, one);
  printf("%s, %s: %g\n", gptq_isa(), gptq_error_string(status), (double)y);
  return status != GPTQ_OK || y != 65.0f;
}
