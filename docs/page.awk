# awk -v pages="README.md docs/faq.md ..." -v copies=<list> -f page.awk <document>   with all paths from the repository's root
# writes the document as Doxygen takes it: headings get names, links to other documents and to public headers become
# references to their pages, other files that it links to or shows are named in `copies` and linked where they will be, and
# flow charts become graphviz's.
BEGIN {
  count = split(pages, list, " ")
  for (i = 1; i <= count; ++i) page[list[i]] = 1
}
FNR == 1 { folder = FILENAME; if (!sub(/[^\/]*$/, "", folder)) folder = "" }

/^```mermaid/ { chart = 1; print "@dot"; print "digraph {\n  rankdir=LR; bgcolor=transparent; size=\"9.6\"\n  node [shape=box style=\"rounded,filled\" fillcolor=\"#eef3fa\" fontname=Helvetica fontsize=11]\n  edge [fontname=Helvetica fontsize=10]"; next }
chart && /^```/ { chart = 0; print "}"; print "@enddot"; next }
chart { if ($0 !~ /^flowchart/) print edge($0); next }

/^```/ { code = !code; sub(/^```cu$/, "```cpp"); print; next }
code { print; next }
/^#+ / {
  title = $0
  sub(/^#+ /, "", title)
  name_of_title = /^# / ? "" : slug(title)
  if (n = titles[name_of_title]++) name_of_title = name_of_title "-" n
  print links($0) " {#" label(FILENAME, name_of_title) "}"
  next
}
{ print links($0) }

function label(document, anchor) {
  gsub(/[^A-Za-z0-9]/, "_", document)
  gsub(/[^A-Za-z0-9]/, "_", anchor)
  return document (anchor == "" ? "" : "_" anchor)
}
# As GitHub names a heading.
function slug(title) {
  title = tolower(title)
  gsub(/[^a-z0-9 _-]/, "", title)
  gsub(/ /, "-", title)
  return title
}
function normal(path) {
  while (sub(/[^\/]+\/\.\.\//, "", path)) ;
  gsub(/\/\.\//, "/", path)
  sub(/\/$/, "", path)
  return path
}
function links(rest, done, text, target, anchor, picture) {
  done = ""
  while (match(rest, /!?\[[^][]*\]\([^) ]*\)/)) {
    done = done substr(rest, 1, RSTART - 1)
    text = substr(rest, RSTART, RLENGTH)
    rest = substr(rest, RSTART + RLENGTH)
    picture = text ~ /^!/
    target = text
    sub(/^.*\(/, "", target)
    sub(/\)$/, "", target)
    sub(/\([^(]*$/, "", text)
    anchor = ""
    if (match(target, /#/)) { anchor = substr(target, RSTART + 1); target = substr(target, 1, RSTART - 1) }
    done = done linked(text, target, anchor, picture)
  }
  return done rest
}
function linked(text, target, anchor, picture) {
  if (target ~ /^[a-z]+:/) return text "(" target (anchor == "" ? "" : "#" anchor) ")"
  target = target == "" ? FILENAME : normal(folder target)
  if (target in page) return text "(@ref " label(target, anchor) ")"
  if ((target "/README.md") in page) return text "(@ref " label(target "/README.md", "") ")"
  if (target ~ /^include\/gptq\/((checkpoint|cuda)\/)?[^\/]+\.(hpp|cuh)$/) {
    sub(/^include\//, "", target)
    return text "(@ref " target ")"
  }
  if (system("test -f '" target "'") != 0) {  # a folder
    sub(/^\[/, "", text)
    sub(/\]$/, "", text)
    return text
  }
  print target >> copies
  return text "(files/" target (picture || target ~ /\.(png|svg)$/ ? "" : ".txt") ")"
}
# A line of a chart: nodes with arrows, perhaps labelled, between them.
function edge(line, from, to, text) {
  if (!match(line, /--/)) return "  " node(line)
  from = substr(line, 1, RSTART - 1)
  to = substr(line, RSTART)
  text = ""
  if (match(to, /^-->\|[^|]*\|/)) text = substr(to, 5, RLENGTH - 5)
  else if (match(to, /^-->/)) ;
  else if (match(to, /^-- .* -->/)) text = substr(to, 4, RLENGTH - 7)
  to = substr(to, RSTART + RLENGTH)
  gsub(/"/, "", text)
  gsub(/<br>/, "\\n", text)
  return node(from) node(to) "  " name(from) " -> " name(to) (text == "" ? "" : " [label=\"" text "\"]")
}
function name(text) { gsub(/ /, "", text); sub(/\[.*/, "", text); return text }
function node(text) {
  if (!match(text, /\[".*"\]/)) return ""
  text = "  " name(text) " [label=" substr(text, RSTART + 1, RLENGTH - 2) "]\n"
  gsub(/<br>/, "\\n", text)
  gsub(/&lt;/, "<", text)
  gsub(/&gt;/, ">", text)
  return text
}
