# cmake -D source=<the repository> -P versions.cmake   fails where a package's file has another version than the headers.
# What needs a compiler is in tests/packages.sh.
cmake_minimum_required(VERSION 3.22)
file(STRINGS ${source}/include/gptq/version.hpp version REGEX "#define GPTQ_VERSION_[A-Z]+ [0-9]+")
list(TRANSFORM version REPLACE "[^0-9]" "")
list(JOIN version . version)

file(STRINGS ${source}/debian/changelog debian LIMIT_COUNT 1)
if(NOT debian MATCHES "^gptq \\(([0-9.]+)-" OR NOT CMAKE_MATCH_1 STREQUAL version)
  message(SEND_ERROR "debian/changelog begins with '${debian}', the headers are ${version}")
endif()
file(READ ${source}/ports/gptq/vcpkg.json port)
string(JSON port GET "${port}" version-semver)
if(NOT port STREQUAL version)
  message(SEND_ERROR "ports/gptq/vcpkg.json has version ${port}, the headers are ${version}")
endif()
