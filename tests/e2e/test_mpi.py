"""A cluster under mpirun, by way of deploy/mpirun.sh, on one host. Several: test_mpirun_hosts.py."""
import contextlib
import json
import os
import re
import signal
import subprocess

import grpc
import pytest

import harness

MPIRUN = harness.ROOT / "deploy" / "mpirun.sh"
PROGRAM = harness.BIN / "millrace-mpi"
NO_END = {"ignore_eos": True}


def processes_with(text):
    """Ids of the processes whose command line has `text` in it, zombies excluded."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if text.encode() in file.read():
                    found.append(int(entry))
    return found


class MpiCluster:
    """deploy/mpirun.sh and what it started."""

    def __init__(self, model, folder, tmp, np, launcher=(), program=(), prefix=()):
        self.status = tmp / "status.json"
        self.secret = tmp / "secret"
        self.mark = str(self.status)
        self.script = harness.Process("mpirun", [
            *prefix, MPIRUN, "-np", np, *launcher, "--", PROGRAM, "--model", model, "--listen", "127.0.0.1:0",
            "--status-file", self.status, "--join-secret-file-out", self.secret, *program], folder, start_new_session=True)

    def addresses(self):
        def look():
            assert self.script.running(), self.script.tail(60)
            return self.status.exists()
        harness.wait_until(look, "rank 0 writes its status file")
        return json.loads(self.status.read_text())

    def client(self):
        client = harness.Client(self.addresses()["listen"])
        client.wait_serving()
        return client

    def ranks(self):
        return {pid for pid in processes_with(self.mark) if pid != self.script.pid and self._is_rank(pid)}

    @staticmethod
    def _is_rank(pid):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/exe").endswith("millrace-mpi")
        return False

    def rank_pid(self, number):
        for pid in self.ranks():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                if f"OMPI_COMM_WORLD_RANK={number}".encode() in file.read().split(b"\0"):
                    return pid
        raise AssertionError(f"rank {number} does not run")

    def assert_nothing_left(self, seconds=10):
        harness.wait_until(lambda: not processes_with(self.mark), "no process of the cluster is left", seconds)

    def close(self):
        self.script.close()
        for pid in processes_with(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(random_model, logs, tmp_path):
    clusters = []

    def start(np=3, model=None, **kwargs):
        clusters.append(MpiCluster(model or random_model("f32"), logs, tmp_path, np, **kwargs))
        return clusters[-1]
    yield start
    for cluster in clusters:
        cluster.close()


def answer(client):
    return client.generate([11, 12, 13], 16, harness.GREEDY, NO_END, logprobs=2).bits()


def test_one_coordinator_and_the_other_ranks_are_the_stages(start, tiny):
    cluster = start(np=3)
    client = cluster.client()
    load = client.load()
    assert [stage.stage for stage in load.stages] == [0, 1]
    assert answer(client) == answer(tiny)
    assert len(cluster.ranks()) == 3
    line = next(line for line in cluster.script.err.splitlines() if line.startswith("+ mpirun"))
    assert "--oversubscribe --bind-to none --enable-recovery -np 3" in line
    assert ("--allow-run-as-root" in line) == (os.getuid() == 0)
    client.close()
    assert cluster.script.stop() == 0, cluster.script.tail(60)
    cluster.assert_nothing_left()


def test_sigterm_to_the_script_lets_a_running_request_finish(start):
    cluster = start(np=3)
    client = cluster.client()
    call = client.stream(harness.request([5, 6], 300, harness.GREEDY, NO_END))
    assert next(call).WhichOneof("event") == "started"
    cluster.script.send(signal.SIGTERM)
    assert len(harness.collect(call, harness.Answer(started=True)).ids) == 300
    assert cluster.script.wait(30) == 0, cluster.script.tail(60)
    cluster.assert_nothing_left()


def test_sigterm_before_the_workers_have_joined(start):
    """Whatever the ranks were doing when the coordinator was stopped, none of them stays."""
    cluster = start(np=3)
    cluster.addresses()
    assert cluster.script.stop() == 0, cluster.script.tail(60)
    cluster.assert_nothing_left()


def test_a_killed_coordinator_ends_the_job(start):
    cluster = start(np=3)
    client = cluster.client()
    os.kill(cluster.rank_pid(0), signal.SIGKILL)
    assert cluster.script.wait(20) == 1, cluster.script.tail(60)
    assert "died" in cluster.script.err
    client.close()
    cluster.assert_nothing_left()


def test_a_killed_worker_can_be_replaced_by_hand(start, logs):
    cluster = start(np=3)
    client = cluster.client()
    expected = answer(client)
    call = client.stream(harness.request([5, 6], None, harness.GREEDY, NO_END))
    next(call)
    os.kill(cluster.rank_pid(2), signal.SIGKILL)
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE) as caught:
        for _ in call:
            pass
    assert "stage 1" in caught.error.details()
    assert cluster.script.running(), "mpirun ended the whole job for one rank"
    assert (cluster.secret.stat().st_mode & 0o077) == 0, "others may read the secret"
    worker = harness.Process("replacement", [harness.BIN / "millrace-worker", "--coordinator",
                                             cluster.addresses()["cluster_listen"], "--join-secret-file", cluster.secret], logs)
    try:
        client.wait_serving()
        assert answer(client) == expected
        assert cluster.script.stop() == 0, cluster.script.tail(60)
        assert worker.wait(10) == 0, worker.tail()
    finally:
        worker.close()
    cluster.assert_nothing_left()


def test_a_worker_without_the_secret_is_refused(start):
    cluster = start(np=2)
    client = cluster.client()
    code, out, err = harness.run_program("millrace-worker", "--coordinator", cluster.addresses()["cluster_listen"], seconds=30)
    assert code == 1 and "secret" in err
    assert client.serving()
    assert cluster.script.stop() == 0
    cluster.assert_nothing_left()


def test_killing_mpirun_leaves_nothing(start):
    cluster = start(np=3)
    cluster.client()
    mpirun = next(pid for pid in processes_with(cluster.mark) if os.readlink(f"/proc/{pid}/exe").endswith(("orterun", "mpirun")))
    os.kill(mpirun, signal.SIGKILL)
    cluster.assert_nothing_left(15)
    assert cluster.script.wait(15) != 0


def test_killing_the_script_leaves_nothing(start):
    cluster = start(np=3)
    cluster.client()
    cluster.script.send(signal.SIGKILL)
    cluster.assert_nothing_left(15)


def test_a_missing_model_ends_it_all_with_one_message(start, tmp_path):
    cluster = start(np=3, model=tmp_path / "missing.gguf")
    assert cluster.script.wait(30) == 1, cluster.script.tail(60)
    said = [line for line in cluster.script.err.splitlines() + cluster.script.out.splitlines()
            if "missing.gguf" in line and not line.startswith("+ ")]
    assert len(said) == 1, said
    cluster.assert_nothing_left()


def test_too_few_ranks(start):
    cluster = start(np=2, program=["--stages", 3])
    assert cluster.script.wait(30) != 0
    assert re.search(r"3 stages.*4 ranks", cluster.script.err + cluster.script.out)
    cluster.assert_nothing_left()


def test_a_confined_process_says_so(start):
    """Open MPI's own default binds each of two ranks to one core."""
    cluster = start(np=2, prefix=["taskset", "-c", "0"])
    cluster.client()
    assert "core" in cluster.script.err
    assert cluster.script.stop() == 0


@pytest.mark.parametrize("args, code, said", [
    (["--help"], 0, "hostfile"),
    (["-np"], 2, "-np"),
    (["-np", "x"], 2, "-np"),
    (["--nonsense"], 2, "--nonsense"),
    (["--hostfile", "/no/such/file"], 2, "/no/such/file"),
    (["--", "/no/such/program"], 1, "/no/such/program"),
])
def test_the_script_refuses_what_is_wrong(args, code, said):
    done = subprocess.run([MPIRUN, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    assert done.returncode == code
    assert said in done.stdout.decode()
