# gptq_dispatch(<target> SOURCES <file>... [ISAS <isa>...])
#
# Compiles the files into the target once for each ISA: with its flags (isa.cmake), and with
# gptq::isa::native being that ISA. The other files of the target, and all that link it, see which these are as
# gptq::isa::dispatched, and in the generated header gptq_dispatch/<target>.hpp. gptq/dispatch.hpp says how to make a
# program of that; link it with gptq::kernels.
#
# ISAS are all by default. Those that the compiler does not know are left out; the target's property gptq_isas
# has the rest, best first.
#
# The program then runs on any CPU, provided that its own flags do: with -march=native in CMAKE_CXX_FLAGS all
# of it is for this machine.
include(${CMAKE_CURRENT_LIST_DIR}/isa.cmake)

function(gptq_dispatch target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;ISAS")
  if(NOT arg_SOURCES OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Usage: gptq_dispatch(<target> SOURCES <file>... [ISAS <isa>...])")
  endif()

  gptq_isas(best_first)
  set(unknown ${arg_ISAS})
  list(REMOVE_ITEM unknown ${best_first})
  if(unknown)
    message(FATAL_ERROR "gptq_dispatch: no ISA is called ${unknown}. There are ${best_first}")
  endif()
  set(isas "")
  foreach(isa IN LISTS best_first)
    if(NOT arg_ISAS OR isa IN_LIST arg_ISAS)
      gptq_isa_compiles(${isa} compiles)
      if(compiles)
        list(APPEND isas ${isa})
      endif()
    endif()
  endforeach()
  if(NOT isas)
    message(FATAL_ERROR "gptq_dispatch: the compiler knows none of the ISAs")
  endif()
  list(JOIN isas ", " text)
  message(STATUS "gptq: ${target} has kernels for ${text}")

  # A source file has one set of flags, so each ISA gets one that includes it. Being part of the target
  # they are compiled as the rest of it is.
  foreach(source IN LISTS arg_SOURCES)
    cmake_path(ABSOLUTE_PATH source NORMALIZE OUTPUT_VARIABLE path)
    cmake_path(RELATIVE_PATH path OUTPUT_VARIABLE name)
    string(REPLACE "../" "up/" name ${name})
    foreach(isa IN LISTS isas)
      set(unit ${CMAKE_CURRENT_BINARY_DIR}/${target}.dispatch/${isa}/${name})
      file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"${path}\"\n" @ONLY)
      gptq_isa_flags(${isa} flags)
      set_source_files_properties(${unit} TARGET_DIRECTORY ${target} PROPERTIES
        COMPILE_OPTIONS "${flags}" COMPILE_DEFINITIONS GPTQ_ISA=${isa}
        SKIP_PRECOMPILE_HEADERS ON SKIP_UNITY_BUILD_INCLUSION ON)
      target_sources(${target} PRIVATE ${unit})
    endforeach()
  endforeach()
  list(JOIN isas "," text)
  target_compile_definitions(${target} PUBLIC GPTQ_DISPATCH_ISAS=${text})
  string(MAKE_C_IDENTIFIER ${target} name)
  set(include ${CMAKE_CURRENT_BINARY_DIR}/${target}.dispatch/include)
  file(CONFIGURE OUTPUT ${include}/gptq_dispatch/${target}.hpp @ONLY CONTENT
"// The ISAs that ${target} has kernels for, best first.
#pragma once

#include <gptq/isa.hpp>

namespace gptq::isa::dispatched_by {
using ${name} = list<${text}>;
}  // namespace gptq::isa::dispatched_by
")
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${include}>)
  set_target_properties(${target} PROPERTIES gptq_isas "${isas}")
endfunction()
