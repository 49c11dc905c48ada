/* What the C++ library makes of the same bytes, in kernels that have fused multiply-add. */
#include <stddef.h>
#include <stdint.h>

#include <gptq/gptq.h>

#ifdef __cplusplus
extern "C" {
#endif
/* 1 where this CPU cannot run them. */
int reference_is_missing(void);
/* y[tokens, rows] = X W', and + bias + residual where these are not null, rounded to the type of y. 0, or what is
   wrong. */
int reference_multiply(gptq_format format, void const* bytes, size_t size, gptq_input x, int64_t tokens,
                       void* workspace, gptq_output y, gptq_epilogue epilogue);
#ifdef __cplusplus
}
#endif
