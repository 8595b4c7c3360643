"""Names of objects: over upgrades, at their greatest length, and where YAML would read something else."""
import re
import shutil

import pytest
import yaml

import chart
import schema


def test_an_upgrade_changes_no_field_that_cannot_change():
    """Selectors and the name of a StatefulSet's Service are fixed once made."""
    def fixed(*args):
        return {(o["kind"], o["metadata"]["name"]): (o["spec"]["selector"], o["spec"].get("serviceName"), o["spec"].get("volumeClaimTemplates"))
                for o in chart.render(*args) if o["kind"] in ("Deployment", "StatefulSet")}
    before = fixed(*chart.LEAST)
    after = fixed(*chart.LEAST, "--set", "stages=5,replicas=3,worker.podLabels.x=y,metrics.enabled=false,model.push=true,worker.kvMemory=2GiB")
    assert before.items() <= after.items() and len(after) == 6


def test_another_version_of_the_chart_alone_replaces_no_pod(tmp_path):
    templates = []
    for version in ("1.2.3", "1.2.4"):
        shutil.copytree(chart.CHART, tmp_path / version)
        meta = tmp_path / version / "Chart.yaml"
        meta.write_text(re.sub("^version: .*$", f"version: {version}", meta.read_text(), flags=re.MULTILINE))
        done = chart.run("helm", "template", "m", tmp_path / version, *chart.LEAST, "--set", "joinSecret.existingSecret=s")
        templates.append([(pod.where, pod.metadata, pod.spec) for pod in chart.pods([obj for obj in yaml.safe_load_all(done.stdout) if obj])])
    assert len(templates[0]) == 3 and templates[0] == templates[1]


@pytest.mark.parametrize("change", ["image.tag=9.9", "image.digest=sha256:" + "0" * 64, "tls.mode=existingSecret,tls.existingSecret=s", "model.path=other.gguf",
                                    "model.hostPath=/other", "joinSecret.existingSecret=s"])
def test_workers_that_a_new_coordinator_refuses_are_replaced_at_once(change):
    """A StatefulSet's next pod waits until the last is ready, which none is while the ring lacks a stage: another StatefulSet takes over."""
    def workers(*args):
        obj = chart.only(chart.render(*chart.LEAST, *args), "StatefulSet")
        return obj["metadata"]["name"], obj["spec"]["serviceName"]
    (name, service), (new, new_service) = workers(), workers("--set", change)
    assert service == new_service == "m-millrace-worker" and re.fullmatch("m-millrace-worker-[0-9a-f]{6}", name)
    assert re.fullmatch("m-millrace-worker-[0-9a-f]{6}", new) and new != name


def test_names_fit_with_the_longest_release():
    label = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
    for release in ("r" * 53, "a.b", "millrace"):
        objects = chart.render(*chart.LEAST, "--set", "replicas=11", release=release)
        names = [(o["kind"], o["metadata"]["name"]) for o in objects]
        assert len(set(names)) == len(names)
        for kind, name in names:
            # A StatefulSet's pods carry its name and a hash in a label, of 63 characters; and groups may have a digit more.
            assert label.fullmatch(name) and len(name) <= (51 if kind == "StatefulSet" else 62), name
        for obj in objects:
            for value in obj["metadata"]["labels"].values():
                assert len(value) <= 63 and re.fullmatch(r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?", value), value
    assert chart.only(chart.render(*chart.LEAST, release="millrace"), "Deployment")["metadata"]["name"] == "millrace-coordinator"


@pytest.mark.parametrize("release", ["9", "1e3", "true", "on"])
def test_names_that_yaml_reads_as_something_else(release):
    objects = chart.render(*chart.LEAST, "--set-string", "fullnameOverride=yes,nameOverride=no,serviceAccount.name=12,tls.mode=existingSecret,"
                           "tls.existingSecret=34,joinSecret.existingSecret=56,image.pullSecrets={78},joinSecret.key=on", release=release)
    for obj in objects:
        assert not schema.faults(obj, chart.NEWEST), obj["kind"]
        assert obj["metadata"]["labels"]["app.kubernetes.io/instance"] == release
