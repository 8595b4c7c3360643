"""What the tests over real processes start from. See harness.py."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

# A shell's background jobs ignore Ctrl-C, and so would every program that is started from here.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _generate_protos():
    """Python code from proto/, as any client would make it; the harness imports it."""
    folder = tempfile.TemporaryDirectory(prefix="millrace-protos-")
    source = ROOT / "proto"
    files = sorted(str(p.relative_to(source)) for p in (source / "millrace").rglob("*.proto"))
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", f"--python_out={folder.name}",
                    f"--grpc_python_out={folder.name}", *files], check=True, cwd=source)
    sys.path.insert(0, folder.name)
    return folder


_PROTOS = _generate_protos()
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness  # noqa: E402

# Without CUDA's headers there is no stand-in to try; tests/run.sh says so.
if not (harness.BIN.parent / "cuda_on_cpu" / "libmillrace_cuda.so").exists():
    collect_ignore_glob = ["test_cuda*.py"]


@pytest.fixture(scope="session")
def real_model():
    """SmolLM2-135M-Instruct, as deploy/get_model.sh leaves it."""
    path = os.environ.get("MILLRACE_TEST_MODEL")
    if not path:
        path = subprocess.run([ROOT / "deploy" / "get_model.sh"], check=True, stdout=subprocess.PIPE).stdout.decode().strip()
    return path


@pytest.fixture(scope="session")
def golden():
    return json.loads((ROOT / "tests" / "golden" / "smollm2.json").read_text())["cases"]


# Shapes of random models. Small: what is tried on them is the machinery, which is the same for any size.
SHAPES = {
    "f32": ["--layers", 5, "--hidden", 64, "--ffn", 176, "--heads", 4, "--kv-heads", 2, "--type", "f32"],
    "q8_0": ["--layers", 6, "--hidden", 96, "--ffn", 160, "--heads", 3, "--kv-heads", 1, "--head-dim", 32, "--type", "q8_0"],
    "f16": ["--layers", 5, "--hidden", 64, "--ffn", 96, "--heads", 2, "--kv-heads", 2, "--type", "f16", "--untied"],
    "q4_1": ["--layers", 7, "--hidden", 128, "--ffn", 256, "--heads", 8, "--kv-heads", 2, "--type", "q4_1", "--untied"],
}


@pytest.fixture(scope="session")
def random_model(real_model, tmp_path_factory):
    """random_model(shape, seed=1): the path of a GGUF file with random weights and the real tokenizer."""
    folder = tmp_path_factory.mktemp("models")

    def make(shape="f32", seed=1, context=4096):
        path = folder / f"{shape}-{seed}-{context}.gguf"
        if not path.exists():
            subprocess.run([sys.executable, ROOT / "tests" / "golden" / "make_random_gguf.py", "--like", real_model, "--seed",
                            str(seed), "--context", str(context), *[str(part) for part in SHAPES[shape]], path],
                           check=True, stderr=subprocess.PIPE)
        return path
    return make


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture
def start_cluster(logs):
    """start_cluster(model, ...): a Cluster that is ended with the test."""
    clusters = []

    def start(model, **kwargs):
        clusters.append(harness.Cluster(model, logs, **kwargs))
        return clusters[-1]
    yield start
    for cluster in clusters:
        cluster.kill()


@pytest.fixture(scope="module")
def tiny_cluster(random_model, logs):
    """Two stages of a random model, for tests that leave it as they found it."""
    with harness.Cluster(random_model("f32"), logs, stages=2) as cluster:
        yield cluster


@pytest.fixture
def tiny(tiny_cluster):
    """The client of tiny_cluster; after the test nothing may be left in use."""
    yield tiny_cluster.client
    tiny_cluster.client.wait_idle()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what the processes that were alive had to say."""
    report = (yield).get_result()
    if report.failed:
        for process in harness.Process.live:
            report.sections.append((f"{process.name}, process {process.pid}", process.tail()))


def pytest_sessionfinish(session, exitstatus):
    for process in list(harness.Process.live):
        process.close()
    _PROTOS.cleanup()
