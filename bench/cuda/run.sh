#!/usr/bin/env bash
# Measures the CUDA backend on this machine's GPU: each kernel beside what the device does in the same run, and tokens/s of a
# worker that serves a model.
#
#   bench/cuda/run.sh [--device N] [--model FILE] [--json FILE] [--no-model] [--smoke]
#
#   --device    as CUDA counts; default 0
#   --model     a GGUF file instead of SmolLM2-135M
#   --no-model  kernels only
#   --smoke     everything once, briefly, without figures; where there is no GPU, on the stand-in (docs/CUDA.md)
#
# The table goes to stdout: first the goals, then every kernel with its GB/s and TFLOP/s and its share of what the same run's copies and
# register-only products reach, and of the datasheet. Goals are goals: a missed one is no error; exit 1: a program failed. Leave the
# GPU alone meanwhile: a few minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$root/deploy/common.sh"

case "${1:-}" in -h|--help) print_header_comment; exit 0 ;; esac
python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
if [ -z "${MILLRACE_BIN:-}" ]; then
  build=$root/build targets=(millrace-coordinator millrace-worker millrace-cli load_generator)
  [ -e "$build/CMakeCache.txt" ] || configure_build "$build" -DCMAKE_BUILD_TYPE=Release
  for target in cuda_bench millrace_cuda cuda_bench_on_cpu millrace_cuda_library_on_cpu; do
    if cmake --build "$build" --target help | grep -q "\b$target\b"; then targets+=("$target"); fi
  done
  say "building the programs (minutes, the first time)"
  cmake --build "$build" --parallel "$(build_jobs)" --target "${targets[@]}" >&2
fi
exec "$python" -B "$here/cuda.py" "$@"
