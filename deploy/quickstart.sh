#!/usr/bin/env bash
# From a fresh Debian 12 to an answer: installs, builds, gets a model, runs a cluster on this machine, asks it a question.
#
#   deploy/quickstart.sh [--workers N] [--question TEXT] [--keep]
#   deploy/quickstart.sh --stop
#
#   --workers N        worker processes, which is the number of pipeline stages (default 2)
#   --question TEXT    what to ask
#   --keep             leave the cluster up, and print how to talk to it
#   --stop             stop what --keep left up
#
# Everything stays in build/ and in the cache folder ($MILLRACE_CACHE, default ~/.cache/millrace). Run it again: only what
# changed is done again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
root=$(dirname "$here")
bin=$root/build/bin
runs=$(cache_dir)/run

workers=2 keep=0 stop=0
question="What is gravity?"
while [ $# -gt 0 ]; do
  case "$1" in
    --workers) [ $# -ge 2 ] || usage_error "--workers needs a number"; workers=$2; shift 2 ;;
    --question) [ $# -ge 2 ] || usage_error "--question needs a text"; question=$2; shift 2 ;;
    --keep) keep=1; shift ;;
    --stop) stop=1; shift ;;
    -h|--help) print_header_comment; exit 0 ;;
    *) usage_error "unknown argument '$1'" ;;
  esac
done
[[ $workers =~ ^[1-9][0-9]?$ ]] || usage_error "--workers: a number from 1 to 99 is needed, got '$workers'"

# The launcher of a run, if it is still the process that its file names.
launcher_of() {
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q 'mpirun\.sh' && printf '%s' "$pid"
}
# stop_run FOLDER: ends the cluster that runs there and removes the folder.
stop_run() {
  local pid
  if pid=$(launcher_of "$1"); then
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 400); do
      launcher_of "$1" >/dev/null || break
      sleep 0.1
    done
  fi
  rm -rf "$1"
}
if [ "$stop" = 1 ]; then
  found=0
  for folder in "$runs"/*/; do
    [ -e "$folder/pid" ] || continue
    if pid=$(launcher_of "${folder%/}"); then found=$((found + 1)); say "  stopping the cluster of process $pid"; fi
    stop_run "${folder%/}"
  done
  say "  $found stopped"
  exit 0
fi

STEP_TOTAL=$((8 - keep))
say "Millrace quickstart: a cluster of 1 coordinator and $workers workers on this machine"

begin_step "Packages"
"$here/install_packages.sh"
end_step

begin_step "Build, Release, in build/"
# An existing folder keeps its options: the tests share it, and neither makes the other compile again.
[ -e "$root/build/build.ninja" ] ||
  configure_build "$root/build" -DCMAKE_BUILD_TYPE=Release -DMILLRACE_TESTS=OFF
NINJA_STATUS='      [%f/%t, %es] ' cmake --build "$root/build" --parallel "$(build_jobs)" \
  --target bin/millrace bin/millrace-coordinator bin/millrace-worker bin/millrace-mpi >&2
end_step

begin_step "Model: SmolLM2-135M-Instruct"
model=$("$here/get_model.sh")
end_step

begin_step "Start 1 coordinator and $workers workers"
mkdir -p "$runs"
run=$(mktemp -d "$runs/XXXXXX")
chmod 700 "$run"
answering=
finish() {
  trap - EXIT INT TERM
  [ -z "$answering" ] || kill "$answering" 2>/dev/null || true
  stop_run "$run"
}
trap finish EXIT
trap 'say ""; say "  interrupted: stopping the cluster"; finish; exit 130' INT
trap 'finish; exit 143' TERM
setsid "$here/mpirun.sh" -np $((workers + 1)) -- --model "$model" --listen 127.0.0.1:0 --cluster-listen 127.0.0.1:0 \
  --status-file "$run/status.json" --join-secret-file-out "$run/join-secret" >"$run/log" 2>&1 &
launcher=$!
printf '%s\n' "$launcher" >"$run/pid"
fail_start() {
  say "      the last lines of the cluster's log:"
  tail -n 20 "$run/log" >&2
  die "$1"
}
for ((tick = 0; ; tick++)); do
  [ -s "$run/status.json" ] && break
  kill -0 "$launcher" 2>/dev/null || fail_start "the cluster ended before it listened"
  [ "$tick" -lt 600 ] || fail_start "the coordinator does not listen after 60 s"
  sleep 0.1
done
field() { sed -n "s/.*\"$1\"[[:space:]]*:[[:space:]]*\"\([^\"]*\)\".*/\1/p" "$run/status.json"; }
server=$(field listen)
[ -n "$server" ] || fail_start "the status file names no address"
sed -n 's/^+ /      /p' "$run/log" >&2
end_step "the coordinator listens on $server"

begin_step "Wait until it serves"
"$bin/millrace" status --server "$server" --wait 120 >"$run/status.txt" 2>&1 || {
  cat "$run/status.txt" >&2
  fail_start "the cluster does not serve"
}
end_step

begin_step "Ask: $question"
printf '\n' >&2
python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
report=("$python" "$here/quickstart_report.py")
# In the background, so that Ctrl-C is handled at once.
("$bin/millrace" chat --server "$server" --json --max-tokens 100 --temperature 0 "$question" </dev/null |
  "${report[@]}" stream "$run/finished.json") &
answering=$!
wait "$answering" || fail_start "the question was not answered"
answering=
end_step

begin_step "What it took"
"$bin/millrace" status --server "$server" --json | "${report[@]}" table "$run/finished.json"

if [ "$keep" = 1 ]; then
  trap - EXIT INT TERM
  cat <<TXT

The cluster stays up.
  talk to it            $bin/millrace chat --server $server "Why is the sky blue?"
  complete a text       $bin/millrace generate --server $server --max-tokens 40 "Once upon a time"
  look at it            $bin/millrace status --server $server
  replace a lost worker $bin/millrace-worker --coordinator $(field cluster_listen) --join-secret-file $run/join-secret
  read its log          less $run/log
  stop it               $0 --stop
TXT
  exit 0
fi

begin_step "Stop"
stop_run "$run"
trap - EXIT INT TERM
end_step
say ""
say "Done in $(minutes "$SECONDS"). Keep the cluster up next time with: $0 --keep"
