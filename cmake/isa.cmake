# The one table of ISAs (CPU instruction sets; include/gptq/isa.hpp has a type for each): names, best first, and
# what a translation unit is compiled with for the kernels of an ISA. Nothing after the name where every compiler
# for that CPU has it anyway. Dispatch, tests and benchmarks follow from this table; tests/isa_test.cpp fails where
# it and isa.hpp differ.
set(gptq_avx2 "-mavx2 -mfma -mf16c")
set(gptq_avx512 "${gptq_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl")
set_property(GLOBAL PROPERTY gptq_isa_table
  "amx_int8 ${gptq_avx512} -mavx512vnni -mamx-tile -mamx-int8"
  "avx512vnni ${gptq_avx512} -mavx512vnni"
  "avx512bw ${gptq_avx512}"
  "avxvnni ${gptq_avx2} -mavxvnni"
  "avx2 ${gptq_avx2}"
  "neon_dotprod -march=armv8.2-a+dotprod"
  "neon"
  "generic -DGPTQ_WITH_GENERIC")

# gptq_isas(<out-var>): the names of all ISAs, best first.
function(gptq_isas out)
  get_property(table GLOBAL PROPERTY gptq_isa_table)
  list(TRANSFORM table REPLACE " .*" "")
  set(${out} ${table} PARENT_SCOPE)
endfunction()

# gptq_isa_flags(<isa> <out-var>): its flags, a list.
function(gptq_isa_flags isa out)
  get_property(table GLOBAL PROPERTY gptq_isa_table)
  list(FILTER table INCLUDE REGEX "^${isa}( |$)")
  if(NOT table)
    message(FATAL_ERROR "gptq_isa_flags: no ISA is called ${isa}")
  endif()
  string(REPLACE " " ";" flags "${table}")
  list(POP_FRONT flags)
  set(${out} ${flags} PARENT_SCOPE)
endfunction()

# gptq_isa_compiles(<isa> <out-var>): whether this compiler, for the CPU it compiles for, takes the flags and has
# the ISA with them.
function(gptq_isa_compiles isa out)
  gptq_isa_flags(${isa} flags)
  set(CMAKE_REQUIRED_FLAGS)
  set(CMAKE_REQUIRED_DEFINITIONS ${flags})
  set(CMAKE_CXX_STANDARD 20)
  # Of a target that may be installed or of this project.
  get_target_property(CMAKE_REQUIRED_INCLUDES gptq::kernels INTERFACE_INCLUDE_DIRECTORIES)
  string(REGEX REPLACE "\\$<BUILD_INTERFACE:([^>]*)>" "\\1" CMAKE_REQUIRED_INCLUDES "${CMAKE_REQUIRED_INCLUDES}")
  string(GENEX_STRIP "${CMAKE_REQUIRED_INCLUDES}" CMAKE_REQUIRED_INCLUDES)
  set(CMAKE_REQUIRED_QUIET TRUE)
  include(CheckCXXSourceCompiles)
  check_cxx_source_compiles("
    #include <gptq/isa.hpp>
    static_assert(gptq::isa::${isa}::compiled);
    int main() {}" gptq_isa_${isa}_compiles)
  set(${out} ${gptq_isa_${isa}_compiles} PARENT_SCOPE)
endfunction()
