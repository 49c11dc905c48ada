// What the example in the head of gptq.h takes for granted.
#pragma once

#include <cstdio>

#include <gptq/gptq.h>

using std::puts;
extern void const* bytes;
extern size_t size;
extern float const* values;
extern float* y;
extern void* workspace;
extern int64_t tokens;
