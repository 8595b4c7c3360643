# shellcheck shell=bash disable=SC2154
# Sourced by mpirun.sh: which hosts there are, which ranks each runs, and the check of every host before a start.

# host_names, host_slots: in the order in which ranks fill them.
host_names=() host_slots=()

# add_host NAME SLOTS: a name that comes again adds to its slots.
add_host() {
  local i
  [[ $1 =~ ^[A-Za-z0-9._-]+$ ]] || usage_error "'$1' is not a host name"
  [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "host $1: '$2' is not a number of slots"
  for i in "${!host_names[@]}"; do
    if [ "${host_names[i]}" = "$1" ]; then host_slots[i]=$((host_slots[i] + $2)); return; fi
  done
  host_names+=("$1")
  host_slots+=("$2")
}

# read_host_list "A:2,B": as -H takes it.
read_host_list() {
  local part parts
  IFS=, read -r -a parts <<<"$1"
  for part in "${parts[@]}"; do
    case "$part" in *:*) add_host "${part%%:*}" "${part#*:}" ;; *) add_host "$part" 1 ;; esac
  done
}

# read_hostfile FILE: "name slots=N" in each line, which may end as Windows writes it; # begins a comment.
read_hostfile() {
  local line word words slots
  while read -r line || [ -n "$line" ]; do
    line=${line%$'\r'}
    read -r -a words <<<"${line%%#*}"
    [ "${#words[@]}" -gt 0 ] || continue
    slots=1
    for word in "${words[@]:1}"; do case "$word" in slots=*) slots=${word#slots=} ;; slots) slots='' ;; esac; done
    add_host "${words[0]}" "$slots"
  done <"$1"
}

