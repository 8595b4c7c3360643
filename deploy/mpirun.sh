#!/usr/bin/env bash
# Starts a cluster with Open MPI's mpirun: rank 0 is the coordinator, the others are workers.
#
#   deploy/mpirun.sh [options] [-- [program] arguments]
#
#   -np N           processes, the coordinator included (default 3; with a hostfile or -H: as many as it has slots)
#   --hostfile F    hosts, one per line: "name slots=N" (1 if not said; # begins a comment); the first one runs the coordinator
#   -H A,B:2        hosts, on the command line, with their slots
#   --interface I   the network between the hosts, by its name (eth0) or as CIDR (10.0.0.0/24): for mpirun's own connections
#                   and for those of the ranks; with a name, it must be the same on all hosts
#   --preflight     only check the hosts (see below), and start nothing
#   --no-preflight  start without the check
#   --preflight-timeout SECONDS  how long a host may take to answer it (default 60)
#   --dry-run       only print the mpirun line
#   --mca NAME VALUE, -x NAME[=VALUE], --tag-output, --wdir D    handed to mpirun
#   --grace SECONDS how long a stop may take before the processes are killed (default 30)
#   --help
#
# After --: arguments of build/bin/millrace-mpi, or another program and its arguments.
#
#   deploy/mpirun.sh -np 3 -- --model "$(deploy/get_model.sh)" --listen 127.0.0.1:50051
#
# In a Slurm allocation, without -H and --hostfile, the hosts are those of SLURM_JOB_NODELIST with SLURM_TASKS_PER_NODE slots; Open
# MPI then starts its daemons by srun.
#
# With several hosts, each is checked before anything is loaded: that mpirun reaches it, that its program is the same build and its
# model file the same (size, header and samples of each tensor), that the ports are free, that its TLS files
# are good, that memory suffices for its stages, and that its clock is right. One line for each thing that is wrong, all at once, and exit code 1.
#
# SIGTERM and Ctrl-C stop rank 0 first, on whatever host it is: it drains, that is refuses new requests and lets the running ones
# finish within its --grace, and then ends the workers. (mpirun itself would give all ranks one second.) A second Ctrl-C kills.
#
# Exit codes: 0 after a stop in order (and whatever became of a rank 0 on another host); 1 when the check found something, mpirun, the
# program or a host list of Slurm cannot be used, or the coordinator ended before it listened or died; 2 for wrong options or hosts; 137 when processes had to be killed; 143 when the
# check was interrupted; else mpirun's. They come from rank 0's status file, as mpirun --enable-recovery answers 0 whatever its ranks did.
set -uo pipefail
. "$(dirname "$0")/common.sh"
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/deploy/mpirun_hosts.sh"

np='' grace=30 hostfile='' host_list='' interface='' check=auto check_seconds=60 dry_run=0
pass=()
need() { [ "$1" -ge "$2" ] || usage_error "$3 needs a value"; }
while [ $# -gt 0 ]; do
  case "$1" in
    -np|-n) need $# 2 "$1"; np=$2; shift 2 ;;
    --hostfile|--machinefile) need $# 2 "$1"
      [ -r "$2" ] || usage_error "cannot read the hostfile '$2'"
      hostfile=$2; shift 2 ;;
    -H|--host) need $# 2 "$1"; host_list=$2; shift 2 ;;
    --interface) need $# 2 "$1"; interface=$2; shift 2 ;;
    --preflight) check=only; shift ;;
    --no-preflight) check=no; shift ;;
    --preflight-timeout) need $# 2 "$1"; check_seconds=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    -x|--wdir) need $# 2 "$1"; pass+=("$1" "$2"); shift 2 ;;
    --tag-output) pass+=("$1"); shift ;;
    --mca) need $# 3 "$1"; pass+=(--mca "$2" "$3"); shift 3 ;;
    --grace) need $# 2 "$1"; grace=$2; shift 2 ;;
    -h|--help) print_header_comment; exit 0 ;;
    --) shift; break ;;
    *) usage_error "unknown option '$1'" ;;
  esac
