# Sourced by the scripts of deploy/ and tests/: how they report where they are. Everything goes to stderr, so that a script's
# answer (a path, a token stream) stays alone on stdout.

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }
usage_error() { printf '%s: error: %s (see %s --help)\n' "${0##*/}" "$*" "$0" >&2; exit 2; }

# Prints the comment block that opens the calling script, as its help.
print_header_comment() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

STEP_NUMBER=0
STEP_TOTAL=0
STEP_BEGAN=$SECONDS

# begin_step "what it does": numbered when STEP_TOTAL is set; end_step prints how long it took.
begin_step() {
  STEP_NUMBER=$((STEP_NUMBER + 1))
  STEP_BEGAN=$SECONDS
  if [ "$STEP_TOTAL" -gt 0 ]; then
    printf '\n[%d/%d] %s  (%s after the start)\n' "$STEP_NUMBER" "$STEP_TOTAL" "$1" "$(minutes "$SECONDS")" >&2
  else
    printf '\n[%d] %s  (%s after the start)\n' "$STEP_NUMBER" "$1" "$(minutes "$SECONDS")" >&2
  fi
}
end_step() { printf '      done in %s%s\n' "$(minutes $((SECONDS - STEP_BEGAN)))" "${1:+: $1}" >&2; }
minutes() {
  if [ "$1" -ge 60 ]; then printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); else printf '%d s' "$1"; fi
}

# The folder for what is downloaded or installed for this user; outside every checkout.
cache_dir() { printf '%s' "${MILLRACE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/millrace}"; }

# Prints a Python 3 interpreter that runs. Debian's own comes first, so that a version manager
# in front of it on PATH (pyenv, conda) cannot change what the scripts use.
find_python() {
  local candidate
  for candidate in /usr/bin/python3 python3; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
      printf '%s' "$candidate"
      return 0
    fi
  done
  return 1
}

# Compiler processes at a time: one per core, and at most one per 1.5 GiB of memory.
build_jobs() {
  local cores memory_kib by_memory
  cores=$(nproc)
  memory_kib=$(sed -n 's/^MemAvailable:[[:space:]]*\([0-9]*\).*/\1/p' /proc/meminfo)
  by_memory=$((memory_kib / 1572864))
  [ "$by_memory" -ge 1 ] || by_memory=1
  if [ "$cores" -lt "$by_memory" ]; then printf '%d' "$cores"; else printf '%d' "$by_memory"; fi
}

# configure_build FOLDER OPTION...: cmake, with ccache in front of the compiler where it is installed. Cheap when done before.
configure_build() {
  local folder=$1 launcher=()
  shift
  if command -v ccache >/dev/null 2>&1; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  cmake -S "$(dirname "${BASH_SOURCE[0]}")/.." -B "$folder" -G Ninja --log-level=WARNING "${launcher[@]}" "$@" >&2
}
