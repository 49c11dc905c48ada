# gptq_solver(<name> [<target>...]) defines a static library: what quantizes, and is the same for every format, compiled
# once for all targets that link <name> in place of gptq::gptq. The <target>s are linked as well and what they ask for
# holds for both sides, such as a BLAS behind Eigen: a program has EIGEN_USE_BLAS as a whole or not at all.
#
#   gptq_solver(solver)
#   target_link_libraries(program PRIVATE solver)
#
# Without it every translation unit that quantizes has a solver of its own, as a header-only library does.
function(gptq_solver name)
  set(unit ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  file(CONFIGURE OUTPUT ${unit} @ONLY
    CONTENT "#define GPTQ_SOLVER_HERE\n#include <gptq/input_error.hpp>\n#include <gptq/quantize.hpp>\n")
  add_library(${name} STATIC ${unit})
  target_link_libraries(${name} PUBLIC gptq::gptq ${ARGN})
  target_compile_definitions(${name} INTERFACE GPTQ_SOLVER_ELSEWHERE)
endfunction()
