/* A plain C program. Returns 0 when the results are what they should be. */
#include <stdio.h>
#include <string.h>

#include "shim.h"

int main(void) {
  /* Every code 9, so every weight (9 - 8) * 0.5. */
  unsigned char codes[128];
  unsigned short scales[32];
  float const x[8] = {127, 2, 3, 4, 5, 6, 7, 8};
  float y[32];
  int i, what;
  memset(codes, 0x99, sizeof codes);
  for (i = 0; i < 32; ++i) scales[i] = 0x3800;
  what = shim_multiply(codes, sizeof codes, scales, 32, 32, 8, x, y);
  printf("%s: %d\n", shim_isa(), what);
  if (what != 0) return 1;
  for (i = 0; i < 32; ++i)
    if (y[i] != 81.0F) return 2;

  what = shim_multiply(codes, sizeof codes - 1, scales, 32, 32, 8, x, y);
  printf("%s\n", shim_message(what));
  if (strcmp(shim_message(what), "fewer codes than the shape needs") != 0) return 3;
  scales[31] = 0x7c00;
  what = shim_multiply(codes, sizeof codes, scales, 32, 32, 8, x, y);
  return strcmp(shim_message(what), "a scale that is not finite") == 0 ? 0 : 4;
}
