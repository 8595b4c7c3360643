#!/usr/bin/env bash
# Runs nvcc with -Xptxas=-v: what ptxas says goes to a file; it is shown, too, when the compilation fails.
#
#   cmake/nvcc.sh REPORT COMMAND...
set -uo pipefail
report=$1
shift
"$@" >"$report" 2>&1
code=$?
[ "$code" = 0 ] || cat "$report" >&2
exit "$code"
