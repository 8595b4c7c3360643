"""The chart's own output, run for real: pods in namespaces, with everything Kubernetes would do to them played by pod_runner.

The tests of a file run in its order, and those with `cluster` share one installation, which each leaves ready.
"""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

from pod_runner.cluster import Cluster, is_hook, load
from pod_runner.container import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MILLRACE_BIN", ROOT / "build" / "bin"))
PROGRAMS = ("millrace", "millrace-coordinator", "millrace-worker")
# Of the model's golden cases; tokens after a choice as narrow as this may differ.
MARGIN = 0.05
# Requests take well under a second on a quiet machine; where everything is slow, they must still end within the drain.
DRAIN, SHUTDOWN, GRACE = 12, 2, 15
# A restarted coordinator refuses from its drain until its workers have joined again and a token went round: the longest that a
# client may have to try again. The limit is generous for a busy machine of two cores; what was measured is printed.
RETRYABLE_WINDOW = 45.0
PATIENCE = 60.0


def values(model, **more):
    """Short periods, so that the tests are; everything else is the chart's."""
    return {**more, "model": {"path": model.name, "hostPath": str(model.parent)}, "serving": {"activations": "f32"},
            "probes": {"periodSeconds": 1, "timeoutSeconds": 1},
            "drain": {"waitSeconds": DRAIN, "shutdownSeconds": SHUTDOWN}, "terminationGracePeriodSeconds": GRACE,
            "worker": {"extraArgs": ["--threads=1", "--profile=off"]}}


def render(folder, model, **more):
    helm = subprocess.run([ROOT / "tests" / "k8s" / "get_tools.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values(model, **more)))
    return subprocess.run([f"{helm}/helm", "template", "m", ROOT / "k8s" / "millrace", "--values", file], check=True,
                          stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def objects(tmp_path_factory, real_model):
    return load(render(tmp_path_factory.mktemp("chart"), real_model))


IMAGE = Image(programs=tuple((name, str(BIN / name)) for name in PROGRAMS), folders=(("/var/cache/millrace", 65532),))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, objects):
    """The chart, installed."""
    begun = time.monotonic()
    with Cluster(tmp_path_factory.mktemp("cluster"), image=lambda reference: IMAGE) as running:
        running.apply(objects)
        running.wait_rolled_out(PATIENCE)
        print(f"installed: all pods ready after {time.monotonic() - begun:.1f} s")
        yield running


def until_narrow(case, most):
    """The golden tokens up to the first choice that may fall either way."""
    wide = next((index for index, margin in enumerate(case["margin"]) if margin < MARGIN), len(case["greedy"]))
    return case["greedy"][:min(wide, most)]


def component(cluster, name):
    return [pod for pod in cluster.pods(app_kubernetes_io_component=name) if not pod.deleting]


def coordinator(cluster):
    pod, = component(cluster, "coordinator")
    return pod


def worker_of(cluster, stage):
    pod, = [pod for pod in component(cluster, "worker") if pod.labels["apps.kubernetes.io/pod-index"] == str(stage)]
    return pod


def pod_object(name, command, labels=None, namespace="default", **spec):
    """A pod of one container `main`; `spec` goes to the container, except `pod`, which goes to the pod."""
    pod = spec.pop("pod", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels or {"app": name}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "any", "command": command, **spec}], **pod}}


def events_of(cluster, pod, *kinds):
    return [event for event in cluster.happened(pod.name) if event.what in kinds]


def check_golden_tokens(cluster, case, flags=(), **container):
    """What a client in the cluster gets through the Service. `flags`: further ones of `millrace`; `container`: see pod_object."""
    tokens = until_narrow(case, 16)
    assert len(tokens) >= 5
    succeeded, output = cluster.run_pod(pod_object("client", [
        "millrace", "generate", "--server=m-millrace:50051", "--json", f"--max-tokens={len(tokens)}", "--temperature=0", "--timeout=30s",
        *flags, case["text"]], **container))
    assert succeeded, output
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [token for event in events for token in event.get("tokens", {}).get("token_ids", ())] == tokens


def run_helm_test(cluster, objects):
    hook, = [obj for obj in objects if is_hook(obj)]
    succeeded, output = cluster.run_pod(hook)
    assert succeeded and " 1 generated" in output, output


def test_generate_through_the_service_gives_the_golden_tokens(cluster, golden):
    check_golden_tokens(cluster, golden["capital"])


def test_helm_test_passes(cluster, objects):
    run_helm_test(cluster, objects)