done
[[ -z $np || $np =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "-np: a number of processes is needed, got '$np'"
[[ $check_seconds =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "--preflight-timeout: seconds are needed, got '$check_seconds'"
[ -z "$hostfile" ] || [ -z "$host_list" ] || usage_error "one of -H and --hostfile is enough"
[[ -z $interface || $interface =~ ^[A-Za-z0-9./_-]+$ ]] || usage_error "--interface: a name or a network such as 10.0.0.0/24 is needed"
if [ -n "$host_list" ]; then read_host_list "$host_list"
elif [ -n "$hostfile" ]; then read_hostfile "$hostfile"
elif [ -n "${SLURM_JOB_NODELIST:-}" ]; then read_slurm_hosts
fi
[ -z "$hostfile$host_list" ] || [ "${#host_names[@]}" -gt 0 ] || usage_error "no host is named in '${hostfile:-$host_list}'"
[[ $grace =~ ^[0-9]{1,5}$ ]] || usage_error "--grace: seconds are needed, got '$grace'"

if [ -z "$np" ]; then
  np=3
  [ "${#host_names[@]}" -eq 0 ] || np=$(total_slots)
fi
[ "${#host_names[@]}" -gt 0 ] || [ "$check" != only ] || add_host localhost "$np"

program=$root/build/bin/millrace-mpi
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then program=$1; shift; fi
command -v mpirun >/dev/null 2>&1 || die "mpirun is not installed: run deploy/install_packages.sh"
# Checked here because mpirun --enable-recovery waits for ever for a program that cannot be started.
resolved=$(command -v -- "$program" 2>/dev/null) && [ -x "$resolved" ] ||
  die "cannot run '$program': build it first (deploy/quickstart.sh does), or name a program after --"

status='' status_dir=''
arguments=("$@")
is_ours=0
[ "$(basename "$program")" != millrace-mpi ] || is_ours=1
if [ -n "$interface" ]; then
  pass+=(--mca oob_tcp_if_include "$interface" --mca btl_tcp_if_include "$interface")
  [ "$is_ours" = 0 ] || arguments+=(--interface "$interface")
fi
for ((i = 0; i < ${#arguments[@]}; i++)); do
  case "${arguments[i]}" in
    --status-file=*) status=${arguments[i]#*=} ;;
    --status-file) status=${arguments[i + 1]:-} ;;
  esac
done
if [ -z "$status" ] && [ "$is_ours" = 1 ] && [ "$check" != only ] && [ "$dry_run" = 0 ]; then
  status_dir=$(mktemp -d)
  status=$status_dir/status.json
  arguments+=(--status-file "$status")
fi
remove_status_dir() { [ -z "$status_dir" ] || rm -rf "$status_dir"; }
# What an earlier run left must not be taken for this one's.
[ -z "$status" ] || [ "$dry_run" = 1 ] || [ "$check" = only ] || rm -f "$status"

line=(mpirun)
[ "$(id -u)" = 0 ] && line+=(--allow-run-as-root)
line+=(--oversubscribe --bind-to none --enable-recovery -np "$np")
# A hostfile, too, as -H: mpirun takes a host without slots= for one with as many slots as cores, and the check would look for ranks elsewhere.
[ "${#host_names[@]}" -eq 0 ] || line+=(-H "$(print_host_list)")
line+=("${pass[@]}" "$program" "${arguments[@]}")
printf '+'  >&2
printf ' %q' "${line[@]}" >&2
printf '\n' >&2
[ "$dry_run" = 0 ] || exit 0

check_hosts() {
  local folder code
  folder=$(mktemp -d)
  assign_ranks "$np"
  # The mpirun of a host ends with its subshell.
  watch_preflight "$folder"
  trap 'kill -KILL "$watcher"; kill "${check_pids[@]}"; end_preflight "$folder"; rm -rf "$folder"; remove_status_dir; exit 143' TERM INT HUP
  preflight "$folder" "$np" "$check_seconds" "${pass[@]}"
  code=$?
  # A login that answered may have left a master connection for later ones (ssh's ControlPersist): that stays.
  ! grep -qsE '^host .* (124|137)$' "$folder"/*.answer || end_preflight "$folder"
  trap - TERM INT HUP
  kill -KILL "$watcher"
  rm -rf "$folder"
  return "$code"
}
if [ "$is_ours" = 1 ] && { [ "$check" = only ] || { [ "$check" = auto ] && [ "${#host_names[@]}" -gt 1 ]; }; }; then
  check_hosts || { code=$?; remove_status_dir; say "mpirun.sh: nothing was started: mend what is named above, or pass --no-preflight"; exit "$code"; }
fi
[ "$check" != only ] || exit 0

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
    if [ "$asked" = 1 ] || { [ -z "$rank0" ] && [ "$is_ours" = 0 ]; }; then
      [ -n "$rank0" ] || say "mpirun.sh: rank 0 does not run on this host: stopping mpirun, which gives the ranks one second"
      kill_all
      killed=1
      break
    fi
    asked=1
    deadline=$((SECONDS + grace))
    say "mpirun.sh: asking the coordinator (${rank0:+process }${rank0:-on ${host_names[0]:-another host}}) to stop; once more kills"
    # mpirun hands SIGUSR1 on to ranks on other hosts, which millrace-mpi's rank 0 takes for SIGTERM.
    if [ -n "$rank0" ]; then kill -TERM "$rank0" 2>/dev/null; else kill -USR1 "$mpirun_pid" 2>/dev/null; fi
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
  if [ -z "$rank0" ] && [ "${#host_names[@]}" -gt 0 ]; then
    : # Rank 0 wrote its status file on another host.
  elif [ "$listened" = 0 ] && [ "$asked" = 0 ]; then
    say "mpirun.sh: the coordinator ended before it listened"
    code=1
  elif [ -e "$status" ]; then
    say "mpirun.sh: the coordinator died"
    code=1
  fi
fi
remove_status_dir
exit "$code"
