// What is the same for every format need not be compiled in every translation unit that quantizes: the
// solver, and the sums of hessian.hpp and input_error.hpp. Where several quantize, define
// GPTQ_SOLVER_ELSEWHERE for all of them but one, and GPTQ_SOLVER_HERE for that one, which need not do more
// than include quantize.hpp and input_error.hpp; all with the same EIGEN_ macros. CMake's gptq_solver() does
// that (cmake/solver.cmake). Without either, every function is inline.
#pragma once

#if defined(GPTQ_SOLVER_ELSEWHERE) || defined(GPTQ_SOLVER_HERE)
#define GPTQ_SOLVER_FUNCTION
#else
#define GPTQ_SOLVER_FUNCTION inline
#endif
