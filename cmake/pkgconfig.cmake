# gptq-<name>.pc for those who build without CMake: where the headers are and what they need.
function(gptq_pkgconfig name description requires)
  set(file ${CMAKE_CURRENT_BINARY_DIR}/gptq-${name}.pc)
  file(CONFIGURE OUTPUT ${file} @ONLY CONTENT [[
prefix=${pcfiledir}/../..
includedir=${prefix}/@CMAKE_INSTALL_INCLUDEDIR@

Name: gptq-@name@
Description: @description@
Version: @PROJECT_VERSION@
Requires: @requires@
Cflags: -I${includedir}
]])
  install(FILES ${file} DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
endfunction()

gptq_pkgconfig(kernels "Packed low-bit matrices and products on them, headers only" "")
if("gptq" IN_LIST GPTQ_COMPONENTS)
  gptq_pkgconfig(gptq "GPTQ quantization, headers only" "gptq-kernels eigen3")
endif()
if("checkpoint" IN_LIST GPTQ_COMPONENTS)
  gptq_pkgconfig(checkpoint "Quantized model files, headers only" "gptq-kernels nlohmann_json")
endif()
if(GPTQ_C)  # a library for one kind of CPU, so not where the others are
  set(file ${CMAKE_CURRENT_BINARY_DIR}/gptq-c.pc)
  string(REGEX REPLACE "[^/]+" ".." up_to_prefix ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  file(CONFIGURE OUTPUT ${file} @ONLY CONTENT [[
prefix=${pcfiledir}/@up_to_prefix@
includedir=${prefix}/@CMAKE_INSTALL_INCLUDEDIR@
libdir=${prefix}/@CMAKE_INSTALL_LIBDIR@

Name: gptq-c
Description: Packed low-bit matrices and products on them, for C
Version: @PROJECT_VERSION@
Cflags: -I${includedir}
Libs: -L${libdir} -lgptq
]])
  install(FILES ${file} DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
