# The C interface (gptq.h) as libraries: gptq::c, shared, and gptq::c_static. What they are compiled from is in src/c.
# Kernels are compiled for every format and every ISA, some two seconds each for those that share none, so ask for what
# your files have; fixed_zero and symmetric share theirs, and so do groups of 128 and whole rows.
set(GPTQ_C_SCHEMES fixed_zero symmetric asymmetric CACHE STRING "C interface: asymmetric, symmetric, fixed_zero, half_step")
set(GPTQ_C_BITS 2 3 4 8 CACHE STRING "C interface: bits of a code")
set(GPTQ_C_GROUP_SIZES 32 64 128 row CACHE STRING "C interface: columns of a group, or row")
set(GPTQ_C_ISAS "" CACHE STRING "C interface: CPU instruction sets, of those in cmake/isa.cmake; empty for all")

enable_language(C)
add_library(gptq_c_objects OBJECT ${PROJECT_SOURCE_DIR}/src/c/interface.cpp)
gptq_dispatch(gptq_c_objects SOURCES ${PROJECT_SOURCE_DIR}/src/c/kernels.cpp ISAS ${GPTQ_C_ISAS})
target_link_libraries(gptq_c_objects PRIVATE gptq::kernels)
list(JOIN GPTQ_C_SCHEMES "," schemes)
list(JOIN GPTQ_C_BITS "," bits)
list(JOIN GPTQ_C_GROUP_SIZES "," group_sizes)
target_compile_definitions(gptq_c_objects PRIVATE
  GPTQ_C_SCHEMES=${schemes} GPTQ_C_BITS=${bits} GPTQ_C_GROUP_SIZES=${group_sizes})
target_compile_options(gptq_c_objects PRIVATE -fno-exceptions -fno-rtti)
set_target_properties(gptq_c_objects PROPERTIES
  POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)

foreach(type SHARED STATIC)
  if(type STREQUAL "SHARED")
    set(name c)
  else()
    set(name c_static)
  endif()
  add_library(gptq_${name} ${type} $<TARGET_OBJECTS:gptq_c_objects>)
  add_library(gptq::${name} ALIAS gptq_${name})
  # Linked as C is: nothing in it asks for C++'s library.
  set_target_properties(gptq_${name} PROPERTIES EXPORT_NAME ${name} OUTPUT_NAME gptq LINKER_LANGUAGE C
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  target_include_directories(gptq_${name} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()
