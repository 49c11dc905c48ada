# What our own tests, benchmarks and examples are built with. Not part of the package.

set(CMAKE_CXX_EXTENSIONS OFF)

# Sanitizers are for the library's tests and the quantizer. Other programs would only take long to compile.
string(REGEX MATCH "-fsanitize" GPTQ_SANITIZED "${CMAKE_CXX_FLAGS}")

# The presets of the checks build without optimization, which takes two to four times as long to compile. What would run
# for minutes then: gptq_computes(<target> [<level>]) and, for some files of a target, ${gptq_computes} as an option.
set(gptq_computes "")
if(CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo" AND CMAKE_CXX_FLAGS_RELWITHDEBINFO MATCHES "-O0")
  set(gptq_computes -O1)
endif()
function(gptq_computes target)
  if(gptq_computes)
    set(level ${gptq_computes})
    if(ARGC GREATER 1 AND NOT GPTQ_SANITIZED)
      set(level ${ARGV1})
    endif()
    target_compile_options(${target} PRIVATE ${level})
  endif()
endfunction()

add_library(gptq_warnings INTERFACE)
target_compile_options(gptq_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow;$<$<BOOL:${GPTQ_WERROR}>:-Werror>>")

# Eigen with OpenBLAS behind it, or alone where there is none, and under sanitizers, which see Eigen's product
# but not OpenBLAS'. A program is built with it as a whole or not at all: EIGEN_USE_BLAS changes inline functions.
add_library(gptq_blas INTERFACE)
set(BLA_VENDOR OpenBLAS)
if(NOT GPTQ_SANITIZED)
  find_package(BLAS QUIET)
endif()
if(BLAS_FOUND)
  target_link_libraries(gptq_blas INTERFACE BLAS::BLAS)
  target_compile_definitions(gptq_blas INTERFACE EIGEN_USE_BLAS)
elseif(NOT GPTQ_SANITIZED)
  message(STATUS "gptq: OpenBLAS not found, benchmarks and examples use Eigen's own matrix product")
endif()

# The solver with and without a BLAS, for all programs that quantize.
if(TARGET gptq::gptq)
  gptq_solver(gptq_solver)
  set(solvers gptq_solver)
  if(BLAS_FOUND)
    gptq_solver(gptq_solver_blas gptq_blas)
    list(APPEND solvers gptq_solver_blas)
  else()
    add_library(gptq_solver_blas ALIAS gptq_solver)
  endif()
  foreach(solver IN LISTS solvers)
    target_link_libraries(${solver} PRIVATE gptq_warnings)
    gptq_computes(${solver})
  endforeach()
endif()
