#!/usr/bin/env bash
# shared_symbols.sh <nm> <object file>...
# Of a function or variable that several object files define, the linker keeps one copy. Fails with a list of those
# that object files for different architectures have in common. (gptq_dispatch() puts the architecture in the path.)
set -euo pipefail
shopt -s inherit_errexit
nm=$1
shift
# What compilers add, for exceptions: a pointer of g++'s, and clang's two calls that end the program.
compilers_own='^(DW\.ref\.|__clang_call_terminate )'
symbols=$(for object in "$@"; do
  isa=none
  [[ ! $object =~ \.dispatch/([^/]*)/ ]] || isa=${BASH_REMATCH[1]}
  "$nm" --defined-only "$object" | awk -v isa="$isa" '$2 ~ /^[WwVu]$/ { print $3, isa }'
done | { grep -vE "$compilers_own" || true; } | sort -u)

isas=$(cut -d' ' -f2 <<<"$symbols" | sort -u | wc -l)
if ((isas < 3)); then
  echo "Nothing to compare: ${isas} kinds of object files among $*"
  exit 1
fi
shared=$(awk '{ of[$1] = of[$1] " " $2; ++count[$1] } END { for (s in of) if (count[s] > 1) print s of[s] }' <<<"$symbols")
if [[ -n $shared ]]; then
  echo "Shared by object files for different architectures:"
  c++filt <<<"$shared"
  exit 1
fi
echo "None of $(wc -l <<<"$symbols") weak symbols is shared."
