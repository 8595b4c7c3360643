"""What helm makes of the chart: rendering, the pods within the objects, and the programs that the tests of the chart need."""
import dataclasses
import functools
import pathlib
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "k8s" / "millrace"
VALUES = pathlib.Path(__file__).parent / "values"
# The oldest version of Kubernetes that Chart.yaml promises, and the newest whose schemas are there.
OLDEST, NEWEST = "1.28", "1.37"
# What a values file uses that the oldest does not have.
SINCE = {"image-volume": "1.33"}
# Enough values for the chart to render.
LEAST = ("--set", "model.hostPath=/srv/models,model.path=m.gguf")


@functools.cache
def tools():
    """The folder of helm, kubectl and promtool. Fails where they cannot be had."""
    return pathlib.Path(subprocess.run([ROOT / "tests" / "k8s" / "get_tools.sh"], check=True, stdout=subprocess.PIPE, text=True,
                                       timeout=280).stdout.strip())


def run(program, *args, check=True, **kwargs):
    """One of the tools; its output and errors are in one text."""
    done = subprocess.run([tools() / program, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, **kwargs)
    assert not check or done.returncode == 0, f"{program} {' '.join(map(str, args))}: {done.returncode}\n{done.stdout}"
    return done


@functools.cache
def render(*args, release="m"):
    """The objects that `helm template` makes with these arguments. Shared between tests: not to be changed."""
    done = subprocess.run([tools() / "helm", "template", release, CHART, "--namespace", "ns", *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [obj for obj in yaml.safe_load_all(done.stdout) if obj]


def matrix():
    """The arguments of helm for each values file, by its name."""
    return {path.stem: ("--values", str(path), "--kube-version", SINCE.get(path.stem, OLDEST)) for path in sorted(VALUES.glob("*.yaml"))}


def only(objects, kind, name=None):
    found = [o for o in objects if o["kind"] == kind and (name is None or o["metadata"]["name"] == name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


@dataclasses.dataclass
class Pod:
    where: str  # the object it comes from
    metadata: dict
    spec: dict

    def containers(self):
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def templates(obj):
    """(where, pod template) of all pods that an object makes."""
    kind, spec = obj["kind"], obj.get("spec", {})
    name = f"{kind}/{obj['metadata']['name']}"
    if kind in ("Deployment", "StatefulSet"):
        yield name, spec["template"]
    elif kind == "LeaderWorkerSet":
        for part in ("leaderTemplate", "workerTemplate"):
            yield f"{name}:{part}", spec["leaderWorkerTemplate"][part]
    elif kind == "MPIJob":
        for part, replicas in spec["mpiReplicaSpecs"].items():
            yield f"{name}:{part}", replicas["template"]
    elif kind == "Pod":
        yield name, obj


def pods(objects):
    return [Pod(where, template["metadata"], template["spec"]) for obj in objects for where, template in templates(obj)]
