# Doxygen's filter for headers: the head of a header, up to #pragma once, becomes the file's page, and what is indented by
# three spaces in it a block of code.
BEGIN { head = 1; print "/// @file" }
head && /^\/\// {
  sub(/^\/\//, "")
  if ($0 ~ /^   [^ ]/ || (code && $0 ~ /^    /)) {
    if (!code) print "/// @code{.cpp}"
    code = 1
    print "///" substr($0, 4)
    next
  }
  end_code()
  if (FNR == 1) print "/// @brief" $0 "\n///"
  else { gsub(/</, "\\<"); gsub(/#/, "\\#"); print "///" $0 }
  next
}
head { end_code(); head = 0 }
{ print }

function end_code() {
  if (code) print "/// @endcode"
  code = 0
}
