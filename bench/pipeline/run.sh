#!/usr/bin/env bash
# Measures how full the pipeline is kept: idle shares, throughput and latency of two stages beside one, links, scheduling.
#
#   bench/pipeline/run.sh [--quick] [--json FILE] [--only P1,P3] [--svg FILE] [--model M.gguf] [--large]
#
#   --quick    every row, but briefly (minutes): shows that it works; its figures mean little
#   --only     some of the rows; "timeline" is the picture
#   --svg      where the picture of the stages in time goes (build/pipeline.svg)
#   --large    also the steady rows on a random model of 1.1 B parameters, which is made once (a minute, 1.2 GB in
#              $MILLRACE_CACHE)
#
# The table goes to stdout: measured | target | reference | verdict, and what else the machine did meanwhile. A missed
# target is no error; exit 1: a program failed before anything could be measured.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$root/deploy/common.sh"

args=() large=
while [ $# -gt 0 ]; do
  case $1 in
    -h|--help) print_header_comment; exit 0 ;;
    --large) large=yes ;;
    *) args+=("$1") ;;
  esac
  shift
done
. "$root/bench/benchlib/build.sh"
build_bench
python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
if [ -n "$large" ]; then args+=(--large "$("$root/bench/benchlib/large_model.sh")"); fi
exec "$python" -B "$here/pipeline.py" "${args[@]}"
