// What is the same for every format and takes half a minute to compile: the solver of quantize.hpp, Cholesky
// factorization, and the sums of hessian.hpp and input_error.hpp. Where several translation units quantize,
// all but one can do without it: define GPTQ_SOLVER_ELSEWHERE for these, and GPTQ_SOLVER_HERE for the one
// that is to have it, which need not do more than include gptq.hpp.
#pragma once

#if defined(GPTQ_SOLVER_ELSEWHERE) || defined(GPTQ_SOLVER_HERE)
#define GPTQ_SOLVER_FUNCTION
#else
#define GPTQ_SOLVER_FUNCTION inline
#endif
