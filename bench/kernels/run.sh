#!/usr/bin/env bash
# Measures every op of the CPU backend on one thread, beside what the machine can do in the same run.
#
#   bench/kernels/run.sh [--quick] [--json FILE] [--isa avx2] [--activations f32] [--rounds 5]
#
#   --quick         one brief round with weights that caches may hold: shows that it works; its figures mean little
#   --isa           avx512vnni, avx512, avx2 or portable instead of the best that this machine has
#   --activations   f32: the exact path
#
# The tables go to stdout: first the targets, then every op with its GB/s and GOP/s, medians over the rounds. A missed target is no
# error; exit 1: the program failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$root/deploy/common.sh"

case "${1:-}" in -h|--help) print_header_comment; exit 0 ;; esac
. "$root/bench/benchlib/build.sh"
build_bench
python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
exec "$python" -B "$here/kernels.py" "$@"
