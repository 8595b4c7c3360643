"""The chart is what helm and Kubernetes take, for every values file in values/."""
import copy
import json
import re
import subprocess
import sys
import tarfile

import pytest
import yaml

import chart
import schema

MATRIX = chart.matrix()


@pytest.mark.parametrize("name", MATRIX)
def test_lint(name):
    chart.run("helm", "lint", "--strict", chart.CHART, "--namespace", "ns", *MATRIX[name])


@pytest.mark.parametrize("name", MATRIX)
def test_objects_are_what_kubernetes_takes(name):
    objects = chart.render(*MATRIX[name])
    names = [(obj["kind"], obj["metadata"]["name"]) for obj in objects]
    assert len(set(names)) == len(names), "two objects of one name"
    for version in {chart.SINCE.get(name, chart.OLDEST), chart.NEWEST}:
        for obj in objects:
            assert not schema.faults(obj, version), f"{version} {obj['kind']} {obj['metadata']['name']}"


def test_the_matrix_has_every_kind_and_mode():
    kinds = {obj["kind"] for name in MATRIX for obj in chart.render(*MATRIX[name])}
    assert {"Deployment", "StatefulSet", "Service", "Secret", "ConfigMap", "Pod", "NetworkPolicy", "PodDisruptionBudget", "Certificate",
            "HorizontalPodAutoscaler", "ScaledObject", "LeaderWorkerSet", "MPIJob", "ServiceMonitor", "PrometheusRule"} == kinds
    assert {kind for _, kind in schema.custom()} <= kinds, "a schema that nothing needs"


def mutations(obj):
    """(what, a copy with one thing wrong), for each of several places."""
    def changed(path, key, value):
        new = copy.deepcopy(obj)
        place = new
        for step in path:
            place = place[step]
        place[key] = value
        return new
    yield "unknown field", changed((), "notAField", 1)
    yield "unknown kind", changed((), "kind", "Unheard" + obj["kind"])
    yield "unknown version", changed((), "apiVersion", "example.com/v9")
    if "spec" in obj:
        yield "unknown field in spec", changed(("spec",), "notAField", 1)
        yield "spec of another type", changed((), "spec", [1])
    for at, (where, _) in enumerate(chart.templates(obj)):
        for what, key, value in (("unknown field of a container", "image_", "x"), ("image of another type", "image", 5),
                                 ("a probe of another type", "livenessProbe", {"grpc": {"port": "health"}}),
                                 ("an unknown field of a probe", "livenessProbe", {"grpc": {"port": 1, "tls": True}})):
            new = copy.deepcopy(obj)
            list(chart.templates(new))[at][1]["spec"]["containers"][0][key] = value
            yield f"{where}: {what}", new


def test_what_is_wrong_is_found():
    seen = {}
    for name in MATRIX:
        for obj in chart.render(*MATRIX[name]):
            seen.setdefault(obj["kind"], obj)
    for obj in seen.values():
        assert not schema.faults(obj, chart.NEWEST)
        for what, new in mutations(obj):
            assert schema.faults(new, chart.NEWEST), f"{obj['kind']}: {what} was not found"


def test_package(tmp_path):
    chart.run("helm", "package", chart.CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    meta = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert package.name == f"millrace-{meta['version']}.tgz"
    with tarfile.open(package) as archive:
        packed = {name.removeprefix("millrace/") for name in archive.getnames()}
    there = {str(path.relative_to(chart.CHART)) for path in chart.CHART.rglob("*") if path.is_file()} - {".helmignore"}
    assert there <= packed | {".helmignore"} and packed - {".helmignore"} <= there
    # What is packed renders as the folder does.
    done = chart.run("helm", "template", "m", package, "--namespace", "ns", *MATRIX["groups"])
    packed = [obj for obj in yaml.safe_load_all(done.stdout) if obj]
    assert [o for o in packed if o["kind"] == "StatefulSet"][0]["spec"]["replicas"] == 2


def test_version_is_the_programs():
    meta = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    cmake = (chart.ROOT / "CMakeLists.txt").read_text()
    assert meta["appVersion"] == re.search(r"project\(\s*\w+\s+VERSION ([0-9.]+)", cmake, re.IGNORECASE).group(1)
    assert meta["kubeVersion"] == f">={chart.OLDEST}.0-0"
    done = chart.run("helm", "template", "m", chart.CHART, *chart.LEAST, "--kube-version", "1.27.9", check=False)
    assert done.returncode != 0 and "incompatible with Kubernetes v1.27.9" in done.stdout


def test_readme_has_the_table_of_values():
    subprocess.run([sys.executable, chart.ROOT / "tests" / "k8s" / "values_table.py", "--check"], check=True)


def nodes(schema_, path=()):
    """(path, node) of each part of a schema."""
    yield path, schema_
    for key, child in schema_.get("properties", {}).items():
        yield from nodes(child, path + (key,))
    if "items" in schema_:
        yield from nodes(schema_["items"], path + ("[]",))
    for child in schema_.get("anyOf", []):
        yield from nodes(child, path)


# Structures of Kubernetes that the schema does not repeat.
OPEN = {"global", "fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "nodeAffinity", "podAffinity", "podAntiAffinity"}


def test_the_schema_has_every_value_and_no_other():
    """additionalProperties is false in every map of known keys; maps of a user's own keys say what their values are."""
    known = json.loads((chart.CHART / "values.schema.json").read_text())
    for path, node in nodes(known):
        if node.get("type") == "object" and "anyOf" not in node:
            rest = node.get("additionalProperties")
            assert rest is False and "properties" in node or isinstance(rest, dict) or path[-1] in OPEN, f"{path} takes anything"

    def compare(node, values, path):
        for key, value in values.items():
            place = ".".join((*path, key))
            if isinstance(node.get("additionalProperties"), dict):
                continue  # a user's own keys
            assert key in node["properties"], f"{place} is in values.yaml and not in the schema"
            if isinstance(value, dict):
                compare(node["properties"][key], value, (*path, key))
        unset = set(node.get("properties", {})) - set(values)
        assert unset <= {"global", "claims", "nodeAffinity", "podAffinity", "podAntiAffinity", "limits", "requests"}, f"{path}: {unset}"
        assert "requests" in node.get("properties", {}) or set(node.get("required", [])) == set(values) & set(node.get("properties", {})), path
    compare(known, yaml.safe_load((chart.CHART / "values.yaml").read_text()), ())
