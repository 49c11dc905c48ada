# cmake -D compiler= -D include= -P refused.cmake
# What the library is not written for is refused by public headers in one sentence, and nothing else is said.
set(unit ${CMAKE_CURRENT_BINARY_DIR}/refused.cpp)

function(refused sentence headers)  # refused(<regular expression> <headers> <flag>...)
  foreach(header IN LISTS headers)
    file(WRITE ${unit} "#include <${header}>\n")
    execute_process(COMMAND ${compiler} ${ARGN} -fsyntax-only -I${include} ${unit}
      ERROR_VARIABLE said RESULT_VARIABLE result)
    if(result EQUAL 0)
      message(FATAL_ERROR "${header} compiles with ${ARGN}")
    endif()
    if(NOT said MATCHES "${sentence}")
      message(FATAL_ERROR "${header} does not say what it wants:\n${said}")
    endif()
    string(REGEX MATCHALL "error:" errors "${said}")
    list(LENGTH errors count)
    if(count GREATER 2)
      message(FATAL_ERROR "${header}: ${count} errors\n${said}")
    endif()
  endforeach()
endfunction()

refused("gptq is written in C\\+\\+20: compile with -std=c\\+\\+20"
  "gptq/gemm.hpp;gptq/packed.hpp;gptq/dispatch.hpp;gptq/grid.hpp" -std=c++17)
# As a compiler for a big-endian machine and as Microsoft's introduce themselves.
refused("gptq is for little-endian machines" gptq/gemm.hpp -std=c++20 -w -U__BYTE_ORDER__ -D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__)
refused("gptq is compiled by g\\+\\+ or clang" gptq/gemm.hpp -std=c++20 -U__clang__ -D_MSC_VER=1940)
