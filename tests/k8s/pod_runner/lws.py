"""LeaderWorkerSets, as the controller of sigs.k8s.io/lws makes their pods: groups of a leader and workers that know their index."""
from .controllers import REVISION, Controller, pod_from, revision_of
from .expand import BadObject

PREFIX = "leaderworkerset.sigs.k8s.io"


def check(obj):
    """Raises BadObject for what the runner does not play."""
    policy = obj["spec"]["leaderWorkerTemplate"].get("restartPolicy", "RecreateGroupOnPodRestart")
    if policy != "None":
        raise BadObject(f"LeaderWorkerSet {obj['metadata']['name']}: the runner does not play restartPolicy {policy}")


def group_pod(owner, group, index):
    """The pod object of one member of a group; index 0 is the leader."""
    name, namespace = owner["metadata"]["name"], owner["metadata"]["namespace"]
    spec = owner["spec"]["leaderWorkerTemplate"]
    leader = f"{name}-{group}"
    template = spec.get("leaderTemplate") or spec["workerTemplate"] if index == 0 else spec["workerTemplate"]
    pod_name = leader if index == 0 else f"{leader}-{index}"
    pod = pod_from(owner, template, pod_name, {f"{PREFIX}/name": name, f"{PREFIX}/group-index": str(group),
                                               f"{PREFIX}/worker-index": str(index)})
    pod["spec"].update(hostname=pod_name, subdomain=name)
    env = [{"name": "LWS_LEADER_ADDRESS", "value": f"{leader}.{name}.{namespace}"},
           {"name": "LWS_GROUP_SIZE", "value": str(spec["size"])}, {"name": "LWS_WORKER_INDEX", "value": str(index)}]
    for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
        # In front: the container's own variables may refer to them.
        container["env"] = env + (container.get("env") or [])
    return pod


def service(owner):
    """The headless Service that the controller makes for the names of the pods."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": owner["metadata"]["name"],
                                                               "namespace": owner["metadata"]["namespace"]},
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "ports": [],
                     "selector": {f"{PREFIX}/name": owner["metadata"]["name"]}}}


class LeaderWorkerSet(Controller):
    """Keeps the groups of one LeaderWorkerSet. An update replaces whole groups, from the highest down."""

    @property
    def revision(self):
        return revision_of(self.object["spec"]["leaderWorkerTemplate"])

    def _members(self):
        return [(group, index) for group in range(self.object["spec"].get("replicas", 1))
                for index in range(self.object["spec"]["leaderWorkerTemplate"]["size"])]

    def reconcile(self):
        by_member = {(int(pod.labels[f"{PREFIX}/group-index"]), int(pod.labels[f"{PREFIX}/worker-index"])): pod for pod in self.pods()}
        after_leader = self.object["spec"].get("startupPolicy", "LeaderCreated") == "LeaderReady"
        wanted = self._members()
        for group, index in wanted:
            leader = by_member.get((group, 0))
            if (group, index) in by_member or (index and (leader is None or leader.deleting or (after_leader and not leader.ready))):
                continue
            pod = group_pod(self.object, group, index)
            pod["metadata"]["labels"][REVISION] = self.revision
            self._make(pod)
        for member, pod in by_member.items():
            if member not in wanted:
                pod.delete()
        for group in sorted({group for group, _ in wanted}, reverse=True):
            pods = [pod for (of, _), pod in by_member.items() if of == group]
            if any(pod.labels[REVISION] != self.revision for pod in pods):
                for pod in pods:
                    pod.delete()
                return
            # The next group goes only when this one is whole again.
            if len(pods) < self.object["spec"]["leaderWorkerTemplate"]["size"] or not all(pod.ready and not pod.deleting for pod in pods):
                return

    def done(self):
        pods = self.pods()
        return len(pods) == len(self._members()) and all(
            pod.ready and not pod.deleting and pod.labels[REVISION] == self.revision for pod in pods)
