#!/usr/bin/env python3
"""Executes the build steps of a Dockerfile without a container engine, and runs what comes out as one would.

  tests/images/execute.py cpu|mpi|cuda [options]

  --work FOLDER     where root file systems are made, some gigabytes (default: /var/tmp/millrace-images)
  --mirror URL      of Debian, for debootstrap (default: where this machine's apt gets bookworm from)
  --model FILE      what is served (default: deploy/get_model.sh)
  --reuse           take stages that an earlier run has finished as they are

A clean Debian 12 is made by debootstrap (Debian's package of that name). Each stage is a copy of it in which RUN is executed by chroot, in namespaces of
its own; COPY sees what .dockerignore leaves of the files that git knows. Then: content, libraries, and three containers (user 65532, no capabilities,
read-only root) that serve the model by the commands of deploy/docker/compose.yaml; for mpi, logins by sshd. Needs root. Takes a quarter of an hour
for cpu on two cores, more for cuda, so it is not among the tests of every change.

Exit 0 if all was as it must be; otherwise the last line says what was not.
"""
import argparse
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import build  # noqa: E402
import checks  # noqa: E402
import dockerfile  # noqa: E402
import root  # noqa: E402

ROOT = HERE.parents[1]
TARGETS = {"cpu": ("Dockerfile.cpu", "runtime"), "mpi": ("Dockerfile.cpu", "mpi"), "cuda": ("Dockerfile.cuda", "runtime")}
VERSION = "1.2.3-check"


def options():
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        raise SystemExit(0)
    parser = argparse.ArgumentParser(prog="execute.py", add_help=False)
    parser.add_argument("image", choices=TARGETS)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/var/tmp/millrace-images"))
    parser.add_argument("--mirror")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--reuse", action="store_true")
    return parser.parse_args()


def own_mirror():
    listed = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(CREATED_BY)"], stdout=subprocess.PIPE, text=True).stdout
    for line in listed.splitlines():
        mirror, *what = line.split()
        if what == ["bookworm", "Packages"]:
            return mirror
    raise SystemExit("execute.py: error: apt knows no Debian 12 here: name one by --mirror")


def main():
    flags = options()
    if os.geteuid() != 0:
        raise SystemExit("execute.py: error: namespaces and chroot need root")
    model = flags.model or pathlib.Path(subprocess.run([ROOT / "deploy/get_model.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    file, target = TARGETS[flags.image]
    work = flags.work / file
    work.mkdir(parents=True, exist_ok=True)
    arguments = {"VERSION": VERSION, "REVISION": "0" * 40}
    stages = dockerfile.needed(dockerfile.parse((ROOT / "deploy/docker" / file).read_text(), arguments), target)
    builder = build.Builder(ROOT, work, root.debian(flags.work / "debian", flags.mirror or own_mirror()), arguments)
    builder.build(stages, flags.reuse)
    image = builder.images[target]
    print(f"{flags.image}: {build.describe(image)}", flush=True)
    # In a network of its own: the ports of the checks are fixed, and this machine's may be taken.
    enter_own_network()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    checks.run(target, work / target, image, work, model, VERSION)
    print(f"{flags.image}: all as it must be")


def enter_own_network():
    """os.unshare came with Python 3.12."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000) != 0:
        raise SystemExit(f"execute.py: error: no network namespace: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
