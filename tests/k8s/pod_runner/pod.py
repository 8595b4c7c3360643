"""A pod as the kubelet runs it: init containers, probes, restarts, readiness, and the order in which it ends."""
import asyncio
import pathlib
import shutil
import signal
import time

from . import namespaces, probes
from .container import Container
from .expand import BadObject, service_variables
from .volumes import Volumes

# The kubelet gives at least this long after SIGTERM, however long preStop took.
LEAST_AFTER_PRESTOP = 2.0
MAX_BACKOFF = 300.0
UNPLAYED = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "ephemeralContainers")


class ContainerLife:
    """One container of a pod through all its restarts."""

    def __init__(self, pod, spec):
        self.pod, self.spec, self.name = pod, spec, spec["name"]
        self.specs = {kind: probes.ProbeSpec.of(kind, spec.get(f"{kind}Probe")) for kind in ("startup", "liveness", "readiness")}
        self.started = self.ready = False
        self.restarts, self.exit_code, self.message = 0, None, ""
        self.container = None
        self._stopping = None

    def record(self, what, detail=""):
        self.pod.cluster.record(self.pod.name, self.name, what, detail)

    def _set(self, started=None, ready=None):
        before = (self.started, self.ready)
        self.started = self.started if started is None else started
        self.ready = self.ready if ready is None else ready
        if (self.started, self.ready) != before:
            self.record("Ready" if self.ready else "NotReady")
            self.pod.cluster.changed()

    async def run_once(self):
        """Starts the container and returns its exit code."""
        pod = self.pod
        self._stopping = None
        self.container = Container(pod, self.spec, pod.cluster.image(self.spec["image"]))
        folder = pod.folder / "containers" / f"{self.name}.{self.restarts}"
        await self.container.start(folder, pod.log(self.name, self.restarts))
        self.record("Started", " ".join(self.container.command))
        if pod.deleting:
            self.container.signal(signal.SIGKILL)
        probing = asyncio.ensure_future(self._probe(self.container))
        try:
            self.exit_code = await self.container.wait()
        finally:
            probing.cancel()
            self._set(started=False, ready=False)
        self.message = self.container.termination_message()
        if not self.message and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError" and self.exit_code:
            self.message = "\n".join(pod.log(self.name, self.restarts).read_text(errors="replace").splitlines()[-80:])
        self.record("Exited", f"code {self.exit_code}{': ' + self.message if self.message else ''}")
        shutil.rmtree(folder, ignore_errors=True)
        return self.exit_code

    async def run(self, policy):
        """Runs it until the restart policy lets it rest; returns the last exit code."""
        backoff = 0.0
        while True:
            begun = time.monotonic()
            try:
                code = await self.run_once()
            except BadObject as error:
                self.record("CannotStart", str(error))
                code = None
            again = policy == "Always" or (policy == "OnFailure" and code != 0) or code is None
            if self.pod.deleting or not again:
                return code
            first = self.pod.cluster.backoff
            if time.monotonic() - begun > 600:
                backoff = 0.0
            if backoff:
                self.record("BackOff", f"{backoff:g} s")
                await self.pod.sleep_unless_deleting(backoff)
                if self.pod.deleting:
                    return code
            backoff = min(MAX_BACKOFF, backoff * 2) if backoff else first
            self.restarts += 1

    async def _probe(self, container):
        try:
            if self.specs["startup"]:
                await self._probe_until(self.specs["startup"], container, lambda value: value)
            if not container.running():
                return
            self._set(started=True, ready=self.specs["readiness"] is None)
            await asyncio.gather(*(self._probe_until(self.specs[kind], container, lambda value: False)
                                   for kind in ("liveness", "readiness") if self.specs[kind]))
        except BadObject as error:
            self.record("CannotProbe", str(error))

    async def _probe_until(self, spec, container, enough):
        """Probes at the period until `enough` of the value that the results gave."""
        state = probes.ProbeState(spec)
        await asyncio.sleep(spec.initial_delay)
        # The task is cancelled with the container, but wait_for may swallow that.
        while container.running():
            begun = time.monotonic()
            # The kubelet does not restart what it is about to end; readiness goes on being asked.
            if spec.kind == "readiness" or not self.pod.deleting:
                success, seen = await probes.probe_once(spec, container)
                if not container.running():
                    return
                if not success:
                    self.record(f"{spec.kind} probe failed", seen)
                self.pod.cluster.probed(self.pod.name, self.name, spec.kind, success)
                if state.result(success):
                    self._act(spec, state.value, seen)
                    if enough(state.value):
                        return
            await asyncio.sleep(max(0.0, spec.period - (time.monotonic() - begun)))

    def _act(self, spec, value, seen):
        if spec.kind == "readiness":
            self._set(ready=value)
        elif not value and not self._stopping:
            self.record("Unhealthy", f"{spec.kind} probe failed {spec.failure_threshold} times, last: {seen}; it is restarted")
            grace = spec.grace if spec.grace is not None else self.pod.grace
            self._stopping = asyncio.ensure_future(self.stop(grace))

    async def stop(self, grace):
        """preStop, SIGTERM, and SIGKILL when the grace period is over. Returns when the process has ended."""
        container = self.container
        if container is None or not container.running():
            return
        deadline = time.monotonic() + grace
        hook = self.spec.get("lifecycle", {}).get("preStop")
        if hook and grace > 0:
            await self._pre_stop(hook, container, grace)
        if container.running():
            self.record("SIGTERM")
            container.signal(signal.SIGTERM)
        left = max(deadline - time.monotonic(), LEAST_AFTER_PRESTOP if hook else 0)
        try:
            await asyncio.wait_for(container.wait(), left)
        except asyncio.TimeoutError:
            self.record("SIGKILL", f"still running {grace:g} s after it was told to end")
            container.signal(signal.SIGKILL)
            await container.wait()

    async def _pre_stop(self, hook, container, grace):
        self.record("preStop", str(hook))
        try:
            if "exec" in hook:
                code, output = await asyncio.wait_for(container.execute(hook["exec"]["command"]), grace)
                self.record("preStop ended", f"exit code {code}: {output.strip()[-300:]}")
            elif "sleep" in hook:
                await asyncio.wait_for(asyncio.sleep(hook["sleep"]["seconds"]), grace)
            else:
                raise BadObject(f"container {self.name}: the runner does not play preStop {sorted(hook)}")
        except asyncio.TimeoutError:
            self.record("preStop cut off", f"after {grace:g} s")


