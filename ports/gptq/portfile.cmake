# An overlay port: it installs the checkout that it is part of and fetches nothing.
set(SOURCE_PATH "${CURRENT_PORT_DIR}/../..")
set(VCPKG_BUILD_TYPE release)  # headers only

set(components "")
if("quantizer" IN_LIST FEATURES)
  list(APPEND components gptq)
endif()
if("checkpoint" IN_LIST FEATURES)
  list(APPEND components checkpoint)
endif()

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    "-DGPTQ_COMPONENTS=${components}"
    -DGPTQ_BUILD_TESTS=OFF
    -DGPTQ_BUILD_BENCHMARKS=OFF
    -DGPTQ_BUILD_EXAMPLES=OFF
    -DFETCHCONTENT_FULLY_DISCONNECTED=ON
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/gptq)
vcpkg_fixup_pkgconfig()
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
