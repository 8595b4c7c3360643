"""Who may call whom, by the policies that the chart renders. test_pods.py tries it with real connections."""
import pytest

import chart
from test_chart_rules import everywhere, objects_of, serving


def admitted(objects, labels, port_name):
    """Whether a pod of these labels in the namespace may call the port `port_name` of each pod that has it."""
    answers = set()
    for pod in chart.pods(objects):
        if port_name not in [p["name"] for c in pod.containers() for p in c.get("ports", [])] or not serving(pod):
            continue
        rules = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy" and
                 o["spec"]["podSelector"]["matchLabels"].items() <= pod.metadata["labels"].items() and "Ingress" in o["spec"]["policyTypes"]]
        assert rules, f"nothing guards {pod.where}"
        answers.add(any(
            ("ports" not in rule or port_name in [p["port"] for p in rule["ports"]]) and
            any("namespaceSelector" not in peer and "ipBlock" not in peer and
                peer["podSelector"].get("matchLabels", {}).items() <= labels.items() for peer in rule["from"])
            for spec in rules for rule in spec.get("ingress", [])))
    assert len(answers) == 1
    return answers.pop()


@pytest.mark.parametrize("name", ["cpu", "groups", "lws"])
def test_network_policy_lets_in_who_should(name):
    objects = objects_of(name)
    own = next(pod.metadata["labels"] for pod in chart.pods(objects) if serving(pod))
    stranger = {"app": "web"}
    assert [admitted(objects, own, port) for port in ("client", "cluster", "hop")] == [True] * 3
    assert [admitted(objects, stranger, port) for port in ("client", "cluster", "hop", "health", "metrics")] == [True] + [False] * 4


def test_policies_can_be_left_out_and_clients_chosen():
    assert not any(o["kind"] in ("NetworkPolicy", "PodDisruptionBudget") for o in objects_of("host-path"))
    objects = objects_of("everything")
    assert not admitted(objects, {"app": "web"}, "client")
    (test,) = [pod for pod in chart.pods(objects) if not serving(pod)]
    assert admitted(objects, test.metadata["labels"], "client"), "helm test gets in whatever the clients are"


@pytest.mark.parametrize("url,ports", [("https://x.example.com/m", [443]), ("http://x.example.com/m", [443, 80]),
                                       ("https://x.example.com:8443/m", [443, 8443])])
def test_pods_that_download_may_reach_the_server(url, ports):
    objects = chart.render("--set", f"model.download.url={url},model.download.sha256={'a' * 64}")
    policy = chart.only(objects, "NetworkPolicy", "m-millrace-download")["spec"]
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == ports and policy["policyTypes"] == ["Egress"]
    assert all(policy["podSelector"]["matchLabels"].items() <= pod.metadata["labels"].items() for pod in chart.pods(objects) if serving(pod))


@everywhere
def test_only_pods_that_download_get_out(name):
    objects = objects_of(name)
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy" and "Egress" in o["spec"]["policyTypes"]]
    for pod in filter(serving, chart.pods(objects)):
        rules = [rule for spec in policies if spec["podSelector"]["matchLabels"].items() <= pod.metadata["labels"].items() for rule in spec["egress"]]
        inside = [rule for rule in rules if "to" in rule]
        anywhere = sorted((port.get("protocol", "TCP"), port["port"]) for rule in rules if "to" not in rule for port in rule["ports"])
        names = [] if name == "host-path" else [("TCP", 53), ("UDP", 53)]
        assert anywhere == sorted(names + ([("TCP", 443)] if "initContainers" in pod.spec else [])), pod.where
        assert len(inside) == (name != "host-path")
