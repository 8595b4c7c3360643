"""What an image must hold and do. Each check raises SystemExit with a line, or prints what it saw."""
import contextlib
import os
import pathlib
import re
import shutil
import subprocess

import root
from containers import PATIENCE, Container, wait_for

NOT_FOR_RUNNING = ("gcc", "g++", "cc", "cmake", "ninja", "make", "git", "pip", "pip3", "nvcc")
PROMPT = "The capital of France is"


def require(condition, message):
    if not condition:
        raise SystemExit(f"execute.py: error: {message}")


def seen(text):
    print(f"  seen: {text}", flush=True)


def content(folder, image, version):
    """What lies in the image."""
    for path in ("usr/local/bin", "usr/bin", "bin"):
        for tool in NOT_FOR_RUNNING:
            require(not (folder / path / tool).exists(), f"the image holds /{path}/{tool}")
    require(not any((folder / "var/lib/apt/lists").glob("*_Packages*")), "the image holds apt's lists")
    require(image.user == "65532:65532", f"the image's user is {image.user}")
    require(image.labels["org.opencontainers.image.version"] == version, "the label of the version is not the build argument")
    sbom = (folder / "usr/local/share/millrace/sbom.spdx").read_text()
    listed = set(re.findall(r"^PackageName: (\S+)$", sbom, re.M))
    installed = subprocess.run(["chroot", str(folder), "dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\\n"], check=True,
                               stdout=subprocess.PIPE, text=True).stdout.splitlines()
    packages = {line.split()[1] for line in installed if line.startswith("installed ")}
    require(packages <= listed, f"sbom.spdx lacks {sorted(packages - listed)}")
    seen(f"sbom.spdx names all {len(packages)} Debian packages and {len(listed - packages)} others; no compiler, no package lists; "
         f"{root.size(folder) / 1e6:.0f} MB on disk")


def libraries(folder, allowed=()):
    """Every program and library of ours finds what it loads."""
    for path in sorted((folder / "usr/local/bin").iterdir()):
        if path.read_bytes()[:4] != b"\x7fELF":
            continue
        out = subprocess.run(["chroot", str(folder), "ldd", f"/usr/local/bin/{path.name}"], check=True, stdout=subprocess.PIPE, text=True).stdout
        missing = [line.split()[0] for line in out.splitlines() if "not found" in line and not line.split()[0].startswith(tuple(allowed))]
        require(not missing, f"{path.name} does not find {', '.join(missing)}")
    seen("every program and library of ours finds the libraries it loads")


class Scene:
    """Containers of one image; what they are given lies in `work`."""

    def __init__(self, folder, image, work, model):
        self.folder, self.image, self.model = folder, image, model
        self.work = work / "run"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        secret = self.work / "join-secret"
        secret.write_text("0123456789abcdef\n")
        secret.chmod(0o444)
        # What is mounted needs a place in the image, whose root is read-only: an engine makes it before.
        for name in ("run/secrets/join-secret", "models/model.gguf"):
            root.write_file(folder / name)
        self.secret = (secret, "/run/secrets/join-secret", False)
        self.containers = contextlib.ExitStack()

    def volume(self, name):
        folder = self.work / name
        folder.mkdir()
        os.chown(folder, 65532, 65532)
        return (folder, "/var/cache/millrace", True)

    def start(self, name, argv, mounts):
        container = Container(name, self.folder, self.image, argv, mounts, self.work)
        self.containers.callback(container.kill)
        return container