# expand_nodelist "n[01-03,7],m": Slurm's short form, one name per line. In bash, as scontrol is not on every image.
expand_nodelist() {
  local rest=$1 part item from to i
  while [ -n "$rest" ]; do
    part=${rest%%,*}
    case "$part" in *\[*) part=${rest%%]*}] ;; esac
    rest=${rest#"$part"}
    # What follows a bracket belongs to the same name.
    case "$rest" in ,*|'') ;; *) die "cannot read SLURM_JOB_NODELIST '$1': name the hosts with -H" ;; esac
    rest=${rest#,}
    if [ "${part%]}" = "$part" ]; then printf '%s\n' "$part"; continue; fi
    local name=${part%%[*} inside=${part#*[}
    for item in $(tr ',' ' ' <<<"${inside%]}"); do
      from=${item%-*} to=${item#*-}
      [[ $from =~ ^[0-9]{1,9}$ && $to =~ ^[0-9]{1,9}$ ]] || die "cannot read SLURM_JOB_NODELIST '$1': name the hosts with -H"
      for ((i = 10#$from; i <= 10#$to; i++)); do printf '%s%0*d\n' "$name" "${#from}" "$i"; done
    done
  done
}

# expand_counts "2(x3),1": Slurm's SLURM_TASKS_PER_NODE, one number per line.
expand_counts() {
  local item i
  for item in $(tr ',' ' ' <<<"$1"); do
    if [[ $item =~ ^([0-9]{1,5})\(x([0-9]{1,5})\)$ ]]; then
      for ((i = 0; i < BASH_REMATCH[2]; i++)); do printf '%s\n' "${BASH_REMATCH[1]}"; done
    else
      printf '%s\n' "$item"
    fi
  done
}

read_slurm_hosts() {
  local names counts i
  # By a variable, as a list that can be read in part must not start a smaller cluster.
  names=$(if command -v scontrol >/dev/null 2>&1; then scontrol show hostnames "$SLURM_JOB_NODELIST"
          else expand_nodelist "$SLURM_JOB_NODELIST"; fi) || exit 1
  mapfile -t names <<<"$names"
  mapfile -t counts < <(expand_counts "${SLURM_TASKS_PER_NODE:-}")
  [ -n "${names[0]}" ] || die "cannot read SLURM_JOB_NODELIST '$SLURM_JOB_NODELIST': name the hosts with -H"
  for i in "${!names[@]}"; do add_host "${names[i]}" "${counts[i]:-1}"; done
}

# As -H takes it.
print_host_list() {
  local i list=()
  for i in "${!host_names[@]}"; do list+=("${host_names[i]}:${host_slots[i]}"); done
  (IFS=,; printf '%s' "${list[*]}")
}

total_slots() {
  local slots sum=0
  for slots in "${host_slots[@]}"; do sum=$((sum + slots)); done
  printf '%d' "$sum"
}

# assign_ranks SIZE: host_first, host_count as mpirun maps by slot: slots first, then what is left, host by host.
assign_ranks() {
  local left=$1 first=0 i n
  host_first=() host_count=()
  for i in "${!host_names[@]}"; do
    n=${host_slots[i]}
    [ "$n" -le "$left" ] || n=$left
    host_count[i]=$n
    left=$((left - n))
  done
  for ((i = 0; left > 0; i = (i + 1) % ${#host_names[@]}, left--)); do host_count[i]=$((host_count[i] + 1)); done
  for i in "${!host_names[@]}"; do host_first[i]=$first; first=$((first + host_count[i])); done
}

# end_preflight FOLDER: mpirun leaves behind a login that hangs, in a process group of its own; it has inherited the mark.
end_preflight() {
  local file
  while read -r file; do
    file=${file#/proc/}
    kill -KILL "${file%/environ}" 2>/dev/null
  done < <(grep -lzxsF "MILLRACE_PREFLIGHT=$1" /proc/[0-9]*/environ)
}

# watch_preflight FOLDER: ends the check if this script is killed so that it cannot do so itself. Leaves the process in watcher.
watch_preflight() {
  setpriv --pdeathsig TERM bash -c '
    . "$1"
    trap "end_preflight \"$2\"; rm -rf \"$2\"; exit" TERM
    exec {never}<> <(:)
    read -ru "$never"' watch "${BASH_SOURCE[0]}" "$1" </dev/null >/dev/null 2>&1 &
  watcher=$!
  disown "$watcher"
}

check_pids=()
# preflight FOLDER SIZE TIMEOUT OPTION...: runs `$program --preflight` on every host that gets ranks, by an mpirun of its own each,
# so that one host that is down says nothing about the others. Prints one line for each thing that is wrong; returns the judge's code.
preflight() {
  local folder=$1 size=$2 seconds=$3 i
  shift 3
  local root_flag=()
  [ "$(id -u)" != 0 ] || root_flag=(--allow-run-as-root)
  for i in "${!host_names[@]}"; do
    [ "${host_count[i]}" -gt 0 ] || continue
    (
      began=$EPOCHREALTIME
      MILLRACE_PREFLIGHT=$folder setpriv --pdeathsig TERM timeout -k 5 "$seconds" mpirun "${root_flag[@]}" --bind-to none --oversubscribe -np 1 \
        -H "${host_names[i]}:1" "$@" "$program" "${arguments[@]}" \
        --preflight "${host_first[i]}:${host_count[i]}:$size" </dev/null >"$folder/$i.out" 2>&1
      code=$?
      # The folder is gone if this script is.
      {
        printf 'host %s %s %s %d\n' "${host_names[i]}" "${began/,/.}" "${EPOCHREALTIME/,/.}" "$code"
        sed 's/^/\t/' "$folder/$i.out"
      } 2>/dev/null >"$folder/$i.answer"
    ) &
    check_pids+=($!)
    # A few at a time: each is an mpirun and a login.
    [ $((${#check_pids[@]} % 16)) -ne 0 ] || wait "${check_pids[@]}"
  done
  wait "${check_pids[@]}"
  for i in "${!host_names[@]}"; do
    [ ! -f "$folder/$i.answer" ] || cat "$folder/$i.answer"
  done | "$program" --preflight-judge
}
