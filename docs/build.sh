#!/usr/bin/env bash
# docs/build.sh   makes the site in build/site/html: the documents and the reference of the public headers, by Doxygen.
# Fails where Doxygen finds something wrong, where a public name at namespace scope is not documented, or where a page links to
# something that is not there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
.ci/install doxygen graphviz
site=build/site
rm -rf $site
mkdir -p $site/pages $site/html

# In the order of the menu.
pages="README.md docs/first-layer.md docs/from-hugging-face.md docs/port-your-engine.md docs/which-scheme.md docs/zero-point.md
  docs/kernels.md docs/numerics.md docs/file-formats.md docs/faq.md docs/glossary.md docs/architecture.md
  $(cd docs && ls recipes/*.md | sed 's|^|docs/|') examples/models/README.md python/README.md bench/README.md tests/README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md"
inputs=""
for page in $pages; do
  flat=$site/pages/${page//\//_}
  awk -v pages="$(echo $pages)" -v copies=$site/copies -f docs/page.awk "$page" >"$flat"
  inputs+=" $flat"
done
sort -u $site/copies | while read -r file; do
  case $file in
    *.png | *.svg) to=$site/html/files/$file ;;
    *) to=$site/html/files/$file.txt ;;
  esac
  mkdir -p "$(dirname "$to")" && cp "$file" "$to"
done

{ cat docs/Doxyfile; echo "INPUT = $inputs include/gptq include/gptq/checkpoint include/gptq/cuda"; } |
  doxygen - 2>$site/warnings || true
# A member may be explained where its type is; a deduction guide needs no words.
if grep -Ev 'of (struct|class) .* is not documented|\) -> .* is not documented|^ ' $site/warnings; then exit 1; fi

awk -f docs/html_links.awk $site/html/*.html