class PodRun:
    """One pod from its making to its end. `object` is the pod object with `status`."""

    def __init__(self, cluster, obj):
        self.cluster, self.object = cluster, obj
        self.name, self.pod_namespace = obj["metadata"]["name"], obj["metadata"]["namespace"]
        self.uid = obj["metadata"]["uid"]
        self.labels = obj["metadata"].get("labels", {})
        spec = obj["spec"]
        for key in UNPLAYED:
            if spec.get(key):
                raise BadObject(f"pod {self.name}: the runner does not play {key}")
        self.hostname = spec.get("hostname", self.name)
        self.grace = spec.get("terminationGracePeriodSeconds", 30)
        self.folder = pathlib.Path(cluster.folder) / "pods" / f"{self.name}.{self.uid}"
        self.network, self.address, self.namespace, self.volumes = cluster.network, None, None, None
        self.lives, self.phase, self.failure = [], "Pending", ""
        self.deleting = False
        self._delete_asked = asyncio.Event()
        self.gone = asyncio.Event()

    @property
    def ready(self):
        return bool(self.lives) and self.phase == "Running" and all(life.ready and life.started for life in self.lives)

    def life(self, container=None):
        return next(life for life in self.lives if container in (None, life.name))

    def data(self, kind, name):
        return self.cluster.data(kind, self.pod_namespace, name)

    def log(self, container, restart):
        return self.cluster.log_folder / f"{self.name}.{self.uid}.{container}.{restart}.log"

    def ports(self):
        """{name: number} of all containers' named ports."""
        return {port["name"]: port["containerPort"] for container in self.object["spec"]["containers"]
                for port in container.get("ports", ()) if "name" in port}

    def service_variables(self):
        if not self.object["spec"].get("enableServiceLinks", True):
            return {}
        return service_variables(self.cluster.cluster_services(self.pod_namespace))

    def etc(self):
        domain = f"{self.pod_namespace}.svc.cluster.local"
        subdomain = self.object["spec"].get("subdomain")
        full = f"{self.hostname}.{subdomain}.{domain} " if subdomain else ""
        return {"hosts": f"127.0.0.1 localhost\n{self.address} {full}{self.hostname}\n",
                "hostname": f"{self.hostname}\n",
                "resolv.conf": f"nameserver {namespaces.DNS_IP}\nsearch {domain} svc.cluster.local cluster.local\noptions ndots:5\n",
                "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
                "passwd": "root:x:0:0:root:/root:/bin/sh\nmillrace:x:65532:65532::/:/usr/sbin/nologin\n",
                "group": "root:x:0:\nmillrace:x:65532:\n"}

    async def sleep_unless_deleting(self, seconds):
        try:
            await asyncio.wait_for(self._delete_asked.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    async def run(self):
        """The whole life. Ends when the pod is deleted and gone."""
        try:
            await self._start()
        except BadObject as error:
            self.failure = str(error)
            self.cluster.record(self.name, "", "Failed", self.failure)
        self.cluster.changed()
        await self._delete_asked.wait()
        await self._stop()

    async def _start(self):
        self.namespace, self.address = self.network.add_pod()
        self.object["status"] = {"podIP": self.address, "hostIP": namespaces.NODE_IP}
        self.volumes = Volumes(self.object, self.folder / "volumes", self.data, self.cluster.claims, self.cluster.image_volumes)
        # Policies and Services hold before the first process runs.
        await self.cluster.synced()
        spec = self.object["spec"]
        policy = spec.get("restartPolicy", "Always")
        for init in spec.get("initContainers", ()):
            if init.get("restartPolicy"):
                raise BadObject(f"pod {self.name}: the runner does not play sidecars (init container {init['name']})")
            life = ContainerLife(self, init)
            self.lives = [life]
            code = await life.run("OnFailure" if policy == "Always" else policy)
            if self.deleting or code:
                self.phase = "Failed"
                return
        self.lives = [ContainerLife(self, container) for container in spec["containers"]]
        self.phase = "Running"
        self._tasks = [asyncio.ensure_future(life.run(policy)) for life in self.lives]
        codes = await asyncio.gather(*self._tasks)
        self.phase = "Succeeded" if not any(codes) else "Failed"

    def delete(self, grace=None):
        """Begins the end; asked again, nothing changes."""
        if not self.deleting:
            self.deleting = True
            self.grace = self.grace if grace is None else grace
            self.cluster.record(self.name, "", "Deleted", f"grace {self.grace:g} s")
            self.cluster.changed()
            self._ending = asyncio.ensure_future(self._end_containers())

    async def _end_containers(self):
        self._delete_asked.set()
        await asyncio.gather(*(life.stop(self.grace) for life in self.lives))

    async def _stop(self):
        await self._ending
        if self.namespace is not None:
            self.cluster.close_namespace(self)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.cluster.record(self.name, "", "Gone")
        self.gone.set()
        self.cluster.forget(self)
