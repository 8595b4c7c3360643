"""The pod runner's own parts, without pods: what it computes must be what Kubernetes computes."""
import asyncio
import base64
import copy
import os
import socket
import struct
import subprocess
import sys
import threading
import types

import pytest

from pod_runner import controllers, dns, expand, lws, probes, rules, volumes
from pod_runner.expand import BadObject


@pytest.mark.parametrize("text, expected", [
    ("--stage=$(STAGE)", "--stage=1"), ("$(STAGE)$(NAME)", "1m"), ("$(UNKNOWN)", "$(UNKNOWN)"), ("$$(STAGE)", "$(STAGE)"),
    ("$$$(STAGE)", "$1"), ("$STAGE", "$STAGE"), ("$(STAGE", "$(STAGE"), ("a$$b", "a$b"), ("$()", "$()")])
def test_references_are_expanded(text, expected):
    assert expand.expand(text, {"STAGE": "1", "NAME": "m"}) == expected


POD = {"metadata": {"name": "m-0", "namespace": "n", "uid": "u", "labels": {"apps.kubernetes.io/pod-index": "3"}},
       "spec": {}, "status": {"podIP": "10.244.0.9", "hostIP": "10.244.0.1"}}


def test_environment_follows_the_order_of_kubernetes():
    container = {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "2Gi"}},
                 "envFrom": [{"configMapRef": {"name": "map"}, "prefix": "P_"}, {"secretRef": {"name": "none", "optional": True}}],
                 "env": [{"name": "INDEX", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}},
                         {"name": "STAGE", "value": "s$(INDEX)$(LATER)"}, {"name": "LATER", "value": "x"},
                         {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "k"}}},
                         {"name": "NOT", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "none", "optional": True}}},
                         {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                         {"name": "MIB", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]}
    data = {("ConfigMap", "map"): {"a": b"1"}, ("Secret", "secret"): {"k": b"v"}}
    env = expand.environment(container, POD, lambda *key: data.get(key), {"INDEX": "from the image"})
    assert env == {"INDEX": "3", "P_a": "1", "STAGE": "s3$(LATER)", "LATER": "x", "KEY": "v", "CPUS": "2", "MIB": "2048"}


@pytest.mark.parametrize("entry, message", [
    ({"secretKeyRef": {"name": "none", "key": "k"}}, "does not exist"),
    ({"configMapKeyRef": {"name": "map", "key": "none"}}, "has no key 'none'"),
    ({"fieldRef": {"fieldPath": "status.phase"}}, "no such field"),
])
def test_what_the_kubelet_refuses_is_refused(entry, message):
    with pytest.raises(BadObject, match=message):
        expand.environment({"name": "c", "env": [{"name": "X", "valueFrom": entry}]}, POD,
                           lambda *key: {("ConfigMap", "map"): {}}.get(key), {})


def test_command_replaces_the_entrypoint_and_args_its_arguments():
    image = (["/tini", "--"], ["help"])
    line = lambda **container: expand.command_line({"name": "c", **container}, image, {"A": "1"})  # noqa: E731
    assert line() == ["/tini", "--", "help"]
    assert line(args=["$(A)"]) == ["/tini", "--", "1"]
    assert line(command=["run"]) == ["run"]
    assert line(command=["run"], args=["$(A)"]) == ["run", "1"]
    with pytest.raises(BadObject, match="what to run"):
        expand.command_line({"name": "c"}, ([], []), {})


def test_service_variables_are_those_of_the_kubelet():
    env = expand.service_variables({"m-millrace": ("10.96.0.1", [("grpc", 50051, "TCP")])})
    assert env["M_MILLRACE_SERVICE_HOST"] == "10.96.0.1" and env["M_MILLRACE_PORT"] == "tcp://10.96.0.1:50051"
    assert env["M_MILLRACE_SERVICE_PORT"] == env["M_MILLRACE_SERVICE_PORT_GRPC"] == env["M_MILLRACE_PORT_50051_TCP_PORT"] == "50051"


def state(kind, **probe):
    return probes.ProbeState(probes.ProbeSpec.of(kind, {"exec": {"command": ["x"]}, **probe}))


