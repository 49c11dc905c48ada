# awk -f html_links.awk <page.html>...   fails, naming the page, where one links to a file that is not there.
FNR == 1 { folder = FILENAME; sub(/[^\/]*$/, "", folder) }
{
  rest = $0
  while (match(rest, /(href|src)="[^"]*"/)) {
    target = substr(rest, RSTART, RLENGTH)
    rest = substr(rest, RSTART + RLENGTH)
    sub(/^[a-z]+="/, "", target)
    sub(/[#"?].*/, "", target)
    if (target == "" || target ~ /^[a-z]+:/ || target in seen) continue
    seen[target] = 1
    ++links
    if ((getline line < (folder target)) < 0) {
      print FILENAME ": links to " target ", which is not there"
      ++failures
    }
    close(folder target)
  }
}
END {
  print links + 0 " different links"
  exit links == 0 || failures > 0
}
