# awk -f links.awk <file.md>...   fails, naming file and line, where a document links to a file that is not there.
FNR == 1 {
  folder = FILENAME
  if (!sub(/[^\/]*$/, "", folder)) folder = ""
  code = 0
}
/^```/ { code = !code }
!code {
  rest = $0
  while (match(rest, /\]\([^)]*\)/)) {
    target = substr(rest, RSTART + 2, RLENGTH - 3)
    rest = substr(rest, RSTART + RLENGTH)
    sub(/#.*/, "", target)
    if (target == "" || target ~ /^[a-z]+:/) continue
    ++links
    if (system("test -e '" folder target "'") != 0) {
      print FILENAME ":" FNR ": links to " target ", which is not there"
      ++failures
    }
  }
}
END {
  if (links == 0) { print "no links"; ++failures }
  else if (!failures) print links " links"
  exit failures > 0
}
