# Sourced by bench/*/run.sh after deploy/common.sh: builds what the benchmarks run, unless $MILLRACE_BIN names programs.

build_bench() {
  [ -z "${MILLRACE_BIN:-}" ] || return 0
  local build=$root/build
  [ -e "$build/CMakeCache.txt" ] || configure_build "$build" -DCMAKE_BUILD_TYPE=Release
  say "building the programs (minutes, the first time)"
  cmake --build "$build" --parallel "$(build_jobs)" --target millrace-coordinator millrace-worker millrace-cli load_generator \
    delay_relay timed_worker transport_bench scheduler_bench kernels_bench stage_bench >&2
}