def test_network_policies_let_through_what_they_name(cluster):
    """Each path is tried from inside a pod; what is not named is refused."""
    sleep = ["sleep", "1000"]
    inside = cluster.start_pod(pod_object("neighbour", sleep))
    monitoring = cluster.start_pod(pod_object("prometheus", sleep, namespace="monitoring"))
    cluster.wait(lambda: inside.ready and monitoring.ready, "the pods run")
    worker = worker_of(cluster, 0)

    def connects(pod, address, port):
        return cluster.execute(pod, ["bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"])[0] == 0
    ports = {"client": 50051, "cluster": 50052, "metrics": 9090}
    paths = {"neighbour": inside, "monitoring": monitoring, "worker": worker}
    open_paths = {(source, name) for source, pod in paths.items() for name, port in ports.items()
                  if connects(pod, coordinator(cluster).address, port)}
    assert open_paths == {("neighbour", "client"), ("monitoring", "metrics"), ("worker", "client"), ("worker", "cluster")}
    assert connects(coordinator(cluster), worker.address, 50054)
    assert not connects(inside, worker.address, 50054), "hops are for the ring"
    assert not connects(worker, monitoring.address, 22) and connects(inside, "m-millrace", 50051)
    for pod in (inside, monitoring):
        cluster.delete_pod(pod, 0)


def test_containers_are_confined_as_the_chart_says(cluster):
    for pod in (coordinator(cluster), *component(cluster, "worker")):
        shell = lambda text: cluster.execute(pod, ["/bin/sh", "-c", text])  # noqa: E731, B023
        assert shell("id -u; hostname; cat /proc/1/comm")[1].split() == ["65532", pod.name, pod.life().container.command[0][15:30]]
        code, output = shell("touch /usr/local/bin/x /models/x /etc/x /x")
        assert code != 0 and output.count("Read-only file system") == 4, output
        assert shell("touch /tmp/x && rm /tmp/x")[0] == 0
        status = dict(line.split(":\t", 1) for line in (pathlib.Path("/proc") / str(pod.life().container.pid) / "status").read_text().splitlines())
        assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")


def test_names_of_services_and_pods_resolve(cluster):
    pod = coordinator(cluster)
    for index in range(2):
        worker = worker_of(cluster, index)
        code, output = cluster.execute(pod, ["getent", "ahostsv4", f"{worker.name}.m-millrace-worker"])
        assert code == 0 and output.split()[0] == worker.address, output
    code, output = cluster.execute(pod, ["getent", "ahostsv4", "m-millrace-coordinator.default.svc.cluster.local"])
    assert output.split()[0] == pod.address
    assert cluster.execute(pod, ["getent", "hosts", "no-such-service"])[0] != 0


SHELL = """
trap 'echo told to end >/dev/termination-log; echo term' TERM
while :; do sleep 0.05; done
"""


def test_the_order_in_which_a_pod_lives_and_ends(cluster):
    """What the runner plays, seen at a pod of our own: init container, probes, restart by liveness, preStop, SIGTERM, grace, SIGKILL."""
    volume = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    pod = cluster.start_pod(pod_object(
        "order", ["/bin/sh", "-c", SHELL], **volume,
        env=[{"name": "WHERE", "value": "/data"}], args=["$(WHERE)"],
        startupProbe={"exec": {"command": ["test", "-e", "/data/init"]}, "periodSeconds": 1},
        livenessProbe={"exec": {"command": ["test", "!", "-e", "/data/bad"]}, "periodSeconds": 1, "failureThreshold": 2,
                       "terminationGracePeriodSeconds": 1},
        readinessProbe={"exec": {"command": ["test", "-e", "/data/ready"]}, "periodSeconds": 1},
        lifecycle={"preStop": {"exec": {"command": ["/bin/sh", "-c", "rm -f /data/bad; echo said goodbye"]}}},
        pod={"restartPolicy": "Always", "terminationGracePeriodSeconds": 3, "volumes": [{"name": "data", "emptyDir": {}}],
             "initContainers": [{"name": "init", "image": "any", "command": ["touch", "/data/init"], **volume}]}))
    cluster.wait(lambda: len(pod.lives) == 1 and pod.life().name == "main" and pod.life().started, "the startup probe succeeded")
    assert not pod.ready
    assert cluster.execute(pod, ["touch", "/data/ready"]) == (0, "")
    cluster.wait(lambda: pod.ready, "the readiness probe succeeded")
    cluster.execute(pod, ["touch", "/data/bad"])
    cluster.wait(lambda: pod.life().restarts == 1 and pod.ready, "the liveness probe failed and the container is ready again")
    cluster.delete_pod(pod)
    cluster.wait(pod.gone.is_set, "the pod is gone")
    order = [event.what for event in events_of(cluster, pod, "Started", "Unhealthy", "Deleted", "preStop", "preStop ended", "SIGTERM", "SIGKILL",
                                               "Exited", "Gone")]
    ending = ["preStop", "preStop ended", "SIGTERM", "SIGKILL", "Exited"]
    assert order == ["Started", "Exited", "Started", "Unhealthy", *ending, "Started", "Deleted", *ending, "Gone"]
    deleted, = events_of(cluster, pod, "Deleted")
    killed = events_of(cluster, pod, "SIGKILL")[-1]
    assert 3.0 <= killed.at - deleted.at < 6.0, "the grace period counts from the deletion, with preStop in it"
    assert events_of(cluster, pod, "Exited")[-1].detail == "code 137: told to end"
    assert "exit code 0: said goodbye" in events_of(cluster, pod, "preStop ended")[-1].detail


