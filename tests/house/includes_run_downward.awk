# awk -f includes_run_downward.awk levels.txt <header>...   with headers named as they are included, less "gptq/".
# Fails, naming header and line, where one includes upward, stands on no level, or is in a circle with others of its
# room; and for a word of levels.txt that is no header and no room.

# ---- the table -------------------------------------------------------------------------------------------
FNR == NR {
  sub(/#.*/, "")
  for (i = 1; i <= NF; ++i) {
    if ($i in level) complain(FILENAME ":" FNR, $i " has a level already")
    level[$i] = NR
  }
  next
}

# ---- the headers -----------------------------------------------------------------------------------------
FNR == 1 {
  headers[++count] = FILENAME
  mine = word_for(FILENAME)
  if (mine == "") complain(FILENAME, "has no level: give it, or its folder, a place in tests/house/levels.txt")
  used[mine] = 1
}
/^ *# *include <gptq\// {
  included = $0
  sub(/^[^<]*<gptq\//, "", included)
  sub(/>.*/, "", included)
  if (mine == "") next
  other = word_for(included)
  if (other == "") complain(FILENAME ":" FNR, "includes " included ", which has no level in tests/house/levels.txt")
  else if (other == mine && mine ~ /\/$/) below[FILENAME] = below[FILENAME] " " included
  else if (level[other] >= level[mine])
    complain(FILENAME ":" FNR, "includes " included ", which stands " \
      (level[other] > level[mine] ? "above" : "beside") " it in tests/house/levels.txt")
}

END {
  for (word in level)
    if (!(word in used)) complain("levels.txt", "no header is, or is in, " word)
  # Of a room, take away what includes nothing of what is left: a circle stays.
  do {
    taken = 0
    for (i = 1; i <= count; ++i) {
      if (headers[i] in gone) continue
      free = 1
      n = split(below[headers[i]], list, " ")
      for (j = 1; j <= n; ++j) free = free && list[j] in gone
      if (free) { gone[headers[i]] = 1; taken = 1 }
    }
  } while (taken)
  for (i = 1; i <= count; ++i)
    if (!(headers[i] in gone)) complain(headers[i], "includes itself by way of others of its room:" below[headers[i]])
  if (count == 0) complain("include/gptq", "no headers")
  if (failures == 0) print count " headers on " length_of(level) " levels"
  exit failures > 0
}

# The header's own word in the table, or its room's, or "".
function word_for(header) {
  if (header in level) return header
  while (header ~ /\//) {
    sub(/[^\/]*\/?$/, "", header)
    if (header in level) return header
    sub(/\/$/, "", header)
  }
  return ""
}

function length_of(table, key, n, seen) {
  for (key in table)
    if (!(table[key] in seen)) { seen[table[key]] = 1; ++n }
  return n
}

function complain(at, what) {
  print at ": " what
  ++failures
}