def values(state_machine, results):
    out = []
    for result in results:
        state_machine.result(result == "+")
        out.append(state_machine.value)
    return out


def test_probes_change_at_their_thresholds():
    assert values(state("liveness"), "--+--") == [True] * 5, "two failures in a row are not three"
    assert values(state("liveness"), "---+") == [True, True, False, True]
    assert values(state("readiness"), "-+--" "-+") == [False, True, True, True, False, True]
    assert values(state("readiness", successThreshold=2, failureThreshold=1), "+-++-") == [False, False, False, True, False]
    assert values(state("startup", failureThreshold=2), "-+") == [False, True]
    begun = state("startup", failureThreshold=2)
    assert not begun.result(False) and begun.result(False) and not begun.value, "the second failure says that it failed"


def test_probe_defaults_and_errors():
    spec = probes.ProbeSpec.of("readiness", {"tcpSocket": {"port": 1}})
    assert (spec.period, spec.timeout, spec.failure_threshold, spec.success_threshold, spec.initial_delay) == (10, 1, 3, 1, 0)
    assert probes.ProbeSpec.of("startup", None) is None
    with pytest.raises(BadObject, match="successThreshold must be 1"):
        state("liveness", successThreshold=2)
    with pytest.raises(BadObject, match="2 actions"):
        probes.ProbeSpec.of("liveness", {"exec": {}, "grpc": {}})


class Local:
    """Stands for the network and the container of a probe: sockets of this process."""
    address = "127.0.0.1"
    network = property(lambda self: self)

    @staticmethod
    def socket():
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    @staticmethod
    def port(number):
        return number


@pytest.mark.parametrize("reply, good", [(b"\x00\x00\x00\x00\x02\x08\x01", True), (b"\x00\x00\x00\x00\x02\x08\x02", False),
                                         (b"\x00\x00\x00\x00\x00", False), (b"", False), (None, False)])
def test_grpc_probe_reads_what_a_server_says(reply, good):
    """None: the server accepts and stays silent."""
    server = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve():
        connection, _ = server.accept()
        with connection:
            received = b""
            while not received.endswith(b"\x0a\x04live"):
                received += connection.recv(4096)
            assert received.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") and b"/grpc.health.v1.Health/Check" in received
            if reply is not None:
                frame = lambda kind, flags, stream, body: struct.pack("!I", len(body))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + body  # noqa: E731
                connection.sendall(frame(4, 0, 0, b"") + frame(6, 0, 0, b"12345678") + frame(1, 4, 1, b"\x88")
                                   + (frame(0, 0, 1, reply) if reply else b"") + frame(1, 5, 1, b""))
            done.wait(10)
    thread = threading.Thread(target=serve)
    thread.start()
    spec = probes.ProbeSpec.of("liveness", {"grpc": {"port": server.getsockname()[1], "service": "live"}})
    success, seen = asyncio.run(probes.probe_once(spec, Local()))
    done.set()
    thread.join()
    server.close()
    assert success == good, seen


def test_probe_of_a_closed_port_fails():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for action in ({"tcpSocket": {"port": port}}, {"grpc": {"port": port}}, {"httpGet": {"port": port}}):
        success, seen = asyncio.run(probes.probe_once(probes.ProbeSpec.of("liveness", action), Local()))
        assert not success and "refused" in seen or "Connect call failed" in seen


def seen(name, revision="new", ready=True, deleting=False):
    return controllers.Seen(name, revision, ready, deleting, int(name) if name.isdigit() else -1)


def test_statefulset_updates_from_the_top_one_at_a_time():
    step = lambda *pods, **spec: controllers.statefulset_step({"replicas": 3, "podManagementPolicy": "Parallel", **spec}, "new", pods)  # noqa: E731
    old = [seen(name, "old") for name in "012"]
    assert step() == ([0, 1, 2], [])
    assert step(podManagementPolicy="OrderedReady") == ([0], [])
    assert step(*old) == ([], ["2"])
    assert step(*old[:2], seen("2", "old", ready=False, deleting=True)) == ([], [])
    assert step(*old[:2]) == ([2], [])
    assert step(*old[:2], seen("2", ready=False)) == ([], []), "the next waits until this one is ready"
    assert step(*old[:2], seen("2")) == ([], ["1"])
    assert step(*old, updateStrategy={"type": "OnDelete"}) == ([], [])
    assert step(*old, replicas=1) == ([], ["2", "1"])
    assert step(*old[:2], seen("2"), updateStrategy={"rollingUpdate": {"partition": 2}}) == ([], [])


