"""A worker that dies: its requests end at once and say why; the coordinator lives, and serves again with another worker."""
import os
import pathlib
import re
import signal
import time

import grpc
import pytest

import harness

NO_END = {"ignore_eos": True}
MESSAGE = dict(prompt=[11, 12, 13], max_tokens=16, sampling=harness.GREEDY, stop=NO_END, logprobs=1)
STAGES = 3


@pytest.fixture(scope="module")
def cluster(random_model, logs):
    with harness.Cluster(random_model("q4_1", context=32768), logs, stages=STAGES, coordinator=["--worker-timeout", "2s"]) as it:
        yield it


@pytest.fixture(scope="module")
def expected(cluster):
    return cluster.client.generate(**MESSAGE).bits()


def endless(client, count=1):
    """Streams that would take for ever, each past its first tokens."""
    calls = [client.stream(harness.request([5 + i, 6], None, harness.GREEDY, NO_END))
             for i in range(count)]
    for call in calls:
        seen = 0
        while seen < 3:
            seen += len(next(call).tokens.token_ids)
    return calls


def end_of(call):
    """The error that ends a stream."""
    with harness.raises_status(*grpc.StatusCode) as caught:
        for _ in call:
            pass
    return caught.error


def assert_lost(error, stage):
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error.details()
    detail = harness.error_detail(error)
    assert detail.retryable
    assert "worker" in error.details() and f"stage {stage}" in error.details(), error.details()
    assert "\n" not in error.details()


def replace(cluster, stage):
    cluster.workers[stage] = cluster.start_worker(stage)
    cluster.wait_serving()


def assert_out_of_service(cluster):
    """What works while a stage is missing, and what does not."""
    client = cluster.client
    harness.wait_until(lambda: not client.serving(), "health is NOT_SERVING", 2)
    assert not client.serving("millrace.v1.Inference")
    load = client.load()
    assert (load.running_requests, load.queued_requests, load.kv_blocks_used) == (0, 0, 0)
    info = client.server_info()
    assert info.state != info.STATE_SERVING and info.state_detail
    began = time.monotonic()
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE) as caught:
        client.generate(**MESSAGE)
    assert time.monotonic() - began < 2
    assert harness.error_detail(caught.error).retryable


@pytest.mark.parametrize("stage", range(STAGES))
def test_kill_9_in_mid_stream(cluster, expected, stage):
    calls = endless(cluster.client, 4)
    epoch = cluster.client.load().epoch
    cluster.kill_worker(stage)
    began = time.monotonic()
    for call in calls:
        assert_lost(end_of(call), stage)
    assert time.monotonic() - began < 2
    assert_out_of_service(cluster)
    replace(cluster, stage)
    harness.wait_until(lambda: cluster.client.load().epoch > epoch, "the next epoch shows", 2)
    assert cluster.client.generate(**MESSAGE).bits() == expected


def test_kill_9_while_idle(cluster, expected):
    cluster.kill_worker(1)
    assert_out_of_service(cluster)
    replace(cluster, 1)
    assert cluster.client.generate(**MESSAGE).bits() == expected


def test_a_worker_that_hangs_is_lost_after_the_worker_timeout(cluster, expected):
    calls = endless(cluster.client, 2)
    process = cluster.kill_worker(1, signal.SIGSTOP)
    began = time.monotonic()
    try:
        for call in calls:
            assert_lost(end_of(call), 1)
        assert 1 < time.monotonic() - began < 4
        assert_out_of_service(cluster)
        replace(cluster, 1)
        assert cluster.client.generate(**MESSAGE).bits() == expected
    finally:
        process.send(signal.SIGCONT)
    # Back from the dead, it finds its place taken and ends; what it still sends changes nothing.
    process.wait(20)
    assert cluster.client.generate(**MESSAGE).bits() == expected


def test_a_worker_that_is_asked_to_stop_leaves_in_order(cluster, expected):
    process = cluster.workers[2]
    cluster.killed.add(process)
    assert process.stop() == 0
    assert_out_of_service(cluster)
    replace(cluster, 2)
    assert cluster.client.generate(**MESSAGE).bits() == expected


def test_a_spare_takes_the_place_without_being_asked(cluster, expected):
    spare = cluster.start_worker()
    calls = endless(cluster.client)
    cluster.kill_worker(0)
    assert_lost(end_of(calls[0]), 0)
    cluster.wait_serving()
    assert spare.running()
    cluster.workers[0] = spare
    assert cluster.client.generate(**MESSAGE).bits() == expected