def test_a_stopped_worker_is_noticed_and_replaced(cluster):
    """SIGSTOP: the others stay alive, the coordinator is not ready, the kubelet restarts the worker when its liveness probe fails;
    the new one takes its place."""
    worker = worker_of(cluster, 1)
    others = [coordinator(cluster), worker_of(cluster, 0)]
    before = {pod.name: pod.life().restarts for pod in others}
    first = len(cluster.events)
    worker.life().container.signal(signal.SIGSTOP)
    cluster.wait(lambda: not others[0].ready, "the coordinator is not ready")
    cluster.wait(lambda: worker.life().restarts == 1, "the stopped worker was restarted")
    cluster.wait_rolled_out(PATIENCE)
    events = cluster.events[first:]
    assert {pod.name: pod.life().restarts for pod in others} == before, "a peer's loss restarts nobody else"
    assert not [event for event in events if event.what == "liveness probe failed" and event.pod != worker.name]
    order = [event for event in events if event.pod == worker.name and event.what in ("Unhealthy", "SIGTERM", "SIGKILL", "Exited", "Ready")]
    assert [event.what for event in order] == ["Unhealthy", "SIGTERM", "SIGKILL", "Exited", "Ready"]
    assert SHUTDOWN + 5 <= order[2].at - order[0].at < GRACE, "a stopped process is killed, and not waited for as long as one that drains"


