"""Processes that leave on purpose: nobody who was accepted sees an error, and nobody is accepted in vain."""
import signal
import subprocess
import threading
import time

import grpc
import pytest
from google.protobuf import duration_pb2
from millrace.v1 import control_pb2

import harness

NO_END = {"ignore_eos": True}
MESSAGE = dict(prompt=[11, 12, 13], max_tokens=16, sampling=harness.GREEDY, stop=NO_END, logprobs=1)


def millrace(cluster, command, *args, **popen):
    return subprocess.Popen([str(harness.BIN / "millrace"), command, "--server", cluster.address, *[str(a) for a in args]],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def drain(client, wait, **fields):
    request = control_pb2.DrainRequest(wait=duration_pb2.Duration(seconds=wait), **fields)
    return client.control.Drain(request, timeout=harness.PATIENCE)


def begun(client, message):
    """A stream past its first token, whose request therefore runs."""
    call = client.stream(message, timeout=harness.PATIENCE * 3)
    answer = harness.Answer()
    for event in call:
        if event.WhichOneof("event") == "started":
            answer.started = event.started
        if event.tokens.token_ids:
            answer.ids += event.tokens.token_ids
            return call, answer
    raise AssertionError("the stream ended before its first token")


class Load:
    """Clients that call one after another until told to stop, and what came of it."""

    def __init__(self, address, count, **message):
        self.answers, self.errors = 0, []
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._clients = [harness.Client(address) for _ in range(count)]
        self._threads = [threading.Thread(target=self._run, args=(client, message)) for client in self._clients]
        for thread in self._threads:
            thread.start()

    def _run(self, client, message):
        while not self._stop.is_set():
            try:
                bits = client.generate(**message).bits()
            except (grpc.RpcError, AssertionError) as error:
                with self._lock:
                    self.errors.append(error)
                return
            with self._lock:
                self.answers += 1
                self.bits = bits

    def wait_for(self, more):
        goal = self.answers + more
        harness.wait_until(lambda: self.errors or self.answers >= goal, f"{more} more answers")

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()


def test_the_coordinator_finishes_what_runs_and_refuses_what_comes(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"))
    client = cluster.client
    calls = [begun(client, harness.request([5 + i, 6], 300, harness.GREEDY, NO_END)) for i in range(4)]
    first = drain(client, 0)
    assert not first.finished and first.remaining_requests == 4
    began = time.monotonic()
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE) as caught:
        client.generate(**MESSAGE)
    assert time.monotonic() - began < 2
    detail = harness.error_detail(caught.error)
    assert (detail.reason, detail.retryable, detail.retry_after.seconds) == ("DRAINING", True, 1)
    assert not client.serving() and not client.serving("millrace.v1.Inference")
    status = millrace(cluster, "status")
    assert "draining: " in status.communicate()[0] and status.returncode == 0
    # It waits, as a preStop hook does, for as long as something runs.
    waiting = millrace(cluster, "drain", "--wait", "60s")
    for call, answer in calls:
        assert len(harness.collect(call, answer).ids) == 300
    out, err = waiting.communicate(timeout=harness.PATIENCE)
    assert waiting.returncode == 0 and "is drained" in out and not err, (out, err)
    load = client.load()
    assert (load.running_requests, load.queued_requests) == (0, 0)
    # Once drained it stays so, says so again, and still refuses.
    assert drain(client, 0).finished
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE):
        client.generate(**MESSAGE)
    assert client.server_info().state == client.server_info().STATE_DRAINING
    cluster.stop()


@pytest.fixture(scope="module")
def cluster(random_model, logs):
    with harness.Cluster(random_model("q4_1", context=32768), logs, stages=2) as it:
        yield it