def test_deployment_strategies():
    step = lambda *pods, **spec: controllers.deployment_step(spec, "new", pods)  # noqa: E731
    recreate = {"replicas": 1, "strategy": {"type": "Recreate"}}
    assert step(**recreate) == (1, [])
    assert step(seen("a", "old"), **recreate) == (0, ["a"])
    assert step(seen("a", "old", deleting=True), **recreate) == (0, []), "Recreate waits until the old pod is gone"
    rolling = {"replicas": 2, "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}
    assert step(seen("a", "old"), seen("b", "old"), **rolling) == (1, [])
    assert step(seen("a", "old"), seen("b", "old"), seen("c", ready=False), **rolling) == (0, [])
    assert step(seen("a", "old"), seen("b", "old"), seen("c"), **rolling) == (0, ["a"])
    assert step(seen("a", "old"), replicas=1) == (1, []), "a quarter of one: one more, none fewer"
    assert step(seen("a"), seen("b"), replicas=1) == (0, ["a"])


def test_pods_of_a_leader_worker_set():
    template = lambda name: {"spec": {"containers": [{"name": name, "env": [{"name": "MINE", "value": "$(LWS_WORKER_INDEX)"}]}]}}  # noqa: E731
    owner = {"kind": "LeaderWorkerSet", "metadata": {"name": "m", "namespace": "n"}, "spec": {"leaderWorkerTemplate": {
        "size": 3, "restartPolicy": "None", "leaderTemplate": template("leader"), "workerTemplate": template("worker")}}}
    lws.check(owner)
    leader, worker = lws.group_pod(owner, 1, 0), lws.group_pod(owner, 1, 2)
    assert (leader["metadata"]["name"], worker["metadata"]["name"]) == ("m-1", "m-1-2")
    container, = worker["spec"]["containers"]
    assert container["name"] == "worker" and leader["spec"]["containers"][0]["name"] == "leader"
    env = expand.environment(container, POD, lambda *key: None, {})
    assert env == {"LWS_LEADER_ADDRESS": "m-1.m.n", "LWS_GROUP_SIZE": "3", "LWS_WORKER_INDEX": "2", "MINE": "2"}
    with pytest.raises(BadObject, match="does not play restartPolicy"):
        lws.check({**owner, "spec": {"leaderWorkerTemplate": {"size": 1}}})


class FakePods:
    """What a controller asks of the cluster, with pods that do nothing."""

    def __init__(self):
        self.pods = []

    def pod_list(self):
        return list(self.pods)

    def add_pod(self, obj):
        pod = types.SimpleNamespace(object=obj, labels=obj["metadata"]["labels"], ready=False, deleting=False)
        pod.delete = lambda: setattr(pod, "deleting", True)
        self.pods.append(pod)


def test_an_update_of_a_leader_worker_set_leaves_one_group_whole():
    cluster = FakePods()
    template = {"size": 2, "restartPolicy": "None", "workerTemplate": {"spec": {"containers": [{"name": "main", "image": "old"}]}}}
    controller = lws.LeaderWorkerSet(cluster, {"kind": "LeaderWorkerSet", "metadata": {"name": "m", "namespace": "n"},
                                               "spec": {"replicas": 2, "leaderWorkerTemplate": template}})

    def settle():
        """All that exist become ready, those that are deleted are gone."""
        cluster.pods = [pod for pod in cluster.pods if not pod.deleting]
        for pod in cluster.pods:
            pod.ready = True

    def whole():
        groups = [[pod.ready and not pod.deleting for pod in cluster.pods if pod.labels[f"{lws.PREFIX}/group-index"] == group] for group in "01"]
        return [len(pods) == 2 and all(pods) for pods in groups]
    for _ in range(3):
        controller.reconcile()
        settle()
    assert whole() == [True, True] and controller.done()
    controller.object = copy.deepcopy(controller.object)
    controller.object["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]["image"] = "new"
    seen = []
    while not controller.done():
        controller.reconcile()
        seen.append(whole())
        settle()
        assert len(seen) < 20
    assert [True, False] in seen and [False, True] in seen and [False, False] not in seen


def query(name, kind=1):
    body = b"".join(bytes((len(part),)) + part.encode() for part in name.split(".")) + b"\x00"
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + body + struct.pack("!HH", kind, 1)


def test_dns_answers():
    records = {"m.default.svc.cluster.local": ["10.96.0.1"], "empty.cluster.local": []}
    def ask(*args):
        reply = dns.answer(query(*args), records)
        _, flags, _, count = struct.unpack_from("!HHHH", reply)
        return flags & 15, count, reply[-4:]
    assert ask("M.default.svc.cluster.local") == (0, 1, bytes((10, 96, 0, 1)))
    assert ask("m.default.svc.cluster.local", 28)[:2] == (0, 0), "no IPv6 address, but the name exists"
    assert ask("empty.cluster.local")[:2] == (0, 0)
    assert ask("other.cluster.local")[:2] == (3, 0)
    assert dns.answer(b"x", records) == b""
    assert struct.unpack_from("!HH", dns.answer(query("a")[:14], records))[1] & 15 == 1


def test_service_rules_spread_over_endpoints_and_refuse_without():
    ports = [rules.ServicePort("10.96.0.1", 50051, "tcp", (("10.244.0.2", 1), ("10.244.0.3", 1))),
             rules.ServicePort("10.96.0.2", 9, "tcp", ())]
    text = rules.tables(ports)
    assert "-j DNAT" in rules.tables([]), "something must always need connections to be followed"
    assert "-d 10.96.0.1 -p tcp --dport 50051 -m statistic --mode random --probability 0.500000 -j DNAT --to-destination 10.244.0.2:1" in text
    assert "--dport 50051 -j DNAT --to-destination 10.244.0.3:1" in text
    assert "-A OUTPUT -d 10.96.0.2 -p tcp --dport 9 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset" in text


def policy(**spec):
    return {"metadata": {"name": "p", "namespace": "n"}, "spec": spec}


def test_network_policy_rules():
    worker = rules.Peer("n", {"c": "worker"}, "10.244.0.2", {"hop": 50054})
    coordinator = rules.Peer("n", {"c": "coordinator"}, "10.244.0.3", {"join": 50052})
    stranger = rules.Peer("other", {"c": "coordinator"}, "10.244.0.4", {})
    everyone = ([worker, coordinator, stranger], {"n": {"name": "n"}, "other": {"name": "other"}})
    chosen = policy(podSelector={"matchLabels": {"c": "worker"}}, policyTypes=["Ingress", "Egress"],
                    ingress=[{"from": [{"podSelector": {"matchLabels": {"c": "coordinator"}}}], "ports": [{"port": "hop"}]}],
                    egress=[{"to": [{"podSelector": {}}], "ports": [{"port": "join"}, {"port": 50054, "protocol": "TCP"}]},
                            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}])
    text = rules.tables([], worker, [chosen], everyone, "10.244.0.1").splitlines()
    accepted = [" ".join(line.split()) for line in text if line.endswith("ACCEPT") and ("-s" in line or "-d " in line)]
    assert accepted == ["-A INPUT -s 10.244.0.1 -j ACCEPT", "-A INPUT -s 10.244.0.3 -p tcp --dport 50054 -j ACCEPT",
                        "-A OUTPUT -d 10.244.0.2 -p tcp --dport 50054 -j ACCEPT",
                        "-A OUTPUT -d 10.244.0.3 -p tcp --dport 50052 -j ACCEPT",
                        "-A OUTPUT -d 10.244.0.3 -p tcp --dport 50054 -j ACCEPT"]
    assert "-A INPUT -j REJECT" in text and "-A OUTPUT -j REJECT" in text
    assert [line for line in text if "10.0.0.0/8" in line and line.endswith("RETURN")]
    assert "REJECT" not in rules.tables([], coordinator, [chosen], everyone), "a pod that no policy selects is open"
    closed = rules.tables([], worker, [policy(podSelector={}, policyTypes=["Ingress"])], everyone)
    assert "-A INPUT -j REJECT" in closed and "-A OUTPUT -j REJECT" not in closed


@pytest.mark.parametrize("selector, chosen", [
    ({}, True), ({"matchLabels": {"a": "1"}}, True), ({"matchLabels": {"a": "2"}}, False),
    ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
    ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
    ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False)])
