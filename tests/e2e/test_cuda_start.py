"""How workers start where CUDA serves, and where something of it is missing. The CUDA library is that of the stand-in
(tests/testing/cuda_on_cpu), but where it says otherwise."""
import os
import re
import subprocess

import pytest

from harness import BIN

WORKER = BIN / "millrace-worker"
STAND_IN = BIN.parent / "cuda_on_cpu" / "libmillrace_cuda.so"
FAKES = BIN.parent / "fake_cuda"


def start(*args, library=STAND_IN, machine="", command=(), **env):
    """Exit code and standard error of a worker that finds no coordinator."""
    environment = dict(os.environ, MILLRACE_CUDA_ON_CPU=machine, **env)
    environment.pop("MILLRACE_CUDA_LIBRARY", None)
    if library is not None:
        environment["MILLRACE_CUDA_LIBRARY"] = str(library)
    done = subprocess.run([*command, str(WORKER), "--coordinator", "127.0.0.1:1", "--join-timeout", "0.1", *args], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    return done.returncode, done.stderr.decode()


def backend_line(err):
    found = re.findall(r"backend: (.*)", err)
    assert len(found) == 1, err
    return found[0]


def test_auto_takes_the_devices_of_its_shards():
    code, err = start("--tensor-parallel", "2", machine="devices=3,profile=sm_90,memory=1G")
    assert code == 1 and "no coordinator answers" in err
    assert re.fullmatch(r"cuda/sm_90(/cublas-\d+)? on device 0, .*, 1\.0 GiB; device 1, .*, 1\.0 GiB", backend_line(err))
    _, err = start("--devices", "2,2", "--tensor-parallel", "2", machine="devices=3,profile=sm_80")
    assert re.match(r"cuda/sm_80(/cublas-\d+)? on device 2,", backend_line(err))
    # The second worker that mpirun starts on a host.
    _, err = start("--tensor-parallel", "1", machine="devices=3", OMPI_COMM_WORLD_LOCAL_RANK="1")
    assert " on device 1," in backend_line(err)


MISSING = [
    ({"library": "/nowhere/lib.so"}, [], "there is no /nowhere/lib.so: this build has no CUDA backend"),
    ({"library": FAKES / "other_build.so"}, [], "was built for another Millrace"),
    ({"machine": "driver=0"}, [], "there is no NVIDIA driver on this machine"),
    ({"machine": "driver=12080"}, [], "the NVIDIA driver serves CUDA 12.8 only; driver 580 or later is needed"),
    ({"machine": "devices=0"}, [], "no CUDA device is visible"),
    ({"machine": "devices=1,profile=sm_75"}, [], "has compute capability 7.5; 8.0 or more is needed"),
    ({"machine": "devices=2"}, ["--tensor-parallel", "3"], "there is no CUDA device 2: 2 visible"),
]


@pytest.mark.parametrize("where, args, line", MISSING)
def test_what_is_missing_is_one_line(where, args, line):
    code, err = start("--backend", "cuda", *args, **where)
    assert code == 1
    assert line in err and "error: --backend cuda: " in err and err.count("\n") == 1
    code, err = start(*args, **where)
    assert "no coordinator answers" in err
    assert backend_line(err).startswith("cpu, as ") and line in backend_line(err)


def test_cpu_does_not_load_the_library():
    _, err = start("--backend", "cpu", library="/nowhere/lib.so")
    assert "backend:" not in err and "kernels: cpu/" in err


def test_a_worker_starts_where_the_toolkit_is_hidden():
    """The library that nvcc built, in a mount namespace with nothing where the toolkit was."""
    built = BIN / "libmillrace_cuda.so"
    if not built.exists():
        code, err = start(library=None)
        assert code == 1 and "this build has no CUDA backend" in backend_line(err)
        return
    cache = (BIN.parent / "CMakeCache.txt").read_text()
    toolkit = re.search(r"^MILLRACE_CUDA_INCLUDE:PATH=(.*)/include$", cache, re.MULTILINE).group(1)
    hide = f"mount -t tmpfs none '{toolkit}' && test -z \"$(ls '{toolkit}')\" && exec \"$@\""
    code, err = start(library=None, command=("unshare", "--mount", "sh", "-c", hide, "sh"))
    assert code == 1 and "no coordinator answers" in err
    line = backend_line(err)
    assert line == "cpu, as there is no NVIDIA driver on this machine" or line.startswith("cuda/"), line