class Load:
    """Clients in a pod that ask for golden answers all the time."""

    def __init__(self, cluster, protos, golden, streams):
        self.cluster = cluster
        cases = [{"ids": golden[name]["ids"], "tokens": until_narrow(golden[name], 8)} for name in ("capital", "list", "one_token")]
        environment = pathlib.Path(sys.prefix)
        folders = {"env": environment, "protos": protos, "tests": ROOT / "tests"}
        self.pod = cluster.start_pod(pod_object(
            "load", ["/env/bin/python", "-B", "/tests/k8s/load_client.py", "m-millrace:50051", str(streams), json.dumps(cases)],
            # Without a call that waits, gRPC's Python looks only every 5 s whether it is connected again.
            env=[{"name": "PYTHONPATH", "value": "/protos:/tests/e2e"},
                 {"name": "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "value": "100"}],
            volumeMounts=[{"name": name, "mountPath": f"/{name}", "readOnly": True} for name in folders],
            pod={"terminationGracePeriodSeconds": 60,
                 "volumes": [{"name": name, "hostPath": {"path": str(path)}} for name, path in folders.items()]}))

    def attempts(self):
        lines = [line for path in self.cluster.logs(self.pod) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}") and '"done"' not in line]

    def wait_for_answers(self, count):
        """Returns when so many more requests were answered."""
        def answered():
            assert self.pod.phase in ("Pending", "Running") and not self.pod.failure, f"the clients ended\n{self.cluster.report()}"
            return sum(attempt["code"] == "OK" for attempt in self.attempts())
        begun = answered()
        self.cluster.wait(lambda: answered() >= begun + count, f"{count} more answers", PATIENCE)

    def stop(self):
        """Lets what was begun end, and returns all attempts."""
        self.cluster.delete_pod(self.pod)
        self.cluster.wait(self.pod.gone.is_set, "the load pod is gone", PATIENCE)
        assert self.pod.life().exit_code == 0, "the clients ended by themselves"
        return self.attempts()


@contextlib.contextmanager
def load_on(cluster, protos, golden, streams=3):
    load = Load(cluster, protos, golden, streams)
    try:
        load.wait_for_answers(2 * streams)
        yield load
    finally:
        if not load.pod.gone.is_set():
            cluster.delete_pod(load.pod)


def longest_pause(attempts):
    ends = sorted(attempt["end"] for attempt in attempts if attempt["code"] == "OK")
    return max(later - earlier for earlier, later in zip(ends, ends[1:]))


def test_rolling_restart_of_workers_fails_no_request(cluster, objects, protos, golden):
    before = {pod.name: pod.uid for pod in component(cluster, "worker")}
    with load_on(cluster, protos, golden) as load:
        begun = time.monotonic()
        cluster.rollout_restart("StatefulSet", *[obj["metadata"]["name"] for obj in objects if obj["kind"] == "StatefulSet"])
        cluster.wait(lambda: cluster.rolled_out() and coordinator(cluster).ready, "the workers are new and ready", PATIENCE)
        took = time.monotonic() - begun
        load.wait_for_answers(6)
        attempts = load.stop()
    after = {pod.name: pod.uid for pod in component(cluster, "worker")}
    assert set(after) == set(before) and not set(after.values()) & set(before.values()), "each worker pod was replaced under its name"
    wrong = [attempt for attempt in attempts if not attempt["right"]]
    assert not wrong, f"{len(wrong)} of {len(attempts)} requests: {wrong[:5]}"
    print(f"workers restarted one after the other in {took:.1f} s under load: {len(attempts)} requests, none failed, none was refused; "
          f"longest time between two answers {longest_pause(attempts):.1f} s")


def test_restart_of_the_coordinator_refuses_only_for_a_while(cluster, protos, golden):
    before = coordinator(cluster)
    with load_on(cluster, protos, golden) as load:
        cluster.rollout_restart("Deployment", "m-millrace-coordinator")
        cluster.wait(lambda: before.gone.is_set() and cluster.rolled_out(), "the coordinator is new and everything ready", PATIENCE)
        load.wait_for_answers(6)
        attempts = load.stop()
    deleted, = events_of(cluster, before, "Deleted")
    refused = [attempt for attempt in attempts if attempt["retryable"]]
    wrong = [attempt for attempt in attempts if not attempt["right"] and not attempt["retryable"]]
    assert not wrong, f"{len(wrong)} of {len(attempts)} requests failed for good: {wrong[:5]}"
    assert refused, "a coordinator that drains refuses"
    window = max(attempt["end"] for attempt in refused) - min(attempt["begin"] for attempt in refused)
    assert min(attempt["begin"] for attempt in refused) >= deleted.at - 0.5, "nothing is refused before the restart"
    assert window < RETRYABLE_WINDOW
    reasons = sorted({attempt["reason"].split(":")[0] for attempt in refused})
    print(f"coordinator restarted under load: {len(attempts)} attempts, 0 failed, {len(refused)} refused with UNAVAILABLE ({', '.join(reasons)}) "
          f"within {window:.1f} s; longest time between two answers {longest_pause(attempts):.1f} s")


def container_processes(cluster):
    """Processes in namespaces of pods: {pid: command}."""
    inodes = {os.fstat(pod.namespace).st_ino for pod in cluster.pod_list() if pod.namespace is not None}
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "ns" / "net").stat().st_ino in inodes:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def test_uninstall_leaves_nothing(cluster):
    mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    processes = container_processes(cluster)
    assert len([command for command in processes.values() if "millrace-" in command]) >= 3
    assert not [line for line in mounts if str(cluster.folder) in line], "mounts of pods are in their namespaces alone"
    cluster.uninstall()
    cluster.wait(lambda: not [pid for pid in processes if pathlib.Path(f"/proc/{pid}").exists()], "no process is left")
    assert list((cluster.folder / "pods").iterdir()) == []


def test_a_leader_worker_set_serves(tmp_path, real_model, golden):
    """`mode: lws`: the coordinator and stage 0 share the leader's pod."""
    rendered = load(render(tmp_path, real_model, mode="lws"))
    with Cluster(tmp_path / "cluster", image=lambda reference: IMAGE, backoff=1.0) as lws:
        lws.apply(rendered)
        lws.wait_rolled_out(PATIENCE)
        assert sorted((pod.name, len(pod.lives)) for pod in lws.pod_list()) == [("m-millrace-group-0", 2), ("m-millrace-group-0-1", 1)]
        check_golden_tokens(lws, golden["capital"])
        run_helm_test(lws, rendered)


RUNNER = """
import sys
from pod_runner.cluster import Cluster
cluster = Cluster(sys.argv[1])
pod = cluster.start_pod({"kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [
    {"name": "main", "image": "any", "command": ["sleep", "1000"]}]}})
cluster.wait(lambda: pod.ready, "it runs")
print(pod.life().container.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_runner_leaves_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", RUNNER, tmp_path / "c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          cwd=ROOT / "tests" / "k8s") as runner:
        pid = int(runner.stdout.readline())
        assert pathlib.Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
        runner.kill()
    deadline = time.monotonic() + PATIENCE
    while pathlib.Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the container outlives its runner"
        time.sleep(0.02)
