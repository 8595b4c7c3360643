"""Deployments, StatefulSets and LeaderWorkerSets: which pods to make and which to delete next. The `..._step` functions are pure."""
import copy
import dataclasses
import hashlib
import json
import math

from .expand import BadObject

REVISION = "controller-revision-hash"


@dataclasses.dataclass(frozen=True)
class Seen:
    """A pod as its controller sees it."""
    name: str
    revision: str
    ready: bool
    deleting: bool
    ordinal: int = -1


def revision_of(template):
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _share(value, of, up):
    if isinstance(value, str):
        part = of * int(value.rstrip("%")) / 100
        return math.ceil(part) if up else math.floor(part)
    return value


def deployment_step(spec, revision, pods):
    """(how many pods to make, names to delete) for a Deployment. `pods`: those that exist, with ending ones."""
    replicas = spec.get("replicas", 1)
    strategy = spec.get("strategy", {})
    old = [pod for pod in pods if pod.revision != revision]
    new = [pod for pod in pods if pod.revision == revision and not pod.deleting]
    surplus = [pod.name for pod in sorted(new, key=lambda pod: pod.ready)[:max(0, len(new) - replicas)]]
    if strategy.get("type", "RollingUpdate") == "Recreate":
        if old:
            return 0, [pod.name for pod in old if not pod.deleting] + surplus
        return max(0, replicas - len(new)), surplus
    rolling = strategy.get("rollingUpdate", {})
    surge = _share(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    if surge == 0 and unavailable == 0:
        raise BadObject("a Deployment's maxSurge and maxUnavailable cannot both be 0")
    old = [pod for pod in old if not pod.deleting]
    create = max(0, min(replicas - len(new), replicas + surge - len(old) - len(new)))
    spare = sum(pod.ready for pod in old + new) - (replicas - unavailable)
    gone = []
    for pod in sorted(old, key=lambda pod: pod.ready):
        if pod.ready:
            if spare <= 0:
                continue
            spare -= 1
        gone.append(pod.name)
    return create, gone + surplus


def statefulset_step(spec, revision, pods):
    """(ordinals to make, names to delete) for a StatefulSet: at most one pod is updated at a time, from the highest ordinal down,
    and the next only when the last is ready again."""
    replicas = spec.get("replicas", 1)
    by_ordinal = {pod.ordinal: pod for pod in pods}
    parallel = spec.get("podManagementPolicy", "OrderedReady") == "Parallel"
    create = []
    for ordinal in range(replicas):
        pod = by_ordinal.get(ordinal)
        if pod is None:
            create.append(ordinal)
        if not parallel and (pod is None or not pod.ready):
            break
    surplus = [pod for pod in pods if pod.ordinal >= replicas and not pod.deleting]
    if surplus:
        surplus.sort(key=lambda pod: -pod.ordinal)
        return create, [pod.name for pod in (surplus if parallel else surplus[:1])]
    update = spec.get("updateStrategy", {})
    if update.get("type", "RollingUpdate") == "OnDelete" or create:
        return create, []
    partition = update.get("rollingUpdate", {}).get("partition", 0)
    for ordinal in range(replicas - 1, partition - 1, -1):
        pod = by_ordinal[ordinal]
        if pod.revision != revision and not pod.deleting:
            return create, [pod.name]
        if pod.deleting or not pod.ready:
            break
    return create, []


def pod_from(owner, template, name, labels):
    """A pod object from a controller's template."""
    template = copy.deepcopy(template)
    metadata = template.get("metadata") or {}
    return {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {"name": name, "namespace": owner["metadata"]["namespace"], "annotations": metadata.get("annotations") or {},
                         "labels": {**(metadata.get("labels") or {}), REVISION: revision_of(template), **labels}}}


def stateful_pod(owner, ordinal):
    """(pod object, {claim name: claim spec}) of one replica."""
    spec, name = owner["spec"], f"{owner['metadata']['name']}-{ordinal}"
    pod = pod_from(owner, spec["template"], name, {"statefulset.kubernetes.io/pod-name": name,
                                                   "apps.kubernetes.io/pod-index": str(ordinal)})
    pod["spec"].update(hostname=name, subdomain=spec["serviceName"])
    claims = {}
    for claim in spec.get("volumeClaimTemplates", ()):
        claim_name = f"{claim['metadata']['name']}-{name}"
        claims[claim_name] = claim["spec"]
        pod["spec"].setdefault("volumes", []).append({"name": claim["metadata"]["name"],
                                                      "persistentVolumeClaim": {"claimName": claim_name}})
    return pod, claims


class Controller:
    """Keeps the pods of one Deployment or StatefulSet. `reconcile` is called whenever something changed."""

    def __init__(self, cluster, obj):
        self.cluster, self.object, self._made = cluster, obj, 0

    @property
    def name(self):
        return self.object["metadata"]["name"]

    @property
    def revision(self):
        return revision_of(self.object["spec"]["template"])

    def pods(self):
        return [pod for pod in self.cluster.pod_list() if pod.object["metadata"].get("owner") == (self.object["kind"], self.name)]

    def _seen(self):
        return [Seen(pod.name, pod.labels[REVISION], pod.ready and not pod.deleting, pod.deleting,
                     int(pod.labels.get("apps.kubernetes.io/pod-index", -1))) for pod in self.pods()]

    def _make(self, pod):
        pod["metadata"]["owner"] = (self.object["kind"], self.name)
        self.cluster.add_pod(pod)

    def reconcile(self):
        spec = self.object["spec"]
        if self.object["kind"] == "StatefulSet":
            ordinals, delete = statefulset_step(spec, self.revision, self._seen())
            for ordinal in ordinals:
                pod, claims = stateful_pod(self.object, ordinal)
                for claim in claims:
                    self.cluster.add_claim(claim)
                self._make(pod)
        else:
            create, delete = deployment_step(spec, self.revision, self._seen())
            for _ in range(create):
                self._made += 1
                suffix = hashlib.sha256(f"{self.revision}{self._made}".encode()).hexdigest()[:5]
                self._make(pod_from(self.object, spec["template"], f"{self.name}-{self.revision[:9]}-{suffix}", {}))
        for pod in self.pods():
            if pod.name in delete:
                pod.delete()

    def done(self):
        """Whether all replicas are of the present template and ready, and nothing else is left."""
        pods = self.pods()
        return len(pods) == self.object["spec"].get("replicas", 1) and all(
            pod.ready and not pod.deleting and pod.labels[REVISION] == self.revision for pod in pods)
