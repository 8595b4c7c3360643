"""The chart's own output, run for real: pods in namespaces, with everything Kubernetes would do to them played by pod_runner."""
import json
import os
import pathlib
import subprocess
import time

import pytest
import yaml

from pod_runner.cluster import Cluster, load
from pod_runner.container import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MILLRACE_BIN", ROOT / "build" / "bin"))
PROGRAMS = ("millrace", "millrace-coordinator", "millrace-worker")
# Of the model's golden cases; tokens after a choice as narrow as this may differ.
MARGIN = 0.05


def values(model):
    return {"model": {"path": model.name, "hostPath": str(model.parent)}, "serving": {"activations": "f32"},
            "probes": {"periodSeconds": 1, "timeoutSeconds": 1},
            "worker": {"extraArgs": ["--threads=1", "--profile=off"]}}


def render(folder, model):
    helm = subprocess.run([ROOT / "tests" / "k8s" / "get_tools.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values(model)))
    return subprocess.run([f"{helm}/helm", "template", "m", ROOT / "k8s" / "millrace", "--values", file], check=True,
                          stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def objects(tmp_path_factory, real_model):
    return load(render(tmp_path_factory.mktemp("chart"), real_model))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, objects):
    """The chart, installed. Tests leave it ready."""
    image = Image(programs=tuple((name, str(BIN / name)) for name in PROGRAMS), folders=(("/var/cache/millrace", 65532),))
    begun = time.monotonic()
    with Cluster(tmp_path_factory.mktemp("cluster"), image=lambda reference: image, backoff=1.0) as running:
        running.apply(objects)
        running.wait_rolled_out(60)
        print(f"rolled out in {time.monotonic() - begun:.1f} s")
        yield running


def until_narrow(case, most):
    """The golden tokens up to the first choice that may fall either way."""
    wide = next((index for index, margin in enumerate(case["margin"]) if margin < MARGIN), len(case["greedy"]))
    return case["greedy"][:min(wide, most)]


def client_pod(name, command, **spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 60,
                     "containers": [{"name": "main", "image": "client", "command": command, **spec}]}}


def generate(cluster, case, count):
    pod = client_pod("client", ["millrace", "generate", "--server=m-millrace:50051", "--json", f"--max-tokens={count}",
                                "--temperature=0", "--timeout=30s", case["text"]])
    succeeded, output = cluster.run_pod(pod)
    assert succeeded, output
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [token for event in events for token in event.get("tokens", {}).get("token_ids", ())]


def test_generate_through_the_service_gives_the_golden_tokens(cluster, golden):
    case = golden["capital"]
    tokens = until_narrow(case, 16)
    assert len(tokens) >= 5
    assert generate(cluster, case, len(tokens)) == tokens
