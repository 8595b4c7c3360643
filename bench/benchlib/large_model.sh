#!/usr/bin/env bash
# Makes a model of 1.1 B parameters (TinyLlama's shape, random weights), once for each type, and prints its path.
#
#   bench/benchlib/large_model.sh [TYPE]     q8_0 (default, 1.1 GB) or q4_0 (0.6 GB)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/deploy/common.sh"
type=${1:-q8_0}
case "$type" in
  q8_0|q4_0) ;;
  -h|--help) print_header_comment; exit 0 ;;
  *) usage_error "unknown type '$type'" ;;
esac
like=$("$root/deploy/get_model.sh")
model=$(cache_dir)/random-1.1b-$type.gguf
if [ ! -e "$model" ]; then
  say "making $model (a minute)"
  "$("$root/tests/python_env.sh")/bin/python" -B "$root/tests/golden/make_random_gguf.py" --like "$like" --type "$type" "$model.part" >&2
  mv "$model.part" "$model"
fi
printf '%s\n' "$model"
