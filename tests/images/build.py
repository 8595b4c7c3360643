"""Executes the instructions of a Dockerfile, each stage in a folder of its own."""
import fnmatch
import pathlib
import pickle
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass, field

import dockerfile
import root

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Image:
    environment: dict = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    shell: list = field(default_factory=lambda: ["/bin/sh", "-c"])
    labels: dict = field(default_factory=dict)
    entrypoint: list = field(default_factory=list)
    command: list = field(default_factory=list)
    healthcheck: list = field(default_factory=list)
    volumes: list = field(default_factory=list)

    def copy(self):
        return Image(dict(self.environment), self.folder, self.user, list(self.shell), dict(self.labels), list(self.entrypoint), list(self.command),
                     list(self.healthcheck), list(self.volumes))


class Builder:
    """`context`: the folder that COPY reads; what its .dockerignore names is not there."""

    def __init__(self, context, work, base, arguments):
        self.context = context
        self.work = work
        self.base = base
        self.arguments = arguments
        self.roots = {}
        self.images = {}
        self.ignored = [line for line in (context / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def build(self, stages, reuse=False):
        """`reuse`: stages that an earlier run has finished are taken as they are."""
        for stage in stages:
            folder, done = self.work / stage.name, self.work / f"{stage.name}.image"
            if reuse and done.exists():
                self.roots[stage.name], self.images[stage.name] = folder, pickle.loads(done.read_bytes())
                print(f"{stage.name}: as it was built before", flush=True)
                continue
            done.unlink(missing_ok=True)
            root.clone(self.roots.get(stage.base, self.base), folder)
            (folder / ".complete").unlink(missing_ok=True)
            image = self.images[stage.base].copy() if stage.base in self.images else Image()
            self.roots[stage.name], self.images[stage.name] = folder, image
            arguments = {}
            for word, rest in stage.instructions:
                print(f"{stage.name}: {word} {rest[:100]}{'...' if len(rest) > 100 else ''}", flush=True)
                begun = time.monotonic()
                self.step(folder, image, arguments, word, rest)
                if word == "RUN":
                    print(f"    done in {time.monotonic() - begun:.0f} s", flush=True)
            done.write_bytes(pickle.dumps(image))

    def step(self, folder, image, arguments, word, rest):
        if word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = self.arguments.get(name, default)
        elif word == "RUN":
            code = root.run_step(folder, {**image.environment, **arguments}, image.folder, [*image.shell, rest])
            if code:
                raise SystemExit(f"execute.py: error: a step ended with exit code {code}: RUN {rest}")
        elif word == "COPY":
            self.copy(folder, image, rest.split())
        elif word == "WORKDIR":
            image.folder = rest
            (folder / rest[1:]).mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            image.environment.update(dockerfile.pairs(rest))
        elif word == "LABEL":
            image.labels.update(dockerfile.pairs(dockerfile.expand(rest, arguments)))
        elif word == "HEALTHCHECK":
            image.healthcheck = dockerfile.command(rest.split("CMD ", 1)[1])
        elif word in ("SHELL", "ENTRYPOINT", "CMD"):
            setattr(image, {"SHELL": "shell", "ENTRYPOINT": "entrypoint", "CMD": "command"}[word], dockerfile.command(rest))
        elif word == "VOLUME":
            image.volumes = dockerfile.command(rest)
        elif word == "USER":
            image.user = rest

    def is_ignored(self, path):
        parts = pathlib.PurePath(path).parts
        for pattern in self.ignored:
            if pattern.startswith("**/"):
                if any(fnmatch.fnmatch(part, pattern[3:]) for part in parts):
                    return True
            elif fnmatch.fnmatch(parts[0], pattern):
                return True
        return False

    def context_files(self):
        """Files of the context that git knows, so that nothing of this machine's comes in by accident."""
        listed = subprocess.run(["git", "-C", str(self.context), "ls-files", "--cached", "--others", "--exclude-standard"], check=True,
                                stdout=subprocess.PIPE, text=True).stdout.splitlines()
        return [path for path in listed if not self.is_ignored(path) and (self.context / path).is_file()]

    def copy(self, folder, image, words):
        source_root = None
        if words[0].startswith("--from="):
            source_root = self.roots[words[0].removeprefix("--from=")]
            words = words[1:]
        *sources, target = words
        to = folder / (target if target.startswith("/") else f"{image.folder}/{target}").lstrip("/")
        into_folder = target.endswith("/") or len(sources) > 1 or target == "."
        for source in sources:
            if source_root is not None:
                self.copy_path(source_root / source.lstrip("/"), to, into_folder)
                continue
            files = self.context_files()
            if source == ".":
                for path in files:
                    self.copy_file(self.context / path, to / path)
            elif source in files:
                self.copy_file(self.context / source, to / pathlib.PurePath(source).name if into_folder else to)
            else:
                raise SystemExit(f"execute.py: error: COPY {source}: not in the context (see .dockerignore)")

    def copy_path(self, source, to, into_folder):
        if source.is_dir():
            to.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", f"{source}/.", str(to)], check=True)
        else:
            self.copy_file(source, to / source.name if into_folder else to)

    def copy_file(self, source, to):
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, to)


def describe(image):
    return shlex.join([*image.entrypoint, *image.command])
