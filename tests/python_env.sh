#!/usr/bin/env bash
# Makes the virtual environment of the Python tests, once per set of requirements, and prints its path.
#
#   tests/python_env.sh
#
# It lies in the cache folder ($MILLRACE_CACHE, default ~/.cache/millrace). The path goes to stdout.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/deploy/common.sh"

case "${1:-}" in
  "") ;;
  -h|--help) print_header_comment; exit 0 ;;
  *) usage_error "unknown argument '$1'" ;;
esac

requirements=$root/tests/e2e/requirements.txt
python=$(find_python) || die "no Python 3: run deploy/install_packages.sh --tests"
key=$({ "$python" --version; cat "$requirements"; } | sha256sum | cut -c1-12)
env=$(cache_dir)/python-$key
mkdir -p "$(cache_dir)"
exec 9>"$(cache_dir)/.python-lock"
flock -w 600 9 || die "waited 10 minutes for $(cache_dir)/.python-lock"
if [ -e "$env/.complete" ]; then
  say "  $env is complete"
else
  rm -rf "$env"
  say "  installing $(grep -c '==' "$requirements") packages into $env"
  "$python" -m venv "$env" >&2
  "$env/bin/python" -m pip --disable-pip-version-check install --quiet --upgrade "setuptools==75.8.0" "wheel==0.45.1" >&2
  # grpcurl's wrapper has no build isolation of its own: it needs the two above.
  "$env/bin/python" -m pip --disable-pip-version-check install --quiet --no-build-isolation --requirement "$requirements" >&2
  touch "$env/.complete"
fi
printf '%s\n' "$env"
