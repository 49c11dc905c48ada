# cmake -D way= -D program= -D gptq_source= -D gptq_build= -D work= -D generator= -D compiler= -D c_compiler= -P run.cmake
# configures, builds and runs the stranger's project in ${work}. -> CMakeLists.txt
cmake_minimum_required(VERSION 3.22)

function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${work})
if(program STREQUAL "c_program")  # neither C++ nor the C++ package
  run(${CMAKE_COMMAND} --install ${gptq_build} --prefix ${work}/prefix)
  if(way STREQUAL "pkgconfig")
    file(GLOB directory ${work}/prefix/lib*/pkgconfig ${work}/prefix/lib/*/pkgconfig)
    list(GET directory 0 directory)
    set(ENV{PKG_CONFIG_PATH} ${directory})
    execute_process(COMMAND pkg-config --cflags --libs gptq-c OUTPUT_VARIABLE flags COMMAND_ERROR_IS_FATAL ANY)
    separate_arguments(flags UNIX_COMMAND "${flags}")
    run(${c_compiler} -std=c99 -Wall -Wextra -Wpedantic -Werror ${CMAKE_CURRENT_LIST_DIR}/c_program.c ${flags}
        -Wl,-rpath,${directory}/.. -o ${work}/stranger)
    run(${work}/stranger)
  else()
    run(${CMAKE_COMMAND} --no-warn-unused-cli -G ${generator} -S ${CMAKE_CURRENT_LIST_DIR}/c_program -B ${work}/build
        -D CMAKE_C_COMPILER=${c_compiler} -D CMAKE_PREFIX_PATH=${work}/prefix)
    run(${CMAKE_COMMAND} --build ${work}/build)
    run(${work}/build/stranger)
    run(${work}/build/stranger_static)
  endif()
  return()
endif()
if(way STREQUAL "pkgconfig")  # and no CMake in the stranger's project
  run(${CMAKE_COMMAND} --install ${gptq_build} --prefix ${work}/prefix)
  set(ENV{PKG_CONFIG_PATH} ${work}/prefix/share/pkgconfig)
  execute_process(COMMAND pkg-config --cflags gptq-kernels OUTPUT_VARIABLE flags COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  run(${compiler} -std=c++20 -O0 ${flags} ${CMAKE_CURRENT_LIST_DIR}/${program}.cpp -o ${work}/stranger)
  run(${work}/stranger)
  return()
endif()
set(options -D way=${way} -D program=${program})
if(way STREQUAL "installed")
  run(${CMAKE_COMMAND} --install ${gptq_build} --prefix ${work}/prefix)
  list(APPEND options -D CMAKE_PREFIX_PATH=${work}/prefix)
else()
  list(APPEND options -D gptq_source=${gptq_source})
endif()
if(NOT program STREQUAL "quantizer")  # a machine that has nothing and can fetch nothing
  list(APPEND options -D CMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON -D CMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON
       -D FETCHCONTENT_FULLY_DISCONNECTED=ON)
endif()

run(${CMAKE_COMMAND} --no-warn-unused-cli -G ${generator} -S ${CMAKE_CURRENT_LIST_DIR} -B ${work}/build
    -D CMAKE_CXX_COMPILER=${compiler} ${options})
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/stranger)