def test_workers_are_replaced_one_by_one_under_load(cluster):
    expected = cluster.client.generate(**MESSAGE).bits()
    failed = cluster.client.load().requests_failed_total
    load = Load(cluster.address, 4, **MESSAGE)
    try:
        load.wait_for(4)
        for stage in (1, 0):
            epoch = cluster.client.load().epoch
            leaving = cluster.workers[stage]
            # As a kubelet does: the preStop hook to its end, then SIGTERM, then a new pod.
            hook = millrace(cluster, "drain", "--stage", stage)
            out, err = hook.communicate(timeout=harness.PATIENCE)
            assert hook.returncode == 0 and f"stage {stage}" in out, (out, err)
            assert cluster.client.serving()
            cluster.killed.add(leaving)
            assert leaving.stop() == 0
            harness.wait_until(lambda: cluster.client.load().queued_requests == 4, "requests are held")
            assert cluster.client.load().running_requests == 0
            assert cluster.client.serving(), "readiness was taken back although nobody is refused"
            assert "takes the place" in cluster.client.server_info().state_detail
            cluster.workers[stage] = cluster.start_worker(stage)
            load.wait_for(8)
            assert cluster.client.load().epoch > epoch
            assert cluster.client.serving()
    finally:
        load.stop()
    assert not load.errors, load.errors[0]
    assert load.bits == expected
    assert cluster.client.load().requests_failed_total == failed
    cluster.client.wait_idle()


def test_a_stage_that_is_not_left_serves_on(cluster):
    """The wait ends before a request does: the answer says so. The worker stays, and after its time the queue runs."""
    call, answer = begun(cluster.client, harness.request([5, 6], None, harness.GREEDY, NO_END))
    hook = millrace(cluster, "drain", "--stage", 1, "--wait", "100ms")
    out, err = hook.communicate(timeout=harness.PATIENCE)
    assert hook.returncode == 1 and "1 requests are still running" in err and len(err.splitlines()) == 1, (out, err)
    queued = cluster.client.stream(harness.request(**MESSAGE))
    harness.wait_until(lambda: cluster.client.load().queued_requests == 1, "the second request is held")
    call.cancel()
    # Now it may go, and says so to who asks again; the other is held for it.
    assert drain(cluster.client, 10, stage=1).finished
    assert cluster.client.load().queued_requests == 1
    # It goes without another in its place: the time stated by --replacement-wait is not over when one comes.
    process = cluster.workers[1]
    cluster.killed.add(process)
    assert process.stop() == 0
    cluster.workers[1] = cluster.start_worker(1)
    assert len(harness.collect(queued).ids) == 16
    with harness.raises_status(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        drain(cluster.client, 1, stage=2)
    assert "there is no stage 2" in caught.error.details()


def test_readiness_after_a_loss_means_a_token_went_round(cluster):
    """A worker that is killed without a drain: refused until another is there; ready only when the new ring has turned."""
    killed = cluster.kill_worker(0, signal.SIGKILL)
    killed.wait()
    harness.wait_until(lambda: not cluster.client.serving(), "health is NOT_SERVING")
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE) as caught:
        cluster.client.generate(**MESSAGE)
    assert harness.error_detail(caught.error).retryable
    rounds = cluster.coordinator.err.count("a token went round all stages")
    cluster.workers[0] = cluster.start_worker(0)
    cluster.wait_serving()
    assert cluster.coordinator.err.count("a token went round all stages") == rounds + 1
    # Of no request: nothing of it shows where requests are counted.
    load = cluster.client.load()
    assert [stage.microbatches for stage in load.stages] == [0, 0]
    assert load.kv_blocks_cached == 0
    assert cluster.client.generate(**MESSAGE).bits()


def test_no_replacement_in_time_is_said(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"), stages=1, coordinator=["--replacement-wait", "500ms"])
    assert drain(cluster.client, 10, stage=0).finished
    cluster.killed.add(cluster.workers[0])
    assert cluster.workers[0].stop() == 0
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE) as caught:
        cluster.client.generate(**MESSAGE)
    detail = harness.error_detail(caught.error)
    assert detail.reason in ("NO_REPLACEMENT", "PIPELINE_UNAVAILABLE") and detail.retryable
    harness.wait_until(lambda: not cluster.client.serving(), "health is NOT_SERVING")
    cluster.stop()
