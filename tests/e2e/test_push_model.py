"""Workers without the model file: each gets the bytes of its own layers from the coordinator, and keeps them."""
import fcntl
import re
import shutil
import signal

import gguf
import grpc
import pytest

import certificates
import harness

LAYERS = 30
MAGIC = 8  # bytes before the first chunk's in a journal


class Parts:
    """What a reader that is not ours says of the file's parts."""

    def __init__(self, path):
        reader = gguf.GGUFReader(str(path))
        self.tensors = {t.name: (int(t.data_offset), int(t.n_bytes)) for t in reader.tensors}
        last = max(reader.tensors, key=lambda t: t.field.offset).field
        self.header = last.offset + sum(int(part.nbytes) for part in last.parts)

    def of_stage(self, first, count):
        """Names of the tensors of a stage of SmolLM2, whose output matrix is its embedding."""
        names = {n for n in self.tensors for i in range(first, first + count) if n.startswith(f"blk.{i}.")}
        if first == 0 or first + count == LAYERS:
            names.add("token_embd.weight")
        if first + count == LAYERS:
            names.add("output_norm.weight")
        return names

    def bytes(self, names):
        return sum(self.tensors[name][1] for name in names)

    def stage_bytes(self, first, count):
        return self.header + self.bytes(self.of_stage(first, count))


@pytest.fixture(scope="module")
def parts(real_model):
    return Parts(real_model)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start_pushing(real_model, logs):
    """start_pushing(layers, folders, tls=None): a cluster whose workers have nothing but their caches."""
    clusters = []

    def start(layers, folders, tls=None):
        clusters.append(harness.Cluster(
            real_model, logs, stages=2, layers=layers, tls=tls, coordinator=["--push-model", "--activations", "f32"],
            each_worker=[["--model-cache", folder] for folder in folders]))
        return clusters[-1]
    yield start
    for cluster in clusters:
        cluster.kill()


def fetched(worker):
    return sum(int(n) for n in re.findall(r"fetched (\d+) bytes in", worker.err))


def assert_golden(cluster, golden):
    case = min((c for c in golden if len(c["greedy"]) >= 8), key=lambda c: len(c["ids"]))
    answer = cluster.client.generate(case["ids"], 8, harness.GREEDY, {"ignore_eos": True})
    assert answer.ids == case["greedy"][:8]


def journal(folder):
    """Which chunks a cache has, as 0 or 1 each."""
    for path in folder.glob("*.chunks"):
        return path.read_bytes()[MAGIC:]
    return b""


def lose(cluster, stage):
    """Kills a worker, and waits until the coordinator knows."""
    cluster.kill_worker(stage).wait()
    harness.wait_until(lambda: not cluster.client.serving(), "health is NOT_SERVING")


def replace(cluster, stage, folder):
    """Starts another worker for a stage whose worker is dead, and waits until the cluster serves."""
    worker = cluster.workers[stage] = cluster.start_worker(stage, "--model-cache", folder)
    cluster.wait_serving()
    return worker


def kill_while_it_fetches(cluster, stage, parent):
    """A cache that a killed worker has left half full."""
    for attempt in range(5):
        folder = parent / f"half{attempt}"
        worker = cluster.start_worker(stage, "--model-cache", folder)
        cluster.killed.add(worker)
        harness.wait_until(lambda: sum(journal(folder)) > 30, "some chunks have come", interval=0)
        worker.send(signal.SIGKILL)
        worker.wait()
        if f"stage {stage}: fetched" not in worker.err:
            return folder
    raise AssertionError("five transfers of 50 MB were over before they could be killed")


