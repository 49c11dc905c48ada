# Where MinGW-w64 compiles for Windows on another system (preset "windows"): libraries of headers alone are taken from
# that system, but not its include folder as a whole, which has the headers of its C library.
set(headers ${CMAKE_BINARY_DIR}/headers)
file(MAKE_DIRECTORY ${headers})
foreach(library nlohmann catch2 xsimd)
  file(CREATE_LINK /usr/include/${library} ${headers}/${library} SYMBOLIC)
endforeach()
set(GPTQ_XSIMD_INCLUDE_DIR ${headers} CACHE PATH "")
foreach(target nlohmann_json::nlohmann_json Catch2::Catch2)
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} SYSTEM INTERFACE ${headers})
endforeach()
