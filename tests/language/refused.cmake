# cmake -D compiler= -D include= -P older_standard.cmake
# Fails unless public headers, compiled as C++17, say that they want C++20 and no more than that.
set(unit ${CMAKE_CURRENT_BINARY_DIR}/older_standard.cpp)
foreach(header gptq/gemm.hpp gptq/packed.hpp gptq/dispatch.hpp gptq/grid.hpp)
  file(WRITE ${unit} "#include <${header}>\n")
  execute_process(COMMAND ${compiler} -std=c++17 -fsyntax-only -I${include} ${unit}
    ERROR_VARIABLE said RESULT_VARIABLE result)
  if(result EQUAL 0)
    message(FATAL_ERROR "${header} compiles as C++17")
  endif()
  if(NOT said MATCHES "gptq is written in C\\+\\+20: compile with -std=c\\+\\+20")
    message(FATAL_ERROR "${header} does not say what it wants:\n${said}")
  endif()
  string(REGEX MATCHALL "error:" errors "${said}")
  list(LENGTH errors count)
  if(count GREATER 2)
    message(FATAL_ERROR "${header}: ${count} errors\n${said}")
  endif()
endforeach()
