"""Processes of an image, run as a container engine would run them."""
import os
import pathlib
import signal
import subprocess
import time

import root

PATIENCE = 60


class Container:
    """Started by the constructor; `name` is for messages. All share one network namespace, so that their addresses differ instead."""

    def __init__(self, name, folder, image, argv, mounts, work):
        self.name = name
        self.log = work / f"{name}.log"
        self.rootfs, self.image, self.mounts = folder, image, mounts
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(root.container_argv(folder, image, [*image.entrypoint, *argv], mounts), stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=subprocess.STDOUT)
        self.first = None

    def init(self):
        """Process 1 of the container, as this machine numbers it."""
        if self.process.poll() is not None:
            raise SystemExit(f"execute.py: error: {self.name} ended with {self.process.returncode}:\n{self.text()}")
        if self.first is None:
            self.first = wait_for(self.find_init, f"{self.name} starts")
        return self.first

    def find_init(self):
        for pid in children(self.process.pid):
            if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == pathlib.Path(self.image.entrypoint[0]).name:
                return pid
        return None

    def execute(self, argv):
        """As `docker exec`: with the container's namespaces, user and environment."""
        environment = [f"{name}={value}" for name, value in self.image.environment.items()]
        user, group = self.image.user.split(":")
        return subprocess.run(["nsenter", f"--target={self.init()}", "--mount", "--pid", "--uts", "--ipc", f"--root=/proc/{self.init()}/root",
                               f"--wd=/proc/{self.init()}/root", "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs",
                               "--bounding-set=-all", "env", "-i", *environment, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)

    def healthy(self):
        return self.execute(self.image.healthcheck).returncode == 0

    def text(self):
        return self.log.read_text(errors="replace")

    def status(self, field):
        lines = pathlib.Path(f"/proc/{children(self.init())[0]}/status").read_text().splitlines()
        return next(line.split("\t", 1)[1] for line in lines if line.startswith(field + ":"))

    def orphans(self):
        """Children of process 1 but the one that it started, dead or alive."""
        return children(self.init())[1:]

    def stop(self):
        """SIGTERM to process 1, as an engine does; its exit code."""
        os.kill(self.init(), signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def children(pid):
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_for(condition, what):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise SystemExit(f"execute.py: error: waited {PATIENCE} s in vain: {what}")
