"""A worker that comes to a coordinator which is about to go waits for the next one instead of ending."""
import concurrent.futures
import signal

import grpc
import pytest

import harness

JOIN = "/millrace.v1.Cluster/Join"
AGAIN = "went before it took this worker; trying again"


class Coordinator(grpc.GenericRpcHandler):
    """Answers each Join, once the worker has said who it is, by one of `statuses`; the last one for good."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.joins = 0
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[self])
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(self.join) if details.method == JOIN else None

    def join(self, requests, context):
        next(requests)
        status = self.statuses[min(self.joins, len(self.statuses) - 1)]
        self.joins += 1
        context.abort(*status)
        yield b""


STOPPING = (grpc.StatusCode.UNAVAILABLE, "the coordinator is stopping")
OTHER_MODEL = (grpc.StatusCode.FAILED_PRECONDITION, "another model")


@pytest.fixture
def join(random_model, logs):
    """Starts a worker, with options, for a coordinator that answers so."""
    started = []

    def start(statuses, *options):
        coordinator = Coordinator(*statuses)
        worker = harness.Process("worker", [harness.BIN / "millrace-worker", "--coordinator", coordinator.address, "--model",
                                            random_model("f32"), *options], logs)
        started.extend([(coordinator.server, worker)])
        return coordinator, worker

    yield start
    for server, worker in started:
        worker.close()
        server.stop(None).wait(harness.PATIENCE)


def test_it_tries_again_until_one_takes_it_or_refuses_it(join):
    coordinator, worker = join([STOPPING, STOPPING, OTHER_MODEL])
    assert worker.wait() == 1
    assert coordinator.joins == 3
    assert worker.err.count(AGAIN) == 2
    assert worker.err.strip().splitlines()[-1].endswith("another model")


def test_it_gives_up_in_time(join):
    coordinator, worker = join([STOPPING], "--join-timeout", "2s")
    assert worker.wait() == 4
    assert coordinator.joins >= 2
    assert "is gone: the coordinator is stopping" in worker.err.strip().splitlines()[-1]


def test_it_can_be_stopped_meanwhile(join):
    _, worker = join([STOPPING])
    harness.wait_until(lambda: AGAIN in worker.err, "the worker tries again")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
