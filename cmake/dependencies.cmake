# The libraries this project uses: taken from the machine when they are there, fetched as pinned here otherwise.
include(FetchContent)

# What comes after the tag: for a header-only library, the directory of its headers. Nothing else of its tree
# is used then: its own CMakeLists would bring its tests, its install rules and its warnings along.
#   package                  target                        repository                                   tag
set(gptq_pin_Eigen3          Eigen3::Eigen                 https://gitlab.com/libeigen/eigen.git        3.4.0   .)        # 3147391d946bb4b6c68edd901f2add6ac1f31f8c
set(gptq_pin_nlohmann_json   nlohmann_json::nlohmann_json  https://github.com/nlohmann/json.git         v3.11.3 include)  # 9cca280a4d0ccf0c08f47a99aa71d1b0e52f8d03
set(gptq_pin_CLI11           CLI11::CLI11                  https://github.com/CLIUtils/CLI11.git        v2.4.2  include)  # 6c7b07a878ad834957b98d0f9ce1dbe0cb204fc9
set(gptq_pin_fmt             fmt::fmt                      https://github.com/fmtlib/fmt.git            10.2.1)           # e69e5f977d458f2650bb346dadf2ad30c5320281
set(gptq_pin_tomlplusplus    tomlplusplus::tomlplusplus    https://github.com/marzer/tomlplusplus.git   v3.4.0  include)  # 30172438cee64926dc41fdd9c11fb3ba5b2ba9de
set(gptq_pin_Catch2          Catch2::Catch2                https://github.com/catchorg/Catch2.git       v3.5.4)           # b5373dadca40b7edc8570cf9470b9b1cb1934d40
set(gptq_pin_benchmark       benchmark::benchmark          https://github.com/google/benchmark.git      v1.8.3)           # 344117638c8ff7e239044fd0fa7085839fc03021

# gptq_require(<package>): afterwards the package's target exists.
# No version is asked of find_package: a range across major versions never matches there, and whatever ships
# with a compiler that knows C++20 is new enough.
function(gptq_require package)
  list(POP_FRONT gptq_pin_${package} target repository tag headers)
  if(TARGET ${target})
    return()
  endif()
  find_package(${package} CONFIG QUIET)
  if(TARGET ${target})
    message(STATUS "gptq: ${package} ${${package}_VERSION} found in ${${package}_DIR}")
    return()
  endif()

  message(STATUS "gptq: ${package} not found, fetching ${tag}")
  set(source GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW TRUE)
  if(headers)
    FetchContent_Declare(${package} ${source} SOURCE_SUBDIR no-cmake)
    FetchContent_MakeAvailable(${package})
    string(TOLOWER ${package} lower)
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${target} INTERFACE ${${lower}_SOURCE_DIR}/${headers})
  else()
    set(FMT_INSTALL OFF)
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)  # the lines above reach the options of the fetched project
    FetchContent_Declare(${package} ${source})
    FetchContent_MakeAvailable(${package})
  endif()
endfunction()

# gptq_use_xsimd(<target>): xsimd's headers, if they are on this machine, for kernels on a CPU that has none of
# its own. Not its package: Debian's links a library that is not there.
function(gptq_use_xsimd target)
  find_path(GPTQ_XSIMD_INCLUDE_DIR xsimd/xsimd.hpp)
  mark_as_advanced(GPTQ_XSIMD_INCLUDE_DIR)
  if(GPTQ_XSIMD_INCLUDE_DIR)
    target_include_directories(${target} SYSTEM INTERFACE $<BUILD_INTERFACE:${GPTQ_XSIMD_INCLUDE_DIR}>)
  endif()
endfunction()
