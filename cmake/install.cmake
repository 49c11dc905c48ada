# The installed package: headers, targets, and what find_package(gptq) needs.
include(CMakePackageConfigHelpers)

get_property(libraries DIRECTORY PROPERTY gptq_libraries)
set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/gptq)  # nothing in it depends on the architecture

if(CMAKE_VERSION VERSION_LESS 3.23)
  install(TARGETS ${libraries} EXPORT gptqTargets)
  install(DIRECTORY include/gptq DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
else()
  install(TARGETS ${libraries} EXPORT gptqTargets FILE_SET HEADERS)
endif()
install(EXPORT gptqTargets NAMESPACE gptq:: DESTINATION ${package_dir})

configure_package_config_file(cmake/gptqConfig.cmake.in gptqConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(gptqConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gptqConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/gptqConfigVersion.cmake
              cmake/dispatch.cmake cmake/isa.cmake cmake/solver.cmake
        DESTINATION ${package_dir})

# The C interface by itself, for those who have no C++: find_package(gptq_c) gives gptq::c and gptq::c_static.
if(GPTQ_C)
  set(c_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/gptq_c)
  install(TARGETS gptq_c gptq_c_static EXPORT gptq_cTargets)
  install(EXPORT gptq_cTargets NAMESPACE gptq:: DESTINATION ${c_package_dir} FILE gptq_cConfig.cmake)
  write_basic_package_version_file(gptq_cConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gptq_cConfigVersion.cmake DESTINATION ${c_package_dir})
  install(FILES include/gptq/gptq.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gptq)
endif()

include(cmake/pkgconfig.cmake)
