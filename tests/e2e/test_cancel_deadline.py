"""A client that goes away, or whose time is up, frees everything at once, whatever its request was doing."""
import time

import grpc
import pytest

import harness
from millrace.v1 import control_pb2

NO_END = {"ignore_eos": True}
PHASES = ("queued", "prefill", "decode")


@pytest.fixture(scope="module")
def cluster(real_model, logs):
    # Small steps, so that a long prompt is in prefill for seconds; one request at a time, so that the second one waits.
    with harness.Cluster(real_model, logs, stages=2, coordinator=["--max-rows", 16, "--max-running", 1, "--activations", "f32"]) as it:
        yield it


@pytest.fixture
def client(cluster):
    yield cluster.client
    cluster.client.wait_idle()


class Request:
    """A request held in one phase of its life."""

    def __init__(self, client, phase, timeout=harness.PATIENCE):
        self.client, self.blocker = client, None
        if phase == "queued":
            self.blocker = client.stream(harness.request([7], 8000, harness.GREEDY, NO_END), timeout=harness.PATIENCE)
            self._until_token(self.blocker)
        prompt = [1000 + i % 40000 for i in range(4000)] if phase == "prefill" else [11, 12]
        self.began = time.monotonic()
        self.call = client.stream(harness.request(prompt, 8000, harness.GREEDY, NO_END, request_id="held"), timeout=timeout)
        assert next(self.call).WhichOneof("event") == "started"
        if phase == "queued":
            harness.wait_until(lambda: client.load().queued_requests == 1, "it is queued", 5)
        if phase == "prefill":
            harness.wait_until(lambda: client.load().kv_blocks_used > 0, "prefill has begun")
        if phase == "decode":
            self._until_token(self.call)

    @staticmethod
    def _until_token(call):
        for event in call:
            if event.WhichOneof("event") == "tokens":
                return

    def drain(self):
        """Reads on to the end; the tokens that came."""
        count = 0
        try:
            for event in self.call:
                count += len(event.tokens.token_ids)
        except grpc.RpcError as error:
            return count, error
        raise AssertionError("the stream ended with OK")

    def assert_freed(self):
        """Nothing of it is left; the one that it waited behind is none the worse."""
        if self.blocker is not None:
            harness.wait_until(lambda: self.client.load().queued_requests == 0, "the queue is empty", 5)
            assert self.client.load().running_requests == 1
            self._until_token(self.blocker)
            self.blocker.cancel()
        self.client.wait_idle(5)


@pytest.mark.parametrize("phase", PHASES)
def test_cancel(client, phase):
    held = Request(client, phase)
    held.call.cancel()
    began = time.monotonic()
    held.assert_freed()
    assert time.monotonic() - began < 2
    assert held.call.code() == grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("phase", PHASES)
def test_abort_by_request_id(client, phase):
    held = Request(client, phase)
    assert list(client.control.Abort(control_pb2.AbortRequest(request_ids=["held", "nobody"]), timeout=5).aborted_ids) == ["held"]
    count, error = held.drain()
    assert error.code() == grpc.StatusCode.CANCELLED
    assert harness.error_detail(error).reason
    held.assert_freed()


@pytest.mark.parametrize("phase", PHASES)
def test_deadline(client, phase):
    # Long enough to reach the phase, short enough not to leave it.
    held = Request(client, phase, timeout=3)
    count, error = held.drain()
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert 2.5 < time.monotonic() - held.began < 4.5
    if phase != "decode":
        assert count == 0
    held.assert_freed()


def test_abort_all(client):
    held = Request(client, "queued")
    aborted = client.control.Abort(control_pb2.AbortRequest(all=True), timeout=5).aborted_ids
    assert len(aborted) == 2 and "held" in aborted
    assert held.drain()[1].code() == grpc.StatusCode.CANCELLED
    client.wait_idle(5)


def test_abort_of_nothing_named_is_refused(client):
    with harness.raises_status(grpc.StatusCode.INVALID_ARGUMENT):
        client.control.Abort(control_pb2.AbortRequest(), timeout=5)
    assert not client.control.Abort(control_pb2.AbortRequest(request_ids=["nobody"]), timeout=5).aborted_ids


def test_a_deadline_that_has_passed_already(client):
    with harness.raises_status(grpc.StatusCode.DEADLINE_EXCEEDED):
        harness.collect(client.stream(harness.request([5], 5, harness.GREEDY), timeout=0.001))


def test_a_client_whose_connection_breaks(cluster, client):
    """Not a cancellation but a closed socket: the same."""
    other = harness.Client(cluster.address)
    call = other.stream(harness.request([5, 6], 8000, harness.GREEDY, NO_END))
    Request._until_token(call)
    other.close()
    client.wait_idle(5)


def test_the_next_request_is_none_the_worse(client, golden):
    case = next(c for c in golden if c["name"] == "capital")
    for phase in PHASES:
        held = Request(client, phase)
        held.call.cancel()
        held.assert_freed()
        assert client.generate(case["ids"], 8, harness.GREEDY).ids == case["greedy"][:8]
