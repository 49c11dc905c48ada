# awk -v preamble=<header> -v none=<names> -v language=<cpp or cuda> -v out=<file> -f examples.awk <file>...
# writes a translation unit of the code that documents show: of a header's head, which ends at #pragma once, the
# paragraphs indented by three spaces whose first line ends as code does (and not as a table),
#   //   gptq::gemv(w, x, y);        // as this one does
# and of a .md file the code blocks that name the language. A paragraph becomes the body of a function or, where it
# begins with a type or a template, stands by itself; it sees what the preamble declares for all, and in a namespace
# called like the file for this file. Fails for a header without an example, unless it is one of `none`.
BEGIN {
  n = split(none, names, " ")
  for (i = 1; i <= n; ++i) without[names[i]] = 1
}

FNR == 1 {
  finish_file()
  file = name = FILENAME
  markdown = file ~ /\.md$/
  sub(markdown ? ".*/" : ".*/include/gptq/", "", name)
  space = name
  gsub(/[^A-Za-z0-9]/, "_", space)
  head = 1
  examples = 0
}

markdown && $0 == "```" language { inside = 1; next }
markdown && /^```/ { inside = 0; finish_paragraph(); next }
markdown { if (inside) keep($0); next }

/^#pragma once/ { finish_paragraph(); head = 0 }
!head { next }
/^\/\/   [^ ]/ || (lines > 0 && /^\/\/    /) { keep(substr($0, 6)); next }
{ finish_paragraph() }

END {
  finish_file()
  printf "%s#include \"%s\"\n%s", includes, preamble, body > out
  exit failures > 0
}

function keep(line) {
  if (lines == 0) {
    first = FNR
    line_of_code = line
    sub(/ *\/\/.*/, "", line_of_code)
    code = markdown || line_of_code ~ /[;{(,]$/ || line_of_code ~ /^#include/
  }
  if (line ~ /^#include/) {
    includes = includes line "\n"
    line = ""
  }
  paragraph = paragraph line "\n"
  ++lines
  if (line ~ /^(struct|class|template|namespace)/) outside = 1
}

function finish_paragraph() {
  if (code) {
    ++examples
    body = body "namespace " space " {\n" (outside ? "" : "void example_" examples "() {\n") \
      "#line " first " \"" file "\"\n" paragraph (outside ? "}\n" : "}\n}\n")
  }
  paragraph = ""
  lines = code = outside = 0
}

function finish_file() {
  if (file == "") return
  finish_paragraph()
  if (markdown) return
  if (examples == 0 && !(name in without)) complain(file, "shows no example of its use")
  if (examples > 0 && name in without) complain(file, "has an example: take it off the list of those without")
  includes = includes "#include <gptq/" name ">\n"
}

function complain(at, what) {
  print at ": " what > "/dev/stderr"
  ++failures
}
