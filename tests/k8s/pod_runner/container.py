"""One container as a process: starts it through the shim, runs programs in it, signals it, and tells how it ended."""
import asyncio
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from .expand import BadObject, command_line, environment

SHIM = pathlib.Path(__file__).with_name("shim.py")
# The standard library's own python: the shim needs no packages.
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass(frozen=True)
class Image:
    """What stands for a container image: its configuration, and the programs in its /usr/local/bin ({name: path here}).
    The rest of its root is /usr of this machine. `folders`: writable ones that it brings, {path: uid}."""
    entrypoint: tuple = ()
    command: tuple = ()
    env: tuple = ()
    user: int = 65532
    workdir: str = "/"
    programs: tuple = ()
    folders: tuple = ()


def _identity(spec, pod_spec, image):
    """(uid, gid, groups) by the security contexts."""
    pod_context, context = pod_spec.get("securityContext", {}), spec.get("securityContext", {})
    both = {**pod_context, **context}
    uid = both.get("runAsUser", image.user)
    gid = both.get("runAsGroup", uid if "runAsUser" not in both else 0)
    if both.get("runAsNonRoot") and uid == 0:
        raise BadObject(f"container {spec['name']}: runAsNonRoot, but it would run as root")
    groups = set(pod_context.get("supplementalGroups", ()))
    if "fsGroup" in pod_context:
        groups.add(pod_context["fsGroup"])
    return uid, gid, sorted(groups)


class Container:
    """A started or startable container of a pod. Owned by the runner's thread; `pid` is that of its first process here."""

    def __init__(self, pod, spec, image):
        """`pod`: the PodRun it belongs to."""
        self.pod, self.spec, self.image = pod, spec, image
        self.name = spec["name"]
        self.network, self.address = pod.network, pod.address
        self.pid = None
        self.env = environment(spec, pod.object, pod.data, {"PATH": PATH, "HOSTNAME": pod.hostname, "HOME": "/",
                                                            **dict(image.env), **pod.service_variables()})
        self.command = command_line(spec, (image.entrypoint, image.command), self.env)
        self.uid, self.gid, self.groups = _identity(spec, pod.object["spec"], image)
        self._shim = self._control = self._status = self._pidfd = None
        self._ended = asyncio.get_running_loop().create_future()

    def port(self, reference):
        """The number of a port given by number or by name."""
        if isinstance(reference, int):
            return reference
        for port in self.spec.get("ports", ()):
            if port.get("name") == reference:
                return port["containerPort"]
        raise BadObject(f"container {self.name} has no port named {reference}")

    def _shim_spec(self, folder):
        context = self.spec.get("securityContext", {})
        mounts = self.pod.volumes.mounts(self.spec)
        message = folder / "termination-log"
        message.write_bytes(b"")
        message.chmod(0o666)
        mounts.append({"source": str(message), "read_only": False,
                       "target": self.spec.get("terminationMessagePath", "/dev/termination-log")})
        root = folder / "root"
        root.mkdir()
        folders = [{"path": "/tmp", "uid": 0, "gid": 0, "mode": 0o1777}, {"path": "/var/tmp", "uid": 0, "gid": 0, "mode": 0o1777}]
        folders += [{"path": path, "uid": uid, "gid": uid, "mode": 0o755} for path, uid in self.image.folders]
        return {"root": str(root), "hostname": self.pod.hostname, "etc": self.pod.etc(), "folders": folders, "mounts": mounts,
                "programs": {name: str(path) for name, path in self.image.programs},
                "read_only_root": bool(context.get("readOnlyRootFilesystem")),
                "drop_capabilities": "ALL" in context.get("capabilities", {}).get("drop", ()),
                "no_new_privileges": context.get("allowPrivilegeEscalation") is False,
                "uid": self.uid, "gid": self.gid, "groups": self.groups, "cwd": self.spec.get("workingDir", self.image.workdir),
                "command": self.command, "env": self.env}

    async def start(self, folder, log):
        """Starts it; its output goes to the file `log`. Raises BadObject where it cannot start."""
        folder.mkdir(parents=True)
        self._folder = folder
        spec_fd = os.memfd_create("spec", os.MFD_CLOEXEC)
        os.write(spec_fd, json.dumps(self._shim_spec(folder)).encode())
        os.lseek(spec_fd, 0, os.SEEK_SET)
        control, self._control = os.pipe2(os.O_CLOEXEC)
        status, status_write = os.pipe2(os.O_CLOEXEC)
        fds = (spec_fd, control, status_write, self.pod.namespace)
        try:
            with open(log, "ab") as out:
                self._shim = subprocess.Popen([PYTHON, "-I", "-S", str(SHIM), *map(str, fds)], stdin=subprocess.DEVNULL, stdout=out,
                                              stderr=out, pass_fds=fds)
        finally:
            for fd in (spec_fd, control, status_write):
                os.close(fd)
        reader = asyncio.StreamReader()
        self._status, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(status, "rb"))
        first = await self._message(reader)
        if "pid" not in first:
            self._finish()
            raise BadObject(f"container {self.name} cannot start: {first.get('error', 'its shim ended')}")
        self.pid = first["pid"]
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._pidfd = None
        self._watcher = asyncio.ensure_future(self._watch(reader))

    @staticmethod
    async def _message(reader):
        line = await reader.readline()
        return json.loads(line) if line else {}

    async def _watch(self, reader):
        last = await self._message(reader)
        self._finish()
        self._ended.set_result(last.get("exit", 128 + signal.SIGKILL))

    def _finish(self):
        self._status.close()
        self._shim.wait()
        os.close(self._control)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    async def wait(self):
        """The exit code; 128 + N where signal N ended it."""
        return await asyncio.shield(self._ended)

    def running(self):
        return self.pid is not None and not self._ended.done()

    def signal(self, number):
        """Signals its first process; nothing happens where that has ended."""
        if self.running() and self._pidfd is not None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    def termination_message(self):
        text = (self._folder / "termination-log").read_text(errors="replace")[:4096]
        return text.strip()

    async def execute(self, command):
        """Runs a program in the container as exec probes and preStop do: (exit code, output)."""
        if not self.running():
            return 137, "the container does not run"
        privileges = ["--reuid", str(self.uid), "--regid", str(self.gid), "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        privileges += ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        process = await asyncio.create_subprocess_exec(
            shutil.which("nsenter"), "--target", str(self.pid), "--mount", "--net", "--uts", "--ipc", "--pid", "--root", "--wd",
            "/usr/bin/setpriv", *privileges, "--", *[str(part) for part in command], env=self.env, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = await process.communicate()
            return process.returncode, output.decode(errors="replace")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