def test_workers_get_what_their_stages_need(start_pushing, parts, caches, golden):
    cluster = start_pushing([15, 15], [caches / "a", caches / "b"])
    for stage, worker in enumerate(cluster.workers):
        assert fetched(worker) == parts.stage_bytes(15 * stage, 15), worker.tail()
        assert re.search(rf"stage {stage}: (\d+) of \1 MB, \d+ MB/s", worker.err), worker.tail()
    assert_golden(cluster, golden)

    lose(cluster, 1)
    half = kill_while_it_fetches(cluster, 1, caches)
    had = sum(journal(half))
    worker = replace(cluster, 1, half)
    rest = fetched(worker)
    kept = parts.stage_bytes(15, 15) - rest
    assert 0 < kept and had < sum(journal(half)), f"{kept} bytes were kept, {had} chunks"
    assert kept == sum(int(n) for n in re.findall(r"chunks, (\d+) bytes were in", worker.err)), worker.tail()
    assert_golden(cluster, golden)

    lose(cluster, 1)
    offset, size = parts.tensors["blk.20.ffn_up.weight"]
    with open(next(half.glob("*.gguf")), "r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)
        file.seek(offset + 100)
        file.write(bytes([byte[0] ^ 1]))
    worker = replace(cluster, 1, half)
    assert fetched(worker) == size <= 1 << 20
    assert re.search(r"is damaged in 1 of \d+ chunks, first at byte \d+; fetching them again", worker.err), worker.tail()
    assert_golden(cluster, golden)

    # Two workers of one host with one cache: what both need comes once.
    lose(cluster, 0)
    worker = replace(cluster, 0, half)
    assert fetched(worker) == parts.bytes(parts.of_stage(0, 15) - parts.of_stage(15, 15))
    assert_golden(cluster, golden)
    cluster.stop()

    # Other layers, by TLS: only what is missing comes.
    cluster = start_pushing([18, 12], [caches / "a", caches / "b"], certificates.TestCa(caches / "pki").issue("node"))
    assert fetched(cluster.workers[0]) == parts.bytes(parts.of_stage(0, 18) - parts.of_stage(0, 15))
    assert fetched(cluster.workers[1]) == 0
    assert_golden(cluster, golden)
    cluster.stop()


def test_what_goes_wrong_is_said(real_model, logs, caches, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    cluster = harness.Cluster(real_model, logs, stages=1, wait=False, worker=["--join-secret-file", secret],
                              each_worker=[["--model-cache", caches / "nowhere", "--model", tmp_path / "none.gguf"]],
                              coordinator=["--push-model", "--join-secret-file", secret])
    try:
        cluster.wait_serving()  # a file that is not there is fetched, too, where a cache is named
        cluster.kill_worker(0).wait()
        full = cluster._start("full", ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=20m none "$1"; shift; exec "$@"', "sh",
                                       small, harness.BIN / "millrace-worker", "--coordinator", cluster.address,
                                       "--join-secret-file", secret, "--model-cache", small])
        harness.wait_until(lambda: "are free; free space, or name another folder with --model-cache" in full.err,
                           "the worker says that its disk is full")
        assert full.running(), full.tail()
        cluster.killed.add(full)
        full.send(signal.SIGKILL)
        full.wait()
        # As if another worker were busy with the folder; then this one is asked to end.
        with open(next((caches / "nowhere").glob("*.chunks")), "rb") as busy:
            fcntl.flock(busy, fcntl.LOCK_EX)
            waiting = cluster.start_worker(0, "--join-secret-file", secret, "--model-cache", caches / "nowhere")
            cluster.killed.add(waiting)
            harness.wait_until(lambda: "waiting for another worker that uses" in waiting.err, "the worker waits for its turn")
            waiting.send(signal.SIGTERM)
            assert waiting.wait(10) == 0 and "error" not in waiting.err, waiting.tail()
        # The service itself asks for the secret, and for the model's manifest.
        with grpc.insecure_channel(cluster.address) as channel:
            fetch = channel.unary_stream("/millrace.v1.Cluster/FetchModel")
            manifest = channel.unary_unary("/millrace.v1.Cluster/GetModelManifest")
            with harness.raises_status(grpc.StatusCode.PERMISSION_DENIED):
                list(fetch(b"", metadata=[("millrace-secret", "wrong")], timeout=10))
            with harness.raises_status(grpc.StatusCode.PERMISSION_DENIED):
                manifest(b"", timeout=10)
            with harness.raises_status(grpc.StatusCode.FAILED_PRECONDITION):
                list(fetch(b"", metadata=[("millrace-secret", "right")], timeout=10))
    finally:
        cluster.kill()