def test_all_workers_at_once(cluster, expected):
    calls = endless(cluster.client, 2)
    for stage in range(STAGES):
        cluster.kill_worker(stage)
    for call in calls:
        assert end_of(call).code() == grpc.StatusCode.UNAVAILABLE
    assert_out_of_service(cluster)
    for stage in reversed(range(STAGES)):
        cluster.workers[stage] = cluster.start_worker(stage)
    cluster.wait_serving()
    assert cluster.client.generate(**MESSAGE).bits() == expected


def test_workers_end_when_the_coordinator_is_gone(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"))
    cluster.coordinator.send(signal.SIGKILL)
    for worker in cluster.workers:
        assert worker.wait(10) == 4
        last = worker.err.splitlines()[-1]
        assert f"coordinator {cluster.address} is gone" in last, worker.err


def test_workers_end_when_the_coordinator_is_silent(random_model, start_cluster):
    cluster = start_cluster(random_model("f32", context=100000), stages=1, worker=["--coordinator-timeout", "4s"])
    call = endless(cluster.client)[0]
    cluster.coordinator.send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        worker = cluster.workers[0]
        assert worker.wait(20) == 4
        assert 3 < time.monotonic() - began < 15
        lines = [line for line in worker.err.splitlines() if "error" in line]
        assert len(lines) == 1 and "silent for 4s (--coordinator-timeout)" in lines[0], worker.err
    finally:
        cluster.coordinator.send(signal.SIGCONT)
    assert end_of(call).code() == grpc.StatusCode.UNAVAILABLE
    cluster.killed.update(cluster.processes[1:])
    cluster.stop()


def alive(pid):
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# The shell's own lines are "name=value"; the programs print where they listen.
PARENT = """
"$1/millrace-coordinator" --model "$2" --listen 127.0.0.1:0 --status-file "$3" --die-with-parent --grace 60s &
echo "coordinator=$!"
while ! [ -e "$3" ]; do sleep 0.02; done
address=$(sed 's/.*"listen": "\\([^"]*\\)".*/\\1/' "$3")
echo "address=$address"
"$1/millrace-worker" --coordinator "$address" --die-with-parent &
echo "worker=$!"
"$1/millrace" --die-with-parent status --server "$address" --watch &
echo "watch=$!"
wait
"""


def test_nothing_is_left_when_the_parent_is_killed(random_model, logs):
    """--die-with-parent, with a request that would go on for ever and a grace time that would let it."""
    model = random_model("f32", context=100000)
    shell = harness.Process("shell", ["sh", "-c", PARENT, "sh", harness.BIN, model, logs / "parent.json"], logs)
    client, pids = None, []
    try:
        shell.wait_for_line("^watch=")
        said = dict(re.findall(r"^(coordinator|worker|watch|address)=(.+)$", shell.out, re.MULTILINE))
        pids = [int(said[name]) for name in ("coordinator", "worker", "watch")]
        client = harness.Client(said["address"])
        client.wait_serving()
        call = endless(client)[0]
        shell.send(signal.SIGKILL)
        began = time.monotonic()
        harness.wait_until(lambda: not any(alive(pid) for pid in pids), "all have ended", 20)
        assert time.monotonic() - began < 6
        assert end_of(call).code() == grpc.StatusCode.UNAVAILABLE
        assert "the parent process has ended" in shell.err
    finally:
        if client:
            client.close()
        shell.close()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_sigterm_lets_a_running_request_finish(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"), coordinator=["--grace", "20s"])
    call = cluster.client.stream(harness.request([5, 6], 400, harness.GREEDY, NO_END))
    assert next(call).WhichOneof("event") == "started"
    cluster.coordinator.send(signal.SIGTERM)
    answer = harness.Answer(started=True)
    assert len(harness.collect(call, answer).ids) == 400
    cluster.stop()


def test_sigterm_ends_what_does_not_finish_in_time(random_model, start_cluster):
    cluster = start_cluster(random_model("f32", context=100000), coordinator=["--grace", "1s"])
    call = endless(cluster.client)[0]
    began = time.monotonic()
    cluster.coordinator.send(signal.SIGTERM)
    error = end_of(call)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert harness.error_detail(error).retryable
    assert 0.5 < time.monotonic() - began < 4
    cluster.stop()
