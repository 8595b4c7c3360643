#!/usr/bin/env bash
# From nothing to tested: installs packages, builds everything in build/, gets the model, runs all tests.
#
#   tests/run.sh [--fast | --full]
#
#   --fast   leave out installing and the tests that need the real model or more than one process
#   --full   more than any change must pass, an hour or two: every golden prompt on CUDA devices as they run on the CPU,
#            and the C++ tests that are slow with sanitizers, with them
#
# The last line is "N passed, N failed". Exit 0 only if something ran and nothing failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
. "$root/deploy/common.sh"

fast=0 full=0
for arg in "$@"; do
  case "$arg" in
    --fast) fast=1 ;;
    --full) full=1 ;;
    -h|--help) print_header_comment; exit 0 ;;
    *) usage_error "unknown argument '$arg'" ;;
  esac
done

build=$root/build
results=$build/results
# Whatever happens, the last line is the count.
summary='0 passed, 0 failed'
conclude() {
  local code=$?
  printf '%s\n' "$summary"
  exit "$code"
}
trap conclude EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ $((fast + full)) -lt 2 ] || usage_error "--fast or --full, not both"

STEP_TOTAL=$((6 - 2 * fast + 2 * full))
if [ "$fast" = 0 ]; then
  begin_step "Packages"
  "$root/deploy/install_packages.sh" --tests
  end_step
fi

begin_step "Build everything, Release, warnings are errors, in build/"
configure_build "$build" -DCMAKE_BUILD_TYPE=Release -DMILLRACE_TESTS=ON
NINJA_STATUS='      [%f/%t, %es] ' cmake --build "$build" --parallel "$(build_jobs)" >&2
end_step

if [ "$fast" = 0 ]; then
  begin_step "Model"
  MILLRACE_TEST_MODEL=$("$root/deploy/get_model.sh")
  export MILLRACE_TEST_MODEL
  end_step
fi

begin_step "Python environment, helm and promtool"
python_env=$("$here/python_env.sh")
# Where they cannot be had, the tests of the chart say so.
[ "$fast" = 1 ] || "$here/k8s/get_tools.sh" >/dev/null || say "  not got"
end_step

rm -rf "$results"
mkdir -p "$results"
failures=0

begin_step "C++ tests"
only=()
[ "$fast" = 0 ] || only=(-LE model)
ctest --test-dir "$build" --parallel "$(nproc)" --output-on-failure --progress --no-tests=error \
  --output-junit "$results/ctest.xml" "${only[@]}" >"$results/ctest.log" 2>&1 || failures=1
tail -n 4 "$results/ctest.log" >&2
end_step

begin_step "Python tests: rules, and real processes as clients see them"
paths=("$here/rules")
[ "$fast" = 1 ] || paths+=("$here/e2e" "$here/k8s")
export MILLRACE_BIN=$build/bin
(cd "$root" && PYTHONDONTWRITEBYTECODE=1 "$python_env/bin/python" -m pytest -c "$here/pytest.ini" --rootdir "$root" -p no:cacheprovider \
  --junit-xml "$results/pytest.xml" "${paths[@]}" >&2) || failures=1
end_step

if [ "$full" = 1 ]; then
  begin_step "Every golden prompt on CUDA devices as they run on the CPU"
  MILLRACE_FULL=1 "$build/tests/cuda_accuracy_test" --gtest_output="xml:$results/cuda_accuracy.xml" >&2 || failures=1
  end_step
  begin_step "Slow C++ tests with sanitizers"
  "$here/checks.sh" slow || failures=1
  end_step
fi

# Prints each failure and, last, the count; a skipped test is one that failed to run.
if ! counted=$("$python_env/bin/python" "$here/count_results.py" "$results/ctest.xml" "$results/pytest.xml"); then failures=1; fi
summary=$(tail -n 1 <<<"$counted")
head -n -1 <<<"$counted"
if [ ! -e "$build/cuda_on_cpu/libmillrace_cuda.so" ]; then
  say "CUDA tests skipped: there are no CUDA headers (deploy/get_cuda.sh --headers gets them)"
elif [ ! -e "$build/bin/libmillrace_cuda.so" ]; then
  say "device code not compiled: there is no nvcc (deploy/get_cuda.sh gets it)"
fi
say ""
say "took $(minutes "$SECONDS")"
exit "$failures"
