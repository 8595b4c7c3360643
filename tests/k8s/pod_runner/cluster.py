"""A pretended Kubernetes cluster of one node: takes rendered objects and runs their pods. Its methods may be called by any thread;
what they do is done by the cluster's own."""
import asyncio
import concurrent.futures
import copy
import dataclasses
import pathlib
import signal
import socket
import threading
import time
import uuid

import yaml

from . import dns, lws, namespaces, rules
from .container import Image
from .controllers import Controller
from .expand import BadObject
from .pod import PodRun
from .volumes import object_data

CONTROLLED = {"Deployment": Controller, "StatefulSet": Controller, "LeaderWorkerSet": lws.LeaderWorkerSet}
STORED = ("Service", "ConfigMap", "Secret", "NetworkPolicy", "PersistentVolumeClaim")
# Objects that say nothing about how pods run on one node. Anything that is in no list is an error.
WITHOUT_EFFECT = ("ServiceAccount", "PodDisruptionBudget", "ServiceMonitor", "PodMonitor", "PrometheusRule", "HorizontalPodAutoscaler",
                  "ScaledObject", "Certificate", "Issuer")
# Seconds for which a pod's network outlives its containers, as under a kubelet: who still connects to it meanwhile is refused at once, and
# does not wait for an address that is nobody's.
SANDBOX_OUTLIVES = 2.0


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to a pod, at a time of the monotonic clock."""
    at: float
    pod: str
    container: str
    what: str
    detail: str


def load(text):
    """The objects of a rendered chart."""
    objects = [obj for obj in yaml.safe_load_all(text) if obj]
    return [inner for obj in objects for inner in (obj["items"] if obj["kind"] == "List" else [obj])]


def is_hook(obj):
    return "helm.sh/hook" in (obj["metadata"].get("annotations") or {})


class Cluster:
    """`image(reference)`: the Image that stands for a name. `image_volumes`: folders for OCI image volumes by reference. `backoff`: seconds
    before a container's second restart, doubled each time (the first restart is at once); Kubernetes has 10."""

    def __init__(self, folder, image=lambda reference: Image(), namespace="default", image_volumes=None, backoff=10.0):
        namespaces.check_machine()
        self.folder, self.namespace, self.backoff = pathlib.Path(folder), namespace, backoff
        self.log_folder = self.folder / "logs"
        self.log_folder.mkdir(parents=True)
        self.image, self.image_volumes, self.claims = image, image_volumes or {}, {}
        self.events, self.probe_counts = [], {}
        self._objects, self._controllers, self._pods = {}, {}, []
        self._addresses, self._ending = {}, set()
        self.network = namespaces.Network()
        self._loop = asyncio.new_event_loop()
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "rules")
        self._dirty, self._applied, self._asked, self._done = None, {}, 0, 0
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
        self._thread.start()
        self._call(self._begin())

    # What the cluster's thread does.

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work, seconds=60):
        if asyncio.iscoroutine(work):
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

        async def run():
            return work()
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(seconds)

    async def _begin(self):
        self._dirty = asyncio.Condition()
        sock = self.network.socket(socket.SOCK_DGRAM)
        sock.bind((namespaces.DNS_IP, 53))
        self._dns, _ = await self._loop.create_datagram_endpoint(lambda: dns.Server(self._records), sock=sock)
        self._rules_task = asyncio.ensure_future(self._write_rules())
        self._rules_task.add_done_callback(lambda task: self._failed(task, "rules"))

    def _failed(self, task, whose):
        """An error of the runner's own is an event too, so that a test that waits in vain can tell why."""
        if not task.cancelled() and task.exception() is not None:
            self.record(whose, "", "RunnerFailed", repr(task.exception()))

    def record(self, pod, container, what, detail=""):
        self.events.append(Event(time.monotonic(), pod, container, what, detail))

    def probed(self, pod, container, kind, success):
        """Counts probes: {(pod, container, kind): [failures, successes]}."""
        self.probe_counts.setdefault((pod, container, kind), [0, 0])[success] += 1

    def changed(self):
        """A pod or object changed: controllers look again, rules are written again."""
        self._asked += 1
        self._loop.call_soon(self._reconcile)
        asyncio.ensure_future(self._notify())

    async def _notify(self):
        async with self._dirty:
            self._dirty.notify_all()

    def _reconcile(self):
        for controller in list(self._controllers.values()):
            controller.reconcile()

    async def synced(self):
        """Returns when rules that know the present state are in force."""
        self.changed()
        target = self._asked
        async with self._dirty:
            await self._dirty.wait_for(lambda: self._done >= target)

    async def _write_rules(self):
        while True:
            async with self._dirty:
                await self._dirty.wait_for(lambda: self._asked > self._done)
            target = self._asked
            for uid, (namespace, text) in self._tables().items():
                if self._applied.get(uid) != text and (uid == "node" or self._pod_of(uid)):
                    await self._loop.run_in_executor(self._executor, self._restore, namespace, text)
                    self._applied[uid] = text
            async with self._dirty:
                self._done = target
                self._dirty.notify_all()

    def _pod_of(self, uid):
        return next((pod for pod in self._pods if pod.uid == uid and pod.namespace is not None), None)

    def close_namespace(self, pod):
        """Gives a pod's namespace back a while after its last process."""
        namespace, pod.namespace = pod.namespace, None
        self._applied.pop(pod.uid, None)
        self._ending.add(namespace)
        self._loop.call_later(SANDBOX_OUTLIVES, self._end_namespace, namespace)

    def _end_namespace(self, namespace):
        if namespace in self._ending:
            self._ending.remove(namespace)
            self._executor.submit(self.network.remove_pod, namespace)

    def _restore(self, namespace, text):
        try:
            namespaces.run_in(namespace, "iptables-restore", "--noflush", text=text)
        except (OSError, RuntimeError) as error:
            self.record("", "", "RulesFailed", str(error))

    # Objects as pods and rules see them.

    def _of_kind(self, kind, namespace=None):
        return [obj for (k, ns, _), obj in self._objects.items() if k == kind and namespace in (None, ns)]

    def data(self, kind, namespace, name):
        obj = self._objects.get((kind, namespace, name))
        return object_data(obj) if obj else None

    def pod_list(self):
        return list(self._pods)

    def _endpoints(self, service):
        """Pods that a Service leads to now."""
        selector = service["spec"].get("selector")
        if not selector:
            return []
        pods = [pod for pod in self._pods if pod.address and pod.namespace is not None
                and pod.pod_namespace == service["metadata"]["namespace"]
                and rules.matches({"matchLabels": selector}, pod.labels) and pod.phase in ("Pending", "Running")]
        if service["spec"].get("publishNotReadyAddresses"):
            return pods
        # Ending pods that still serve are used only where nobody else does.
        return [pod for pod in pods if pod.ready and not pod.deleting] or [pod for pod in pods if pod.ready]

    @staticmethod
    def _headless(service):
        return service["spec"].get("clusterIP") == "None"

    def cluster_services(self, namespace):
        return {service["metadata"]["name"]: (self._addresses[namespace, service["metadata"]["name"]],
                                              [(port.get("name", ""), port["port"], port.get("protocol", "TCP"))
                                               for port in service["spec"]["ports"]])
                for service in self._of_kind("Service", namespace) if not self._headless(service)}

    def _service_ports(self):
        result = []
        for service in self._of_kind("Service"):
            if self._headless(service):
                continue
            pods = self._endpoints(service)
            for port in service["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                ends = [(pod.address, target if isinstance(target, int) else pod.ports().get(target)) for pod in pods]
                result.append(rules.ServicePort(self._addresses[service["metadata"]["namespace"], service["metadata"]["name"]],
                                                port["port"], port.get("protocol", "TCP").lower(),
                                                tuple(sorted(end for end in ends if end[1]))))
        return result

    def _tables(self):
        """{uid of a pod, or "node": (namespace, its rules)}."""
        services = self._service_ports()
        pods = [pod for pod in self._pods if pod.address and pod.namespace is not None]
        peers = {pod.uid: rules.Peer(pod.pod_namespace, pod.labels, pod.address, pod.ports()) for pod in pods}
        known = [*peers.values(), rules.Peer("kube-system", {"k8s-app": "kube-dns"}, namespaces.DNS_IP, {"dns": 53, "dns-tcp": 53})]
        labels = {name: {"kubernetes.io/metadata.name": name} for name in {peer.namespace for peer in known}}
        policies = self._of_kind("NetworkPolicy")
        result = {"node": (self.network.node, rules.tables(services))}
        for pod in pods:
            text = rules.tables(services, peers[pod.uid], policies, (known, labels), namespaces.NODE_IP)
            result[pod.uid] = (pod.namespace, text)
        return result

    def _records(self):
        """All names of the cluster: {name: addresses}."""
        records = {}
        for service in self._of_kind("Service"):
            metadata = service["metadata"]
            full = f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local"
            if not self._headless(service):
                records[full] = [self._addresses[metadata["namespace"], metadata["name"]]]
                continue
            pods = self._endpoints(service)
            records[full] = [pod.address for pod in pods]
            for pod in pods:
                if pod.object["spec"].get("subdomain") == metadata["name"]:
                    records[f"{pod.hostname}.{full}"] = [pod.address]
        return records

    def add_pod(self, obj):
        obj = copy.deepcopy(obj)
        obj["metadata"].setdefault("namespace", self.namespace)
        obj["metadata"]["uid"] = str(uuid.uuid4())
        obj["spec"]["nodeName"] = "node"
        pod = PodRun(self, obj)
        self._pods.append(pod)
        pod.task = asyncio.ensure_future(pod.run())
        pod.task.add_done_callback(lambda task: self._failed(task, pod.name))
        return pod

    def add_claim(self, name):
        if name not in self.claims:
            path = self.folder / "claims" / name
            path.mkdir(parents=True)
            path.chmod(0o777)
            self.claims[name] = path

    def forget(self, pod):
        self._pods.remove(pod)
        self.changed()

    def _apply(self, obj):
        kind, name = obj["kind"], obj["metadata"]["name"]
        obj["metadata"].setdefault("namespace", self.namespace)
        key = (kind, obj["metadata"]["namespace"], name)
        if kind == "LeaderWorkerSet":
            lws.check(obj)
            # Its controller leaves a Service alone that has the name already, whoever made it.
            if ("Service", *key[1:]) not in self._objects:
                self._apply(lws.service(obj))
        if kind in CONTROLLED:
            if key in self._controllers:
                self._controllers[key].object = obj
            else:
                self._controllers[key] = CONTROLLED[kind](self, obj)
        elif kind == "Pod":
            self.add_pod(obj)
        elif kind in STORED:
            self._objects[key] = obj
            if kind == "Service" and not self._headless(obj) and key[1:] not in self._addresses:
                self._addresses[key[1:]] = self.network.next_cluster_ip()
            if kind == "PersistentVolumeClaim":
                self.add_claim(name)
            if kind in ("ConfigMap", "Secret"):
                for pod in self._pods:
                    if pod.volumes and pod.pod_namespace == key[1]:
                        pod.volumes.refresh()
        elif kind not in WITHOUT_EFFECT:
            raise BadObject(f"{kind} {name}: the runner does not play this kind")

    # What tests call.

    def apply(self, objects):
        """Takes objects as `kubectl apply` does; hooks of helm are left out."""
        def work():
            order = {kind: index for index, kind in enumerate(STORED)}
            for obj in sorted((copy.deepcopy(obj) for obj in objects if not is_hook(obj)),
                              key=lambda obj: order.get(obj["kind"], len(order))):
                self._apply(obj)
            self.changed()
        self._call(work)

    def upgrade(self, objects):
        """As `helm upgrade`: takes objects, and deletes what has pods and is not among them any more."""
        self.apply(objects)
        kept = {(obj["kind"], obj["metadata"]["name"]) for obj in objects}

        def work():
            for key, controller in list(self._controllers.items()):
                if (key[0], key[2]) not in kept:
                    del self._controllers[key]
                    for pod in controller.pods():
                        pod.delete()
        self._call(work)

    def pods(self, **labels):
        """Pods with these labels (their names with _ for anything that Python does not take), ending ones too."""
        return [pod for pod in self.pod_list() if all(
            any(key.replace("-", "_").replace(".", "_").replace("/", "_") == name and value == wanted for key, value in pod.labels.items())
            for name, wanted in labels.items())]

    def pod(self, name):
        """The living pod whose name begins so."""
        found = [pod for pod in self.pod_list() if pod.name.startswith(name) and not pod.deleting]
        assert len(found) == 1, f"{len(found)} pods begin with {name}: {[pod.name for pod in self.pod_list()]}"
        return found[0]

    def wait(self, condition, what, seconds=60.0):
        """Polls `condition`; where it stays false, the error tells all pods' states, last events and logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {seconds} s still not: {what}\n{self.report()}")
            time.sleep(0.02)

    def rolled_out(self):
        """Whether all controllers have the pods they want, ready and up to date."""
        return self._call(lambda: all(controller.done() for controller in self._controllers.values()))

    def wait_rolled_out(self, seconds=60.0):
        self.wait(self.rolled_out, "all pods are ready and up to date", seconds)

    def rollout_restart(self, kind, name):
        """As `kubectl rollout restart`."""
        def work():
            controller = self._controllers[kind, self.namespace, name]
            obj = copy.deepcopy(controller.object)
            metadata = obj["spec"]["template"].setdefault("metadata", {})
            metadata["annotations"] = {**(metadata.get("annotations") or {}), "kubectl.kubernetes.io/restartedAt": str(time.time())}
            controller.object = obj
            self.changed()
        self._call(work)

    def delete_pod(self, pod, grace=None):
        self._call(lambda: pod.delete(grace))

    def run_pod(self, obj, seconds=60.0):
        """Runs a pod that ends by itself, as `helm test` does: (succeeded, its output). The pod is deleted afterwards."""
        pod = self._call(lambda: self.add_pod(obj))
        try:
            self.wait(lambda: pod.phase in ("Succeeded", "Failed") or pod.failure, f"pod {pod.name} ends", seconds)
        finally:
            self.delete_pod(pod, 0)
            self.wait(pod.gone.is_set, f"pod {pod.name} is gone")
        output = "".join(path.read_text(errors="replace") for path in self.logs(pod))
        return pod.phase == "Succeeded", output + pod.failure

    def start_pod(self, obj):
        return self._call(lambda: self.add_pod(obj))

    def execute(self, pod, command, container=None, seconds=60.0):
        """As `kubectl exec`: (exit code, output)."""
        return self._call(pod.life(container).container.execute(command), seconds)

    def logs(self, pod):
        return sorted(self.log_folder.glob(f"{pod.name}.{pod.object['metadata']['uid']}.*"))

    def happened(self, pod="", what=None):
        return [event for event in list(self.events) if event.pod.startswith(pod) and what in (None, event.what)]

    def uninstall(self, seconds=60.0):
        """Deletes everything, and returns when it is gone."""
        def work():
            self._controllers.clear()
            for pod in self._pods:
                pod.delete()
        self._call(work)
        self.wait(lambda: not self._pods, "all pods are gone", seconds)
        self._call(lambda: self._objects.clear() or self.changed())

    def close(self):
        """Ends whatever still runs, without grace, and gives everything back."""
        async def stop():
            self._controllers.clear()
            for pod in list(self._pods):
                pod.delete(0)
                for life in pod.lives:
                    if life.container:
                        life.container.signal(signal.SIGKILL)
            while self._pods and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            for namespace in list(self._ending):
                self._end_namespace(namespace)
            self._rules_task.cancel()
            self._dns.close()
            await asyncio.gather(self._rules_task, return_exceptions=True)
            if self._pods:
                raise AssertionError(f"pods that do not end:\n{self.report()}")
        deadline = time.monotonic() + 20
        try:
            self._call(stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._executor.shutdown()
            self._loop.close()
            self.network.close()

    def report(self):
        """What a person wants to see when something did not happen."""
        lines = ["pods:"]
        for pod in self.pod_list():
            states = [f"{life.name}: {'ready' if life.ready else 'started' if life.started else 'not started'}, {life.restarts} restarts,"
                      f" last exit {life.exit_code} {life.message}" for life in pod.lives]
            lines.append(f"  {pod.name} {pod.address} {pod.phase}{' ending' if pod.deleting else ''} {'; '.join(states)} {pod.failure}")
        events = list(self.events)
        lines.append("events (of equal ones in a row, the first):")
        shown, last = [], {}
        for event in events:
            if last.get((event.pod, event.container)) != (event.what, event.detail):
                shown.append(f"  {event.at - events[0].at:7.2f} {event.pod} {event.container} {event.what} {event.detail}"[:300])
            last[event.pod, event.container] = (event.what, event.detail)
        lines += shown[-80:]
        for path in sorted(self.log_folder.iterdir()):
            text = path.read_text(errors="replace").splitlines()[-15:]
            lines.append(f"log {path.name}:")
            lines += [f"  {line}" for line in text]
        return "\n".join(lines)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()
