include(GNUInstallDirs)

# gptq_library(<name> [HEADERS <file>...] [ROOMS <folder>...] [LINK <target>...])
# defines gptq::<name> of these headers below include/gptq and all headers in these folders. Knowing them lets
# CMake install them and prove each one self-sufficient, with no more on the include path than the library asks
# for.
function(gptq_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "HEADERS;ROOMS;LINK")
  set(include ${PROJECT_SOURCE_DIR}/include)
  list(TRANSFORM arg_HEADERS PREPEND ${include}/gptq/)
  foreach(room IN LISTS arg_ROOMS)
    file(GLOB headers CONFIGURE_DEPENDS ${include}/gptq/${room}/*)
    list(FILTER headers INCLUDE REGEX "\\.(hpp|cuh)$")
    list(APPEND arg_HEADERS ${headers})
  endforeach()

  add_library(gptq_${name} INTERFACE)
  add_library(gptq::${name} ALIAS gptq_${name})
  set_target_properties(gptq_${name} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(gptq_${name} INTERFACE cxx_std_20)
  target_link_libraries(gptq_${name} INTERFACE ${arg_LINK})
  if(CMAKE_VERSION VERSION_LESS 3.23)  # no file sets yet
    target_include_directories(gptq_${name} INTERFACE
      $<BUILD_INTERFACE:${include}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  else()
    target_sources(gptq_${name} INTERFACE FILE_SET HEADERS BASE_DIRS ${include} FILES ${arg_HEADERS})
  endif()
  set_property(DIRECTORY APPEND PROPERTY gptq_libraries gptq_${name})
endfunction()
