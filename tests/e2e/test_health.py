"""The health port: answers before the model is read, tells liveness, startup and readiness apart, and sees a loop that hangs."""
import re
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import harness
import one_thread

HEALTH = ["--health-listen", "127.0.0.1:0", "--liveness-timeout", "2s"]


def health_address(process):
    return process.wait_for_line(r"^health at (\S+:\d+)$").group(1)


def ask(address, service):
    """On a connection of its own, as a probe does."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def ask_all(address):
    return {service: ask(address, service) for service in ("liveness", "startup", "readiness", "")}


def wait_for(address, service, status):
    harness.wait_until(lambda: ask(address, service) == status, f"{service} of {address} is {status}")


@pytest.fixture(scope="module")
def cluster(random_model, logs):
    with harness.Cluster(random_model("f32"), logs, stages=2, coordinator=HEALTH, worker=HEALTH) as it:
        yield it


def test_answers_while_the_model_loads(real_model, logs):
    """The main thread is stopped between the line that names the port and the one that says it listens."""
    for _ in range(20):
        process = harness.Process("loading", [harness.BIN / "millrace-coordinator", "--model", real_model, "--listen",
                                              "127.0.0.1:0", *HEALTH], logs)
        try:
            address = health_address(process)
            with one_thread.StoppedThread(process.pid):
                if "listening on" in process.out:
                    continue  # it was faster
                assert ask_all(address) == {"liveness": "SERVING", "startup": "NOT_SERVING", "readiness": "NOT_SERVING",
                                            "": "NOT_SERVING"}
                with pytest.raises(grpc.RpcError) as caught:
                    ask(address, "no.such.Service")
                assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            wait_for(address, "startup", "SERVING")
            assert ask(address, "readiness") == "NOT_SERVING", "it has no worker"
            return
        finally:
            process.close()
    pytest.fail("the coordinator always had its model before it could be stopped")


def test_every_process_is_ready_once_it_serves(cluster):
    processes = [cluster.coordinator, *cluster.workers]
    for process in processes:
        address = health_address(process)
        wait_for(address, "readiness", "SERVING")
        assert set(ask_all(address).values()) == {"SERVING"}, process.name
    assert cluster.client.serving("readiness")


def test_the_client_says_it_by_its_exit_code(cluster):
    address = health_address(cluster.coordinator)
    assert harness.run_program("millrace", "health", "--server", address, "--service", "liveness") == (0, "SERVING\n", "")
    code, out, err = harness.run_program("millrace", "health", "--server", address, "--service", "nothing")
    assert (code, out) == (1, "") and err == f"millrace: NOT_FOUND: {address} has no health service 'nothing'\n"
    assert harness.run_program("millrace", "health", "--server", cluster.address)[0] == 0
    code, out, err = harness.run_program("millrace", "health", "--server", "127.0.0.1:1")
    assert (code, out) == (1, "") and re.fullmatch(r"millrace: UNAVAILABLE: .*\n", err)


@pytest.mark.parametrize("thread", ["engine", "cluster"])
def test_a_loop_that_hangs_is_not_alive(cluster, thread):
    address = health_address(cluster.coordinator)
    with one_thread.StoppedThread(one_thread.thread_named(cluster.coordinator.pid, thread)):
        wait_for(address, "liveness", "NOT_SERVING")
        assert ask(address, "startup") == "SERVING"
        for worker in cluster.workers:
            assert ask(health_address(worker), "liveness") == "SERVING", "liveness never depends on others"
    wait_for(address, "liveness", "SERVING")
    cluster.client.wait_serving()


def test_a_worker_that_hangs_is_not_alive(cluster):
    worker = cluster.workers[0]
    address = health_address(worker)
    with one_thread.StoppedThread(worker.pid):
        wait_for(address, "liveness", "NOT_SERVING")
    wait_for(address, "liveness", "SERVING")


def test_a_dead_worker_takes_readiness_but_not_liveness(cluster):
    address = health_address(cluster.coordinator)
    cluster.kill_worker(1, signal.SIGKILL)
    wait_for(address, "readiness", "NOT_SERVING")
    assert not cluster.client.serving("readiness")
    assert ask(address, "liveness") == "SERVING"
    assert ask(address, "startup") == "SERVING"
    cluster.workers[1] = cluster.start_worker(1)
    wait_for(address, "readiness", "SERVING")


def test_a_taken_port_is_named(cluster, random_model):
    address = health_address(cluster.coordinator)
    code, _, err = harness.run_program("millrace-coordinator", "--model", random_model("f32"), "--health-listen", address)
    assert code == 1 and f"cannot listen on --health-listen {address}: the port is in use" in err
