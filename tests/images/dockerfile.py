"""Reads a Dockerfile: the instructions that ours use, and no others."""
import json
import re
import shlex
from dataclasses import dataclass

KNOWN = {"ARG", "FROM", "SHELL", "WORKDIR", "COPY", "RUN", "ENV", "LABEL", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@dataclass
class Stage:
    name: str
    base: str  # an image, or the name of an earlier stage
    instructions: list  # (word, rest)


def instructions(text):
    """(word, rest) of each, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word not in KNOWN:
            raise ValueError(f"{word}: not an instruction that is understood here")
        yield word, rest.strip()


def expand(text, values):
    """With ${NAME} and $NAME replaced."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: values.get(m[1] or m[2], ""), text)


def pairs(rest):
    """Of ENV and LABEL: NAME=VALUE ..., quoted or not."""
    return dict(word.split("=", 1) for word in shlex.split(rest))


def command(rest):
    """Of ENTRYPOINT, CMD and SHELL: the JSON form, which ours all have."""
    return json.loads(rest)


def parse(text, arguments):
    """The stages in order. `arguments` overrides the ARGs before the first."""
    values, stages = {}, []
    for word, rest in instructions(text):
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            stages.append(Stage(name, expand(base, values), []))
        elif stages:
            stages[-1].instructions.append((word, rest))
        else:
            name, _, default = rest.partition("=")
            values[name] = arguments.get(name, default)
    return stages


def needed(stages, target):
    """Of `stages`, those that `target` is built from, in order."""
    by_name = {stage.name: stage for stage in stages}
    if target not in by_name:
        raise ValueError(f"there is no stage {target}; there are {', '.join(by_name)}")
    wanted = set()

    def want(name):
        if name not in by_name or name in wanted:
            return
        wanted.add(name)
        want(by_name[name].base)
        for word, rest in by_name[name].instructions:
            if word == "COPY" and rest.startswith("--from="):
                want(rest.split()[0].removeprefix("--from="))

    want(target)
    return [stage for stage in stages if stage.name in wanted]
