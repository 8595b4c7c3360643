#!/usr/bin/env bash
# Starts a cluster with Open MPI's mpirun: rank 0 is the coordinator, the others are workers.
#
#   deploy/mpirun.sh [options] [-- [program] arguments]
#
#   -np N           processes, the coordinator included (default 3; with a hostfile or -H: as many as it has slots)
#   --hostfile F    hosts, as mpirun reads them: one per line, "name slots=N"; the first one runs the coordinator
#   -H A,B          hosts, on the command line
#   --mca NAME VALUE, -x NAME[=VALUE], --tag-output, --wdir D    handed to mpirun
#   --grace SECONDS how long a stop may take before the processes are killed (default 30)
#   --help
#
# After --: arguments of build/bin/millrace-mpi, or another program and its arguments.
#
#   deploy/mpirun.sh -np 3 -- --model "$(deploy/get_model.sh)" --listen 127.0.0.1:50051
#
# SIGTERM and Ctrl-C stop rank 0 first, which ends requests and workers within their own grace time. (mpirun itself
# would give all ranks one second.) A second Ctrl-C kills. The exit code is rank 0's when it leaves one in its status
# file, because mpirun --enable-recovery answers 0 whatever its ranks did.
set -uo pipefail
. "$(dirname "$0")/common.sh"
root=$(cd "$(dirname "$0")/.." && pwd)

np= grace=30 has_hosts=0
pass=()
need() { [ "$1" -ge "$2" ] || usage_error "$3 needs a value"; }
while [ $# -gt 0 ]; do
  case "$1" in
    -np|-n) need $# 2 "$1"; np=$2; shift 2 ;;
    --hostfile|--machinefile) need $# 2 "$1"
      [ -r "$2" ] || usage_error "cannot read the hostfile '$2'"
      pass+=(--hostfile "$2"); has_hosts=1; shift 2 ;;
    -H|--host) need $# 2 "$1"; pass+=(-H "$2"); has_hosts=1; shift 2 ;;
    -x|--wdir) need $# 2 "$1"; pass+=("$1" "$2"); shift 2 ;;
    --tag-output) pass+=("$1"); shift ;;
    --mca) need $# 3 "$1"; pass+=(--mca "$2" "$3"); shift 3 ;;
    --grace) need $# 2 "$1"; grace=$2; shift 2 ;;
    -h|--help) print_header_comment; exit 0 ;;
    --) shift; break ;;
    *) usage_error "unknown option '$1'" ;;
  esac
