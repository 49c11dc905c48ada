#!/usr/bin/env bash
# Builds the packages and uses each as a stranger would (tests/consumer), with no network where the system allows it:
#   tests/packages.sh                        all of those below
#   tests/packages.sh debian                 debian/: dpkg-buildpackage, lintian, a program with what it contains
#   tests/packages.sh conan                  conanfile.py, in an environment of its own in build/packages
#   tests/packages.sh vcpkg                  ports/gptq; needs vcpkg at $VCPKG_ROOT, and is left out without
#   tests/packages.sh python                 python/: a wheel, its tests
# Installs what is missing with apt, and Python packages with pip into build/packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source=$PWD
work=$source/build/packages
mkdir -p "$work"

phase() { printf '\n==> %s\n' "$1"; }

offline=()
if unshare -rn true 2>/dev/null; then offline=(unshare -rn); fi

# What git has or would add, without what lies around.
copy_of_sources() {  # copy_of_sources <folder>
  rm -rf "$1" && mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null | tar -cf - -T - | tar -xf - -C "$1"
}

consume() {  # consume <folder for the build> <program> [<option of cmake>...]
  local build=$1 program=$2
  shift 2
  rm -rf "$build"
  "${offline[@]}" cmake --no-warn-unused-cli -G Ninja -S tests/consumer -B "$build" -D way=installed -D program="$program" "$@"
  "${offline[@]}" cmake --build "$build"
  "$build/stranger"
}

environment() {  # environment <name> <package of pip>...: made once
  if [[ ! -d $work/$1 ]]; then
    python3 -m venv "$work/$1"
    "$work/$1/bin/pip" install -q "${@:2}"
  fi
}

version=$(awk '/^#define GPTQ_VERSION_[A-Z]+ [0-9]/ { v = v s $3; s = "." } END { print v }' include/gptq/version.hpp)

debian() {
  phase "Debian: build"
  .ci/install dpkg-dev debhelper lintian cmake ninja-build g++ libeigen3-dev nlohmann-json3-dev
  local folder=$work/debian
  rm -rf "$folder"
  copy_of_sources "$folder/gptq-$version"
  tar -C "$folder" --exclude ./debian --exclude gptq-"$version"/debian -czf "$folder/gptq_$version.orig.tar.gz" "gptq-$version"
  (cd "$folder/gptq-$version" && "${offline[@]}" dpkg-buildpackage -us -uc) >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
  phase "Debian: lintian"
  # Not a part of Debian: no bug asks for it, and releases are made from this repository.
  (cd "$folder" && lintian --allow-root --info --display-info --fail-on error,warning,info --suppress-tags initial-upload-closes-no-bugs,debian-watch-file-is-missing gptq_*.changes)
  phase "Debian: a program with the package's contents"
  dpkg -x "$folder"/libgptq-dev_*_all.deb "$folder/root"
  consume "$folder/quantizer" quantizer -D CMAKE_PREFIX_PATH="$folder/root/usr"
  consume "$folder/engine" engine -D CMAKE_PREFIX_PATH="$folder/root/usr"
  ls -l "$folder"/*.deb
}

conan() {
  phase "Conan: build and use"
  .ci/install cmake ninja-build g++ libeigen3-dev nlohmann-json3-dev python3-venv
  environment conan conan
  export CONAN_HOME=$work/conan-home
  local conan=$work/conan/bin/conan
  "$conan" profile detect --force
  # What the system has in place of what Conan would fetch.
  local profile=$work/conan-profile
  sed 's/compiler.cppstd=.*/compiler.cppstd=20/' "$CONAN_HOME/profiles/default" >"$profile"
  printf '\n[platform_requires]\neigen/3.4.0\nnlohmann_json/3.11.3\n[conf]\ntools.cmake.cmaketoolchain:generator=Ninja\n' >>"$profile"
  for options in "" "-o &:quantizer=False -o &:checkpoint=False"; do
    "${offline[@]}" "$conan" create . --profile:all "$profile" $options
  done
  rm -rf test_package/build test_package/CMakeUserPresets.json
}

vcpkg() {
  phase "vcpkg: build and use"
  if [[ ! -e ${VCPKG_ROOT-}/vcpkg ]]; then
    echo "left out: there is no vcpkg at VCPKG_ROOT='${VCPKG_ROOT-}'"
    return
  fi
  .ci/install cmake ninja-build g++ libeigen3-dev nlohmann-json3-dev curl zip unzip tar pkg-config
  # What the system has in place of what vcpkg would fetch: ports that install nothing.
  local port system=$work/vcpkg-system
  for port in eigen3 nlohmann-json; do
    mkdir -p "$system/$port"
    printf '{ "name": "%s", "version": "0", "license": null }\n' $port >"$system/$port/vcpkg.json"
    echo 'set(VCPKG_POLICY_EMPTY_PACKAGE enabled)' >"$system/$port/portfile.cmake"
  done
  local features
  for features in "core" "core,quantizer,checkpoint"; do
    local installed=$work/vcpkg-$features program=engine
    [[ $features == core ]] || program=quantizer
    rm -rf "$installed"
    VCPKG_FORCE_SYSTEM_BINARIES=1 "${offline[@]}" "$VCPKG_ROOT/vcpkg" install "gptq[$features]" --classic --no-binarycaching \
      --disable-metrics --overlay-ports=ports --overlay-ports="$system" --x-install-root="$installed" \
      --x-buildtrees-root="$work/vcpkg-buildtrees" --x-packages-root="$work/vcpkg-packages"
    consume "$work/vcpkg-$program" "$program" -D CMAKE_TOOLCHAIN_FILE="$VCPKG_ROOT/scripts/buildsystems/vcpkg.cmake" \
      -D _VCPKG_INSTALLED_DIR="$installed" -D VCPKG_INSTALLED_DIR="$installed" -D VCPKG_MANIFEST_MODE=OFF
  done
  "$VCPKG_ROOT/vcpkg" format-manifest ports/gptq/vcpkg.json
  git diff --exit-code -- ports/gptq/vcpkg.json
}

python() {
  phase "Python: a wheel, its tests"
  .ci/install cmake ninja-build g++ libeigen3-dev nlohmann-json3-dev python3-venv python3-dev
  environment python build pytest numpy nanobind scikit-build-core mypy
  rm -rf "$work/wheel" "$work/wheel-build"
  "${offline[@]}" "$work/python/bin/pip" wheel -q --no-build-isolation --no-deps --no-index -w "$work/wheel" ./python \
    -C build-dir="$work/wheel-build" -C cmake.define.GPTQ_PYTHON_TESTS=ON
  "$work/python/bin/pip" install -q --force-reinstall --no-deps --no-index "$work"/wheel/*.whl
  "$work/python/bin/python" -m mypy --package gptq
  GPTQ_SAME_IN_CPP=$work/wheel-build/same_in_cpp "$work/python/bin/python" -m pytest -q python/tests
}

if (($# == 0)); then set -- debian conan vcpkg python; fi
for package in "$@"; do
  case "$package" in
    debian | conan | vcpkg | python) "$package" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' tests/packages.sh; exit 2 ;;
  esac
done
