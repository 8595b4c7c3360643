"""The chart with `tls.mode: existingSecret`, run for real: who gets in, and a renewed certificate without a restart."""
import base64
import pathlib
import re
import sys

import pytest
from test_pods import IMAGE, PATIENCE, ROOT, check_golden_tokens, coordinator, pod_object, render, run_helm_test

from pod_runner.cluster import Cluster, load

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
import certificates  # noqa: E402

NAME = "m-millrace"


def secret(certificate):
    files = {"tls.crt": certificate.cert, "tls.key": certificate.key, "ca.crt": certificate.ca}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "m-tls"}, "type": "kubernetes.io/tls",
            "data": {key: base64.b64encode(pathlib.Path(path).read_bytes()).decode() for key, path in files.items()}}


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return certificates.TestCa(tmp_path_factory.mktemp("pki") / "ca")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, real_model):
    return load(render(tmp_path_factory.mktemp("chart"), real_model, tls={"mode": "existingSecret", "existingSecret": "m-tls"},
                       coordinator={"extraArgs": ["--tls-clients=require"]}))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, real_model, rendered, ca):
    """TLS comes by an upgrade: workers without it cannot join the new coordinator, and it cannot serve without their successors."""
    with Cluster(tmp_path_factory.mktemp("cluster"), image=lambda reference: IMAGE, backoff=1.0) as running:
        running.apply(load(render(tmp_path_factory.mktemp("plain"), real_model)))
        running.wait_rolled_out(PATIENCE)
        old = {pod.uid for pod in running.pod_list()}
        running.apply([secret(ca.issue("first", hosts=f"DNS:{NAME}"))])
        running.upgrade(rendered)
        running.wait(lambda: not old & {pod.uid for pod in running.pod_list()} and running.rolled_out(), "all pods are new and ready", PATIENCE)
        yield running


PKI = {"pod": {"volumes": [{"name": "tls", "secret": {"secretName": "m-tls"}}]}, "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}]}
TRUST = ["--tls-ca=/tls/ca.crt", f"--tls-name={NAME}"]
SHOW = ["--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key"]


def test_clients_with_a_certificate_are_served(cluster, rendered, golden):
    check_golden_tokens(cluster, golden["capital"], flags=TRUST + SHOW, **PKI)
    run_helm_test(cluster, rendered)


def test_others_are_refused(cluster):
    for flags in ([], TRUST):
        succeeded, output = cluster.run_pod(pod_object("other", [
            "millrace", "generate", f"--server={NAME}:50051", "--max-tokens=1", "--timeout=20s", *flags, "Hello"], **PKI))
        assert not succeeded and output.strip(), output


def serial(cluster, port):
    """Of the certificate that the coordinator shows at a port, as a pod of its own release sees it."""
    command = f"openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    _, output = cluster.execute(coordinator(cluster), ["/bin/sh", "-c", command])
    found = re.search(r"serial=(\w+)", output)
    return found.group(1) if found else ""


def test_a_renewed_certificate_is_shown_without_a_restart(cluster, ca, golden):
    before = {port: serial(cluster, port) for port in (50051, 50052)}
    assert all(before.values())
    before_restarts = {pod.name: [life.restarts for life in pod.lives] for pod in cluster.pod_list()}
    cluster.apply([secret(ca.issue("second", hosts=f"DNS:{NAME}"))])
    cluster.wait(lambda: all(serial(cluster, port) not in ("", before[port]) for port in before), "both ports show the new certificate")
    check_golden_tokens(cluster, golden["capital"], flags=TRUST + SHOW, **PKI)
    # On a busy machine a probe may be late; nothing is restarted.
    cluster.wait_rolled_out(PATIENCE)
    assert {pod.name: [life.restarts for life in pod.lives] for pod in cluster.pod_list()} == before_restarts


def test_drain_finds_its_way_by_tls(cluster):
    pod = coordinator(cluster)
    cluster.uninstall()
    ended, = [event for event in cluster.happened(pod.name) if event.what == "preStop ended"]
    assert ended.detail.startswith("exit code 0"), ended.detail