def test_label_selectors(selector, chosen):
    assert rules.matches(selector, {"a": "1"}) == chosen


def test_volumes_hold_what_objects_say(tmp_path):
    data = {("Secret", "tls"): {"tls.crt": b"one"}, ("ConfigMap", "map"): {"a": b"1", "b": b"2"}}
    pod = {**POD, "spec": {"securityContext": {"fsGroup": 65532}, "volumes": [
        {"name": "tls", "secret": {"secretName": "tls", "defaultMode": 0o400}},
        {"name": "map", "configMap": {"name": "map", "items": [{"key": "b", "path": "sub/c"}]}},
        {"name": "tmp", "emptyDir": {}}]}}
    held = volumes.Volumes(pod, tmp_path / "v", lambda *key: data.get(key), {}, {})
    tls = tmp_path / "v" / "tls" / "tls.crt"
    assert tls.read_bytes() == b"one"
    assert (os.stat(tls).st_mode & 0o777, os.stat(tls).st_gid) == (0o440, 65532), "fsGroup may read"
    assert (tmp_path / "v" / "map" / "sub" / "c").read_text() == "2" and not (tmp_path / "v" / "map" / "a").exists()
    data["Secret", "tls"] = {"tls.crt": b"two"}
    held.refresh()
    assert tls.read_bytes() == b"two", "a changed secret reaches a running pod"
    mounts = held.mounts({"name": "c", "volumeMounts": [{"name": "tls", "mountPath": "/etc/tls/", "readOnly": True}]})
    assert mounts == [{"source": str(tmp_path / "v" / "tls"), "target": "/etc/tls", "read_only": True}]
    with pytest.raises(BadObject, match="no volume none"):
        held.mounts({"name": "c", "volumeMounts": [{"name": "none", "mountPath": "/x"}]})
    with pytest.raises(BadObject, match="does not play"):
        volumes.Volumes({**POD, "spec": {"volumes": [{"name": "x", "nfs": {}}]}}, tmp_path / "w", lambda *key: None, {}, {})
    with pytest.raises(BadObject, match="is no Directory"):
        volumes.Volumes({**POD, "spec": {"volumes": [{"name": "x", "hostPath": {"path": "/no/where", "type": "Directory"}}]}},
                        tmp_path / "x", lambda *key: None, {}, {})


def test_data_of_secrets_and_config_maps():
    encoded = base64.b64encode(b"\xff").decode()
    assert volumes.object_data({"kind": "Secret", "data": {"a": encoded}, "stringData": {"b": "c"}}) == {"a": b"\xff", "b": b"c"}
    assert volumes.object_data({"kind": "ConfigMap", "data": {"a": "b"}, "binaryData": {"c": encoded}}) == {"a": b"b", "c": b"\xff"}


CHECK = "import os; from pod_runner import namespaces; {0}; namespaces.check_machine()"


@pytest.mark.parametrize("prefix, first, message", [
    ([], "os.seteuid(65532)", "needs root for its namespaces"),
    ([], "os.environ.update(PATH='/nowhere')", "install the Debian package iproute2"),
    (["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"], "0", "cannot make namespaces here (it needs CAP_SYS_ADMIN"),
], ids=["user", "programs", "capabilities"])
def test_a_machine_that_cannot_run_pods_is_told_in_one_line(prefix, first, message):
    done = subprocess.run([*prefix, sys.executable, "-B", "-c", CHECK.format(first)], cwd=os.path.dirname(__file__), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr
