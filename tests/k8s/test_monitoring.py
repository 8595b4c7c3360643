"""Alerts fire when they should and only then, and every metric that alerts, dashboard and autoscaler ask for is one a live coordinator has."""
import json
import re
import sys
import urllib.request

import pytest
import yaml

import chart

ON = ("--values", str(chart.VALUES / "monitoring.yaml"), "--set", "replicas=2")
# What Prometheus adds to each sample, and its own metrics.
TARGET_LABELS = {"namespace", "service", "pod", "container", "endpoint", "job", "instance"}
OWN_METRICS = {"up"}
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}


def selectors(promql):
    """(metric, names of labels matched) of each selector in an expression."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', promql)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\[[^\]]*\]", "", text)
    for match in re.finditer(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\(|\{[^}]*\})?", text):
        name, rest = match.groups()
        if rest == "(" or name in WORDS:
            continue
        if text[:match.start()].count("{") > text[:match.start()].count("}"):
            continue  # a label
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", rest or ""))


def test_selectors_are_found():
    assert list(selectors('sum without (a) (rate(vllm:x_total{b="c{",d=~"e"}[5m])) > 0.05 * y and stage_z')) == [
        ("vllm:x_total", {"b", "d"}), ("y", set()), ("stage_z", set())]


@pytest.fixture(scope="module")
def live(real_model, protos, tmp_path_factory):
    """{metric: names of its labels} of a ring that has answered a request."""
    sys.path[:0] = [str(protos), str(chart.ROOT / "tests" / "e2e")]
    import harness
    with harness.Cluster(real_model, tmp_path_factory.mktemp("live"), stages=2, coordinator=["--metrics", "127.0.0.1:0"],
                         worker=["--profile", "off", "--threads", "1"]) as cluster:
        url = cluster.coordinator.wait_for_line(r"^metrics at (http://\S+/metrics)$").group(1)
        cluster.client.generate("Once upon a time", max_tokens=4, sampling=harness.GREEDY)
        with urllib.request.urlopen(url, timeout=harness.PATIENCE) as response:
            text = response.read().decode()
    found = {}
    for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def check(promql, live, where):
    found = list(selectors(promql))
    assert found, f"{where}: no metric in {promql}"
    for name, labels in found:
        if name in OWN_METRICS:
            continue
        assert name in live, f"{where}: there is no metric {name}"
        assert labels <= live[name] | TARGET_LABELS, f"{where}: {name} has no label {labels - live[name] - TARGET_LABELS}"
        assert {"namespace", "service"} <= labels, f"{where}: {name} of any release, and of other programs that name theirs so"


def test_what_is_asked_for_exists(live):
    objects = chart.render(*ON)
    for rule in rules():
        check(rule["expr"], live, rule["alert"])
    dashboard = json.loads(chart.only(objects, "ConfigMap")["data"]["millrace.json"])
    targets = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(targets) > 15
    for title, expr in targets:
        check(expr, live, title)
    keda = chart.only(chart.render(*chart.matrix()["lws-keda-gpu"]), "ScaledObject")
    check(keda["spec"]["triggers"][0]["metadata"]["query"], live, "ScaledObject")
    hpa = chart.only(chart.render(*chart.matrix()["lws-hpa"]), "HorizontalPodAutoscaler")
    assert hpa["spec"]["metrics"][0]["object"]["metric"]["name"] in live


def test_a_metric_that_is_not_there_is_found(live):
    for promql in ("rate(vllm:num_requests_stalled[5m])", 'vllm:num_requests_running{stage="0"}', "vllm:num_requests_running"):
        with pytest.raises(AssertionError):
            check(promql, live, "here")


def rules():
    (group,) = chart.only(chart.render(*ON), "PrometheusRule")["spec"]["groups"]
    return group["rules"]


def test_dashboard_is_one_grafana_reads():
    objects = chart.render(*ON)
    config = chart.only(objects, "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    dashboard = json.loads(config["data"]["millrace.json"])
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    known = {"$" + variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\w+", json.dumps([[t["expr"] for t in p.get("targets", [])] for p in panels]))) <= known
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells


def test_every_alert_has_its_place_in_the_runbook():
    runbook = (chart.ROOT / "docs" / "RUNBOOK.md").read_text()
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", runbook, re.MULTILINE)}
    alerts = {rule["alert"]: rule for rule in rules()}
    for name, rule in alerts.items():
        url, anchor = rule["annotations"]["runbook_url"].split("#")
        assert url == "https://runbooks.example.com/millrace" and anchor == name.lower() and anchor in anchors, name
        assert rule["labels"]["severity"] in ("critical", "warning", "info") and rule["annotations"]["summary"] and rule["for"]
    assert anchors == {name.lower() for name in alerts}, "the runbook has headings that no alert leads to"


def test_monitor_reaches_the_coordinators():
    """The Service that the ServiceMonitor selects exists, names the port, and selects pods with it that NetworkPolicy lets be read."""
    for values in (ON, chart.matrix()["lws-keda-gpu"]):
        objects = chart.render(*values)
        monitor = chart.only(objects, "ServiceMonitor")["spec"]
        wanted = monitor["selector"]["matchLabels"].items()
        (service,) = [o for o in objects if o["kind"] == "Service" and wanted <= o["metadata"]["labels"].items()]
        ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
        (endpoint,) = monitor["endpoints"]
        target = ports[endpoint["port"]]
        selected = [pod for pod in chart.pods(objects) if service["spec"]["selector"].items() <= pod.metadata["labels"].items()]
        assert selected
        for pod in selected:
            assert [port["containerPort"] for c in pod.containers() for port in c.get("ports", []) if port["name"] == target] == [9090]
        policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy" and
                    o["spec"]["podSelector"]["matchLabels"].items() <= selected[0].metadata["labels"].items()]
        assert any({"port": target} in rule.get("ports", []) for spec in policies for rule in spec.get("ingress", []))


# Labels of a target of the release, as the Prometheus operator gives them, and those of another.
OURS = 'namespace="ns",service="m-millrace-metrics",pod="%s"'
POD = OURS % "m-0"
OTHER = 'namespace="ns",service="other-metrics",pod="o"'
UP = f'up{{{OURS % "m-0"}}}'
# alert: (series while it must fire, series while it must not). 41 samples, a minute apart; asked at 40 minutes.
CASES = {
    "MillraceCoordinatorDown": (
        {UP: "1x40", f'up{{{OURS % "m-1"}}}': "0x40"},
        {UP: "1x40", f'up{{{OURS % "m-1"}}}': "1x40", f"up{{{OTHER}}}": "0x40"}),
    "MillraceStuck": (
        {f"vllm:num_requests_running{{{POD}}}": "3x40", f"vllm:num_requests_waiting{{{POD}}}": "0x40",
         f"vllm:generation_tokens_total{{{POD}}}": "500x40"},
        {f"vllm:num_requests_running{{{POD}}}": "3x40", f"vllm:num_requests_waiting{{{POD}}}": "0x40",
         f"vllm:generation_tokens_total{{{POD}}}": "0+100x40", f"vllm:num_requests_running{{{OTHER}}}": "3x40",
         f"vllm:num_requests_waiting{{{OTHER}}}": "0x40", f"vllm:generation_tokens_total{{{OTHER}}}": "7x40"}),
    "MillraceRequestsFail": (
        {f'vllm:request_success_total{{{POD},finished_reason="error"}}': "0+6x40",
         f'vllm:request_success_total{{{POD},finished_reason="stop"}}': "0+60x40"},
        {f'vllm:request_success_total{{{POD},finished_reason="error"}}': "0+2x40",
         f'vllm:request_success_total{{{POD},finished_reason="stop"}}': "0+60x40"}),
    "MillraceQueueGrows": (
        {f"vllm:num_requests_running{{{POD}}}": "8x40", f"vllm:num_requests_waiting{{{POD}}}": "33x40"},
        {f"vllm:num_requests_running{{{POD}}}": "9x40", f"vllm:num_requests_waiting{{{POD}}}": "33x40"}),
    "MillraceKvCacheFull": (
        {f"vllm:kv_cache_usage_perc{{{POD}}}": "0.97x40", f"vllm:num_preemptions_total{{{POD}}}": "0+1x40"},
        {f"vllm:kv_cache_usage_perc{{{POD}}}": "0.97x40", f"vllm:num_preemptions_total{{{POD}}}": "5x40"}),
    "MillraceSlowFirstToken": (
        {f'vllm:time_to_first_token_seconds_bucket{{{POD},le="5"}}': "0+90x40",
         f'vllm:time_to_first_token_seconds_bucket{{{POD},le="10"}}': "0+100x40",
         f'vllm:time_to_first_token_seconds_bucket{{{POD},le="+Inf"}}': "0+100x40"},
        {f'vllm:time_to_first_token_seconds_bucket{{{POD},le="5"}}': "0+96x40",
         f'vllm:time_to_first_token_seconds_bucket{{{POD},le="10"}}': "0+100x40",
         f'vllm:time_to_first_token_seconds_bucket{{{POD},le="+Inf"}}': "0+100x40"}),
    "MillraceBubbles": (
        {f"pipeline_bubble_ratio{{{POD}}}": "0.6x40", f"vllm:num_requests_running{{{POD}}}": "8x40"},
        {f"pipeline_bubble_ratio{{{POD}}}": "0.6x40", f"vllm:num_requests_running{{{POD}}}": "2x40"}),
}


def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    """promtool plays both sides of each alert."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(chart.only(chart.render(*ON), "PrometheusRule")["spec"]))
    said = chart.run("promtool", "check", "rules", tmp_path / "rules.yaml").stdout
    assert f"SUCCESS: {len(CASES)} rules found" in said
    assert set(CASES) == {rule["alert"] for rule in rules()}
    tests = []
    for name, sides in CASES.items():
        for fires, series in zip((1, 0), sides):
            inputs = [{"series": s, "values": v if "+" in v else v.replace("x", "+0x")} for s, v in series.items()]
            expected = {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)', "eval_time": "40m",
                        "exp_samples": [{"labels": "{}", "value": fires}]}
            tests.append({"interval": "1m", "input_series": inputs, "promql_expr_test": [expected]})
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    chart.run("promtool", "test", "rules", tmp_path / "test.yaml")
    # One number changed, and promtool must notice: the test can fail.
    broken = (tmp_path / "rules.yaml").read_text().replace("> 0.05", "> 0.5")
    (tmp_path / "rules.yaml").write_text(broken)
    assert chart.run("promtool", "test", "rules", tmp_path / "test.yaml", check=False).returncode != 0


def test_a_release_without_monitoring_has_none():
    kinds = {obj["kind"] for obj in chart.render(*chart.LEAST)}
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "ConfigMap"}
