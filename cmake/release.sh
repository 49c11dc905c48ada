#!/usr/bin/env bash
# cmake/release.sh <version> <folder>   makes the files of a release: the installed package and the single header, and
# notes.md from CHANGELOG.md. Fails unless include/gptq/version.hpp and CHANGELOG.md have this version.
set -euo pipefail
version=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

number() { sed -n "s/^#define GPTQ_VERSION_$1 //p" include/gptq/version.hpp; }
header=$(number MAJOR).$(number MINOR).$(number PATCH)
[[ $header == "$version" ]] || { echo "include/gptq/version.hpp says $header, not $version" >&2; exit 1; }
awk -v version="$version" '/^## / { on = $2 == version } on && !/^## /' CHANGELOG.md >"$folder/notes.md"
grep -q '[^[:space:]]' "$folder/notes.md" || { echo "CHANGELOG.md has nothing on $version" >&2; exit 1; }

awk -v version="$version" -v include=include -f cmake/amalgamate.awk >"$folder/gptq_kernels.hpp"
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
cmake -S . -B "$package/build" -DGPTQ_COMPONENTS="gptq;checkpoint" -DGPTQ_BUILD_TESTS=OFF -DGPTQ_BUILD_BENCHMARKS=OFF \
  -DGPTQ_BUILD_EXAMPLES=OFF >/dev/null
cmake --install "$package/build" --prefix "$package/gptq-$version" >/dev/null
cp LICENSE CHANGELOG.md "$package/gptq-$version"
tar -C "$package" -czf "$folder/gptq-$version.tar.gz" "gptq-$version"
ls -l "$folder"
