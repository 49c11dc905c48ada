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

include(cmake/pkgconfig.cmake)
