#!/usr/bin/env bash
# Makes a model of 1.1 B parameters (TinyLlama's shape, random weights, Q8_0), once, and prints its path.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/deploy/common.sh"
like=$("$root/deploy/get_model.sh")
model=$(cache_dir)/random-1.1b-q8_0.gguf
if [ ! -e "$model" ]; then
  say "making $model (a minute)"
  "$("$root/tests/python_env.sh")/bin/python" -B "$root/tests/golden/make_random_gguf.py" --like "$like" --type q8_0 "$model.part" >&2
  mv "$model.part" "$model"
fi
printf '%s\n' "$model"
