/* What a C program sees of an engine that is written with the library. */
#ifdef __cplusplus
extern "C" {
#endif
/* y[out] = W x for 4-bit codes in groups of 8 columns; rows and memory are counted by the caller. 0, or a number that
   says what is wrong. */
int shim_multiply(unsigned char const* codes, unsigned long code_bytes, unsigned short const* scales,
                  unsigned long scale_count, long out, long in, float const* x, float* y);
char const* shim_message(int what);
char const* shim_isa(void);
#ifdef __cplusplus
}
#endif
