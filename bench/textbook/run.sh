#!/usr/bin/env bash
# Tries the textbook's claims about serving on the real model: one row and one picture each.
#
#   bench/textbook/run.sh [--quick] [--json FILE] [--only T1,T2] [--model M.gguf] [--out FOLDER]
#
#   --quick    every claim, but briefly: shows that it works; its figures mean little
#   --only     some of the claims
#   --out      for the pictures
#
# A full run writes docs/textbook/*.svg and the figures of docs/TEXTBOOK.md; any other one writes pictures to build/textbook.
# The table goes to stdout.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$root/deploy/common.sh"

case "${1:-}" in -h|--help) print_header_comment; exit 0 ;; esac
. "$root/bench/benchlib/build.sh"
build_bench
python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
exec "$python" -B "$here/textbook.py" "$@"
