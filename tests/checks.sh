#!/usr/bin/env bash
# The checks of DEVELOPERS.md that are not tests.
#
#   tests/checks.sh [NAME...]      all of them without a name
#
#   format   clang-format 14 on every source; shell scripts parse
#   rules    include rules, sizes, protos, stray text (tests/rules)
#   cuda     no CUDA kernel spills registers (after a build with nvcc)
#   asan     the C++ tests but slow ones, built by clang with AddressSanitizer, UndefinedBehaviorSanitizer and -Wthread-safety
#   fuzz     every libFuzzer target for FUZZ_SECONDS (default 20) from its corpus, in the same build
#   slow     what asan leaves out, in the same build; only when named
#   tsan     the tests of everything but RPC under ThreadSanitizer
#
# Exit 0 if all that were asked for pass; each failure is named at the end.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
. "$root/deploy/common.sh"
cd "$root" || exit 1

ALL=(format rules cuda asan fuzz tsan)
names=("$@")
case "${1:-}" in -h|--help) print_header_comment; exit 0 ;; esac
[ ${#names[@]} -gt 0 ] || names=("${ALL[@]}")

sources() { git ls-files -z --cached --others --exclude-standard -- "$@"; }

check_format() {
  local code=0 script
  sources '*.cc' '*.h' '*.cu' '*.cuh' | xargs -0 -r clang-format-14 --dry-run -Werror >"$root/build/format.log" 2>&1 || code=1
  if [ "$code" != 0 ]; then
    grep -oE '^[^: ]+\.(cc|cuh?|h):[0-9]+' "$root/build/format.log" | cut -d: -f1 | sort | uniq -c | sort -rn >&2
    say "  to mend: git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs clang-format-14 -i"
  fi
  while IFS= read -r -d '' script; do
    bash -n "$script" || code=1
  done < <(sources '*.sh' .ci/run)
  return "$code"
}

check_rules() {
  local rule code=0
  for rule in layering size_bars proto_rules forbidden_text; do
    python3 -B "tests/rules/$rule.py" >&2 || code=1
  done
  return "$code"
}

check_cuda() {
  mkdir -p "$root/build/results"
  python3 -B tests/rules/kernel_report.py "$root/build/cuda" >"$root/build/results/cuda_kernels.txt"
  local code=$?
  cat "$root/build/results/cuda_kernels.txt" >&2
  return "$code"
}

# build_and_test FOLDER "CTEST-OPTION..." CMAKE-OPTION...
build_and_test() {
  local folder=$root/$1 which
  read -r -a which <<<"$2"
  shift 2
  configure_build "$folder" "$@" && NINJA_STATUS='      [%f/%t, %es] ' cmake --build "$folder" --parallel "$(build_jobs)" >&2 || return 1
  ctest --test-dir "$folder" --parallel "$(nproc)" --output-on-failure --no-tests=error "${which[@]}" \
    >"$folder/ctest.log" 2>&1
  local code=$?
  if [ "$code" != 0 ]; then grep -vE '^ *[0-9]+/[0-9]+ Test .* Passed|^ *Start ' "$folder/ctest.log" | tail -n 120 >&2; fi
  grep -E 'tests passed|tests failed' "$folder/ctest.log" >&2
  return "$code"
}

SANITIZED=(-DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=clang++-14 -DMILLRACE_PCH=ON)
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export LSAN_OPTIONS=suppressions=$here/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=second_deadlock_stack=1

# Tests labelled `model` or `slow` repeat with much work what others have done with little; too slow with a sanitizer.
check_asan() { build_and_test build-asan '-LE model|slow' "${SANITIZED[@]}" -DMILLRACE_SANITIZE=address,undefined -DMILLRACE_FUZZ=ON; }
check_slow() { build_and_test build-asan '-L slow' "${SANITIZED[@]}" -DMILLRACE_SANITIZE=address,undefined -DMILLRACE_FUZZ=ON; }
# Those labelled `one_thread` have nothing to show the thread sanitizer and take minutes under it.
check_tsan() { build_and_test build-tsan '-LE model|slow|one_thread' "${SANITIZED[@]}" -DMILLRACE_SANITIZE=thread -DMILLRACE_RPC=OFF; }

check_fuzz() {
  local target name work code=0 count=0
  configure_build "$root/build-asan" "${SANITIZED[@]}" -DMILLRACE_SANITIZE=address,undefined -DMILLRACE_FUZZ=ON &&
    cmake --build "$root/build-asan" --parallel "$(build_jobs)" >&2 || return 1
  for target in "$root"/build-asan/bin/*_fuzz; do
    [ -x "$target" ] || continue
    count=$((count + 1))
    name=$(basename "$target" _fuzz)
    work=$(mktemp -d)
    # New inputs go to the first folder; the corpus in the tree is only read.
    if "$target" -max_total_time="${FUZZ_SECONDS:-20}" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$work/" "$work" "$root/tests/fuzz/corpus/$name" >"$work.log" 2>&1; then
      say "  $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work.log") runs"
      rm -rf "$work" "$work.log"
    else
      code=1
      tail -n 60 "$work.log" >&2
      say "  $name: failed; its input is in $work"
    fi
  done
  [ "$count" -gt 0 ] || { say "  no fuzz target was built"; return 1; }
  return "$code"
}

mkdir -p "$root/build"
STEP_TOTAL=${#names[@]}
failed=()
for name in "${names[@]}"; do
  declare -F "check_$name" >/dev/null || usage_error "no check is called '$name'"
  begin_step "Check: $name"
  if "check_$name"; then end_step; else failed+=("$name"); end_step "FAILED"; fi
done
if [ ${#failed[@]} -gt 0 ]; then
  say ""
  say "checks that failed: ${failed[*]}"
  exit 1
fi
say ""
say "all ${#names[@]} checks passed, in $(minutes "$SECONDS")"
