# What our own tests, benchmarks and examples are built with. Not part of the package.

set(CMAKE_CXX_EXTENSIONS OFF)

# Sanitizers are for the library's tests and the quantizer. Other programs would only take long to compile.
string(REGEX MATCH "-fsanitize" GPTQ_SANITIZED "${CMAKE_CXX_FLAGS}")

add_library(gptq_warnings INTERFACE)
target_compile_options(gptq_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow;$<$<BOOL:${GPTQ_WERROR}>:-Werror>>")

# Eigen with OpenBLAS behind it, or alone where there is none. A program is built with it as a whole or not at
# all: EIGEN_USE_BLAS changes inline functions.
add_library(gptq_blas INTERFACE)
set(BLA_VENDOR OpenBLAS)
find_package(BLAS QUIET)
if(BLAS_FOUND)
  target_link_libraries(gptq_blas INTERFACE BLAS::BLAS)
  target_compile_definitions(gptq_blas INTERFACE EIGEN_USE_BLAS)
else()
  message(STATUS "gptq: OpenBLAS not found, benchmarks and examples use Eigen's own matrix product")
endif()
