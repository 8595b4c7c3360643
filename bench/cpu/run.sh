#!/usr/bin/env bash
# Measures whole clusters on CPUs beside llama.cpp, on the same file with the same number of threads.
#
#   bench/cpu/run.sh [--quick] [--large] [--json FILE] [ROW...]
#
#   ROW        only these: G1 G3 G5 G6 P5 C6 L1 R1 sweep. Without any: those that have a target for the model, and R1 and
#              the sweep for the small model
#   --large    also random models of 1.1 B parameters, Q8_0 and Q4_0, which are made once (a few minutes, 1.7 GB in
#              $MILLRACE_CACHE)
#   --models   which of smollm2, q8_0 and q4_0, as a list with commas, instead
#   --quick    every row, but briefly: shows that it works; its figures mean little
#   --no-peer  without llama.cpp: what we do, but no quotients
#
# The first run builds llama.cpp (bench/peers/get_llama_cpp.sh; about 20 minutes). The table goes to stdout: measured | target
# | reference | verdict, and what else the machine did meanwhile. Ours and theirs run in turn; leave the machine alone
# meanwhile: about 6 minutes for SmolLM2, and 12 more for the large models. A missed target is no error; exit 1: a
# program failed before anything could be measured.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$root/deploy/common.sh"

args=() models=smollm2 peer=yes
while [ $# -gt 0 ]; do
  case $1 in
    -h|--help) print_header_comment; exit 0 ;;
    --large) models=smollm2,q8_0,q4_0 ;;
    --models) [ $# -ge 2 ] || usage_error "--models needs a list"; models=$2; shift ;;
    --no-peer) peer= ;;
    *) args+=("$1") ;;
  esac
  shift
done
. "$root/bench/benchlib/build.sh"
build_bench
python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
for model in ${models//,/ }; do
  case $model in
    smollm2) file=$("$root/deploy/get_model.sh") ;;
    q8_0|q4_0) file=$("$root/bench/benchlib/large_model.sh" "$model") ;;
    *) usage_error "--models: '$model' is none of smollm2, q8_0, q4_0" ;;
  esac
  args+=(--model "$model=$file")
done
if [ -n "$peer" ]; then args+=(--peer "$("$root/bench/peers/get_llama_cpp.sh")"); fi
exec "$python" -B "$here/cpu.py" "${args[@]}"