def serving(scene):
    """The commands of compose.yaml, at addresses of their own: a coordinator with the model, two workers that are sent it."""
    model = (scene.model, "/models/model.gguf", False)
    secret = "--join-secret-file=/run/secrets/join-secret"
    with scene.containers:
        coordinator = scene.start("coordinator", [
            "millrace-coordinator", "--model=/models/model.gguf", "--stages=2", "--listen=127.0.0.1:50051", "--cluster-listen=127.0.0.1:50052",
            "--health-listen=127.0.0.1:50053", "--metrics=127.0.0.1:9090", secret, "--push-model"], [model, scene.secret, scene.volume("cache")])
        workers = [scene.start(f"worker-{i}", [
            "millrace-worker", "--coordinator=127.0.0.1:50052", f"--listen=127.0.0.{2 + i}:50054", f"--health-listen=127.0.0.{2 + i}:50053", secret,
            "--model-cache=/var/cache/millrace"], [scene.secret, scene.volume(f"cache-{i}")]) for i in range(2)]
        wait_for(coordinator.healthy, "HEALTHCHECK of the coordinator succeeds")
        wait_for(lambda: coordinator.execute(["millrace", "health", "--server", "127.0.0.1:50053"]).returncode == 0, "the coordinator is ready")
        answer = coordinator.execute(["millrace", "generate", "--temperature", "0", "--max-tokens", "8", PROMPT])
        require(answer.returncode == 0 and "Paris" in answer.stdout, f"generate: {answer.stdout}")
        seen(f"HEALTHCHECK succeeds; two workers were sent the model; {PROMPT!r} is answered {answer.stdout.strip()!r}")
        for container in (coordinator, *workers):
            require(container.status("Uid").split() == ["65532"] * 4, f"{container.name} runs as {container.status('Uid')}")
            require(int(container.status("CapEff"), 16) == 0 and int(container.status("CapBnd"), 16) == 0, f"{container.name} has capabilities")
            refused = container.execute(["/bin/sh", "-c", "for f in / /usr/local/bin /home/millrace /models /etc; do touch $f/x 2>/dev/null && echo $f; done"])
            require(refused.stdout == "", f"{container.name} can write to {refused.stdout}")
            allowed = container.execute(["/bin/sh", "-c", "touch /tmp/x /var/cache/millrace/x && rm /tmp/x /var/cache/millrace/x"])
            require(allowed.returncode == 0, f"{container.name} cannot write where it must: {allowed.stdout}")
        seen("user 65532 without any capability; nothing but /tmp and /var/cache/millrace can be written")
        # Its output is its own: what is left behind must not keep that of the shell open.
        coordinator.execute(["/bin/sh", "-c", "sleep 1 >/dev/null 2>&1 &"])
        require(coordinator.orphans(), "process 1 did not inherit a process whose parent has ended")
        wait_for(lambda: not coordinator.orphans(), "process 1 reaps what is left to it")
        codes = [container.stop() for container in (*workers, coordinator)]
        require(codes == [0, 0, 0], f"exit codes after SIGTERM: {codes}\n" + coordinator.text() + workers[0].text())
        seen("process 1 reaps orphans, and ends with exit code 0 at SIGTERM")


def logins(scene):
    """The sshd of an MPIJob's worker, and mpirun's way in."""
    keys = scene.work / "keys"
    keys.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "id_ed25519")], check=True)
    shutil.copy(keys / "id_ed25519.pub", keys / "authorized_keys")
    for path in (keys, *keys.iterdir()):
        os.chown(path, 65532, 65532)
    (scene.folder / "home/millrace/.ssh").mkdir(exist_ok=True)
    mounts = [(keys, "/home/millrace/.ssh", False)]
    with scene.containers:
        worker = scene.start("mpi-worker", ["/usr/local/bin/millrace-sshd"], mounts)
        launcher = scene.start("mpi-launcher", ["sleep", "infinity"], mounts)
        wait_for(lambda: "Server listening" in worker.text(), "sshd listens")
        done = launcher.execute(["ssh", "127.0.0.1", "millrace-mpi --help"])
        require(done.returncode == 0 and "millrace-mpi" in done.stdout, f"ssh: {done.stdout}\n{worker.text()}")
        refused = launcher.execute(["ssh", "-o", "IdentityFile=/dev/null", "-o", "IdentitiesOnly=yes", "127.0.0.1", "true"])
        require(refused.returncode != 0, "sshd lets in who has no key")
        job = launcher.execute(["mpirun", "-np", "1", "--bind-to", "none", "millrace-mpi", "--help"])
        require(job.returncode == 0, f"mpirun: {job.stdout}")
        seen("sshd runs as user 65532 on port 2222, lets in the job's key alone; mpirun starts millrace-mpi")


def run(target, folder, image, work, model, version):
    content(folder, image, version)
    libraries(folder, allowed=("libcuda.so",))
    scene = Scene(folder, image, work, model)
    serving(scene)
    if target == "mpi":
        logins(scene)
