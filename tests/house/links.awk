# awk -f links.awk <file.md>...   fails, naming file and line, where a document links to a file, or to a heading of a
# document, that is not there.

# Whether a heading of this document is called so in links: in small letters, blanks as hyphens, no other signs.
function has_heading(document, anchor,    line, fence) {
  if (!(document in read)) {
    read[document] = 1
    while ((getline line < document) > 0) {
      if (line ~ /^```/) fence = !fence
      if (fence || line !~ /^#+ /) continue
      sub(/^#+ /, "", line)
      line = tolower(line)
      gsub(/[^a-z0-9_ -]/, "", line)
      gsub(/ /, "-", line)
      headings[document, line] = 1
    }
    close(document)
  }
  return (document, anchor) in headings
}
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
    if (target ~ /^[a-z]+:/) continue
    anchor = ""
    if (match(target, /#.*/)) {
      anchor = substr(target, RSTART + 1)
      target = substr(target, 1, RSTART - 1)
    }
    ++links
    document = target == "" ? FILENAME : folder target
    if (system("test -e '" document "'") != 0) {
      print FILENAME ":" FNR ": links to " target ", which is not there"
      ++failures
    } else if (anchor != "" && document ~ /\.md$/ && !has_heading(document, anchor)) {
      print FILENAME ":" FNR ": links to " target "#" anchor ", which is no heading there"
      ++failures
    }
  }
}
END {
  if (links == 0) { print "no links"; ++failures }
  else if (!failures) print links " links"
  exit failures > 0
}
