# awk -v include=<the folder include> -f amalgamate.awk > gptq_kernels.hpp
# What an inference engine includes, in one file: gptq/parallel.hpp, dispatch.hpp, reference.hpp and the headers below
# them, each once, where it is first included. Needs nothing but a C++20 compiler.
BEGIN {
  print "// gptq " version " in one header: packed low-bit matrices and products on them. Made by cmake/amalgamate.awk of"
  print "// the headers in include/gptq, which are the manual.\n"
  while ((getline line < (include "/../LICENSE")) > 0) print line == "" ? "//" : "// " line
  print "#pragma once\n"
  n = split("grouped_gemm.hpp parallel.hpp thread_pool.hpp dispatch.hpp format_spec.hpp packed.hpp packed_file.hpp prepare.hpp reference.hpp", headers, " ")
  for (i = 1; i <= n; ++i) add(headers[i])
}

# What a header includes goes before it, also where only some ISAs include it: all such headers guard themselves.
function add(header, file, line, head) {
  if (header in added) return
  added[header] = 1
  file = include "/gptq/" header
  while ((getline line < file) > 0) {
    if (line ~ /^#include <gptq\/[a-z]/) {
      sub(/^#include <gptq\//, "", line)
      sub(/>.*/, "", line)
      add(line)
    }
  }
  close(file)
  head = 1
  while ((getline line < file) > 0) {
    if (line ~ /^#pragma once/) head = 0
    else if (line !~ /^#include <gptq\/[a-z]/ && !(head && line ~ /^\/\//)) print line
  }
  close(file)
  if (head) {
    print "amalgamate.awk: " file " is not there, or has no #pragma once" > "/dev/stderr"
    exit 1
  }
}