done
[ -n "$np" ] || [ "$has_hosts" = 1 ] || np=3
[[ -z $np || $np =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "-np: a number of processes is needed, got '$np'"
[[ $grace =~ ^[0-9]{1,5}$ ]] || usage_error "--grace: seconds are needed, got '$grace'"

program=$root/build/bin/millrace-mpi
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then program=$1; shift; fi
command -v mpirun >/dev/null 2>&1 || die "mpirun is not installed: run deploy/install_packages.sh"
# Checked here because mpirun --enable-recovery waits for ever for a program that cannot be started.
resolved=$(command -v -- "$program" 2>/dev/null) && [ -x "$resolved" ] ||
  die "cannot run '$program': build it first (deploy/quickstart.sh does), or name a program after --"

status= status_dir=
arguments=("$@")
for ((i = 0; i < ${#arguments[@]}; i++)); do
  case "${arguments[i]}" in
    --status-file=*) status=${arguments[i]#*=} ;;
    --status-file) status=${arguments[i + 1]:-} ;;
  esac
done
if [ -z "$status" ] && [ "$(basename "$program")" = millrace-mpi ]; then
  status_dir=$(mktemp -d)
  status=$status_dir/status.json
  arguments+=(--status-file "$status")
fi
# What an earlier run left must not be taken for this one's.
[ -z "$status" ] || rm -f "$status"

line=(mpirun)
[ "$(id -u)" = 0 ] && line+=(--allow-run-as-root)
line+=(--oversubscribe --bind-to none --enable-recovery)
[ -z "$np" ] || line+=(-np "$np")
line+=("${pass[@]}" "$program" "${arguments[@]}")
printf '+'  >&2
printf ' %q' "${line[@]}" >&2
printf '\n' >&2

# Its own session, so that Ctrl-C reaches this script alone; the parent-death signal, so that killing the script
# does not leave mpirun behind.
setpriv --pdeathsig TERM setsid "${line[@]}" </dev/null &
mpirun_pid=$!

signals=0
on_signal() { signals=$((signals + 1)); }
trap on_signal INT TERM HUP

running() { kill -0 "$mpirun_pid" 2>/dev/null; }
# A rank on this host is a child of mpirun and has its number in its environment. Prints "process rank" of each. Reads /proc
# without a fork per process, which on a busy machine would take seconds.
find_local_ranks() {
  local dir stat fields rank
  for dir in /proc/[0-9]*; do
    { read -r stat <"$dir/stat"; } 2>/dev/null || continue
    read -r -a fields <<<"${stat##*) }"
    [ "${fields[1]:-}" = "$mpirun_pid" ] || continue
    rank=$(tr '\0' '\n' 2>/dev/null <"$dir/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')
    [ -z "$rank" ] || printf '%s %s\n' "${dir#/proc/}" "$rank"
  done
}
find_rank0() { find_local_ranks | sed -n 's/ 0$//p'; }
# Without a fork, as it runs a few times a second for as long as the cluster does.
alive() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  case "${stat##*) }" in Z*|X*) return 1 ;; esac
}
exec {silence}<> <(:)
pause() { read -r -t 0.2 -u "$silence" _; }

kill_all() {
  local ranks
  ranks=$(find_local_ranks | cut -d' ' -f1)
  kill -TERM "$mpirun_pid" 2>/dev/null
  for _ in $(seq 25); do running || break; pause; done
  running && kill -KILL "$mpirun_pid" 2>/dev/null
  # mpirun's death does not end the ranks of its own host.
  for rank in $ranks; do kill -KILL "$rank" 2>/dev/null; done
}

rank0='' asked=0 killed=0 gone=0 deadline=0 seen_signals=0 listened=0
while running; do
  [ "$listened" = 1 ] || [ ! -s "$status" ] || listened=1
  if [ -z "$rank0" ] && [ "$SECONDS" -lt 30 ]; then rank0=$(find_rank0); fi
  if [ "$signals" -gt "$seen_signals" ]; then
    seen_signals=$signals
    [ -n "$rank0" ] || rank0=$(find_rank0)
    if [ "$asked" = 1 ] || [ -z "$rank0" ]; then
      [ -n "$rank0" ] || say "mpirun.sh: rank 0 does not run on this host: stopping mpirun, which gives the ranks one second"
      kill_all
      killed=1
      break
    fi
    asked=1
    deadline=$((SECONDS + grace))
    say "mpirun.sh: asking the coordinator (process $rank0) to stop; once more kills"
    kill -TERM "$rank0" 2>/dev/null
  elif [ -n "$rank0" ] && [ "$gone" = 0 ] && ! alive "$rank0"; then
    # Workers that had joined leave when the coordinator does; those that still wait for it, or for MPI, need not.
    gone=1
    deadline=$((SECONDS + 3))
  fi
  if [ "$gone" = 1 ] && [ "$SECONDS" -ge "$deadline" ]; then
    kill_all
    break
  fi
  if [ "$deadline" -gt 0 ] && [ "$SECONDS" -ge "$deadline" ]; then
    say "mpirun.sh: processes are still there after the grace time: killing them"
    kill_all
    killed=1
    break
  fi
  pause
done
wait "$mpirun_pid"
code=$?

# mpirun --enable-recovery answers 0 whatever its ranks did. The coordinator writes its status file once it listens and
# removes it when it ends in order.
[ "$gone" = 0 ] || code=0
if [ "$killed" = 1 ]; then
  code=137
elif [ "$code" = 0 ] && [ -n "$status" ]; then
  if [ "$listened" = 0 ] && [ "$asked" = 0 ]; then
    say "mpirun.sh: the coordinator ended before it listened"
    code=1
  elif [ -e "$status" ]; then
    say "mpirun.sh: the coordinator died"
    code=1
  fi
fi
[ -z "$status_dir" ] || rm -rf "$status_dir"
exit "$code"
