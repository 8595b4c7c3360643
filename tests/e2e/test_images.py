"""What can be said of the images where no container engine runs: their build files are sound, name every library that the
programs need, and what compose.yaml would start serves."""
import fnmatch
import os
import pathlib
import re
import subprocess
import sys

import harness
import jsonschema
import pytest
import yaml

DOCKER = harness.ROOT / "deploy" / "docker"
FILES = ["Dockerfile.cpu", "Dockerfile.cuda"]
PROGRAMS = ["millrace-coordinator", "millrace-worker", "millrace", "millrace-mpi"]


def instructions(name):
    """(word, rest) of each instruction, continued lines joined."""
    lines = [line for line in (DOCKER / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages(name):
    """Each stage's instructions, FROM included, by stage name; in order."""
    found = {}
    for word, rest in instructions(name):
        if word == "FROM":
            current = found.setdefault(rest.split(" AS ")[1], [])
        elif not found:
            continue
        current.append((word, rest))
    return found


def hadolint(text):
    return subprocess.run([pathlib.Path(sys.executable).parent / "hadolint", "-"], input=text, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=harness.PATIENCE)


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name):
    text = (DOCKER / name).read_text()
    done = hadolint(text)
    assert done.returncode == 0 and done.stdout == "", done.stdout
    done = hadolint(text.replace("ARG DEBIAN=debian:12-slim", "").replace("${DEBIAN}", "debian:latest"))
    assert done.returncode != 0 and "DL3007" in done.stdout, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_stages_are_pinned_and_end_without_root(name):
    assert instructions(name)[0] == ("ARG", "DEBIAN=debian:12-slim")
    every = stages(name)
    assert list(every)[-1] == "runtime", "what is built without --target"
    seen = []
    for stage, lines in every.items():
        base = lines[0][1].split(" AS ")[0]
        assert base == "${DEBIAN}" or base in seen, f"{stage} begins with {base}"
        seen.append(stage)
        if stage in ("runtime", "mpi"):
            assert lines[-1] == ("USER", "65532:65532")
        assert not any(word == "ADD" for word, _ in lines)
    last = [line for lines in list(every.values())[1:] for line in lines]
    said = {word: rest for word, rest in last}
    assert said["ENTRYPOINT"] == '["/usr/bin/tini", "--"]'
    assert said["EXPOSE"].split() == ["50051", "50052", "50053", "50054", "9090"]
    assert '"millrace", "health", "--server", "127.0.0.1:50053"' in said["HEALTHCHECK"]
    labels = next(rest for word, rest in last if word == "LABEL")
    for label in ("title", "description", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in labels
    if "mpi" in every:
        assert any("usermod --shell /bin/sh millrace" in rest for _, rest in every["mpi"]), "sshd runs commands by the login shell"
    if name == "Dockerfile.cuda":
        assert any("NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility" == rest for _, rest in last)


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_in_the_context(name):
    ignored = [line for line in (harness.ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for _, rest in (line for line in instructions(name) if line[0] == "COPY" and "--from" not in line[1]):
        for source in rest.split()[:-1]:
            assert (harness.ROOT / source).exists(), source
            for pattern in ignored:
                assert not fnmatch.fnmatch(source.split("/")[0], pattern), f"{source} is left out by {pattern}"
    # What the build reads of the sources, by the folders that its CMakeLists.txt adds.
    for folder in ("cli", "common", "coordinator", "deploy", "kernels", "model", "proto", "worker", "cmake"):
        assert not any(fnmatch.fnmatch(folder, pattern) for pattern in ignored)


def test_the_context_can_be_configured(tmp_path):
    """What .dockerignore leaves is enough for cmake; tests/images/execute.py goes on from there."""
    sys.path.insert(0, str(harness.ROOT / "tests" / "images"))
    import build
    builder = build.Builder(harness.ROOT, tmp_path, None, {})
    builder.copy(tmp_path / "image", build.Image(folder="/src"), [".", "."])
    (run,) = [rest for word, rest in stages("Dockerfile.cpu")["build"] if word == "RUN" and rest.startswith("cmake ")]
    words = run.split("&&")[0].split()
    assert words[:5] == ["cmake", "-S", ".", "-B", "/build"]
    done = subprocess.run([*words[:4], str(tmp_path / "build"), *words[5:]], cwd=tmp_path / "image" / "src", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=5 * harness.PATIENCE)
    assert done.returncode == 0, done.stdout


def depends():
    """Package: groups of alternatives that it depends on, of all that are installed."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}\t${Package}\t${Pre-Depends}, ${Depends}\n"], check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    packages = {}
    for line in listed.splitlines():
        status, package, needs = line.split("\t")
        if status == "installed":
            packages[package] = [[re.split(r"[ :(]", part.strip())[0] for part in group.split("|")]
                                 for group in needs.split(",") if group.strip()]
    return packages


def owners(libraries):
    """The package of each file; Debian's lists may or may not have /usr before /lib."""
    names = {}
    for library in libraries:
        real = os.path.realpath(library)
        for path in (real, real.removeprefix("/usr")):
            names[path] = library
    found = subprocess.run(["dpkg", "-S", *names], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    packages = {}
    for line in found.splitlines():
        package, path = line.rsplit(": ", 1)
        packages[names[path]] = package.split(":")[0]
    assert set(packages) == set(libraries), f"of no package: {set(libraries) - set(packages)}"
    return set(packages.values())


@pytest.mark.parametrize("name", FILES)
def test_runtime_packages_bring_every_library(name):
    installs = next(rest for stage, lines in stages(name).items() if stage in ("base", "runtime")
                    for word, rest in lines if word == "RUN" and "apt-get install" in rest)
    named = re.search(r"--no-install-recommends (.*?)&&", installs).group(1).split()
    packages = depends()
    reached, todo = set(), list(named)
    while todo:
        package = todo.pop()
        if package in reached:
            continue
        reached.add(package)
        for group in packages.get(package, []):
            todo += [other for other in group if other in packages]
    libraries = set()
    for program in PROGRAMS:
        text = subprocess.run(["ldd", harness.BIN / program], check=True, stdout=subprocess.PIPE, text=True).stdout
        assert "not found" not in text, text
        libraries |= set(re.findall(r"=> (/\S+)", text))
    assert len(libraries) > 20
    needed = owners(libraries)
    assert not needed - reached, f"{name} does not install {needed - reached}"
    assert "libgrpc++1.51" in named and "libgrpc++1.51" in needed


def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def fields(**properties):
    return {"type": "object", "additionalProperties": False, "properties": properties}


TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
DURATION = {"type": "string", "pattern": "^[0-9]+s$"}
# What compose.yaml uses of the compose specification (compose-spec.json of June 2026); other fields would be ignored or refused.
COMPOSE = {
    "type": "object", "additionalProperties": False, "required": ["name", "services"], "patternProperties": {"^x-": {}},
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {"type": "object", "additionalProperties": fields(
            image=TEXT, build=fields(context=TEXT, dockerfile=TEXT, target=TEXT, args={"type": "object"}), user=TEXT,
            command=TEXTS, read_only={"type": "boolean"}, tmpfs=TEXTS, cap_drop=TEXTS, security_opt=TEXTS,
            restart={"enum": ["no", "always", "on-failure", "unless-stopped"]}, stop_grace_period=DURATION, secrets=TEXTS,
            ports={"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:[^ ]+:[0-9]+$"}},
            depends_on={"type": "object", "additionalProperties": fields(condition={
                "enum": ["service_started", "service_healthy", "service_completed_successfully"]})},
            volumes={"type": "array", "items": {"anyOf": [
                {"type": "string", "pattern": "^[a-z0-9-]+:/"},
                fields(type={"const": "bind"}, source=TEXT, target=TEXT, read_only={"type": "boolean"})]}})},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
        "secrets": {"type": "object", "additionalProperties": fields(file=TEXT)},
    },
}


def test_compose_is_what_the_specification_knows():
    check = jsonschema.Draft7Validator(COMPOSE)
    assert not [error.message for error in check.iter_errors(compose())]
    services = compose()["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services) and set(service["secrets"]) <= set(compose()["secrets"])
    for name, value in (("read_onyl", True), ("read_only", "yes"), ("restart", "sometimes"), ("ports", ["50051:50051"])):
        wrong = compose()
        wrong["services"]["coordinator"][name] = value
        assert not check.is_valid(wrong), name


def test_compose_confines_each_container():
    services = compose()["services"]
    assert list(services) == ["coordinator", "worker-0", "worker-1"]
    for service in services.values():
        assert service["user"] == "65532:65532" and service["read_only"] is True and service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert (harness.ROOT / service["build"]["dockerfile"]).exists()
    for volume in ("cache-0", "cache-1"):
        assert volume in compose()["volumes"]


def test_secret_of_compose_gets_into_no_image_or_commit():
    default = re.fullmatch(r"\$\{JOIN_SECRET:-\./([a-z-]+)\}", compose()["secrets"]["join-secret"]["file"]).group(1)
    assert f"**/{default}" in (harness.ROOT / ".dockerignore").read_text().splitlines()
    assert default in (harness.ROOT / ".gitignore").read_text().splitlines()
    # Compose reads a relative path from the folder of its file, wherever it is called.
    for told in ("docs/DEPLOY.md", "deploy/docker/compose.yaml"):
        written = re.findall(r"openssl rand -hex 16 >(\S+)", (harness.ROOT / told).read_text())
        assert f"deploy/docker/{default}" in written, told


def test_what_compose_starts_serves(real_model, golden, logs, tmp_path):
    services = compose()["services"]
    secret = tmp_path / "join-secret"
    secret.write_text("compose\n")
    cluster = None

    def command(name):
        swap = {"/models/model.gguf": str(real_model), "/run/secrets/join-secret": str(secret), "coordinator:50052": cluster,
                "/var/cache/millrace": str(tmp_path / name)}
        words = []
        for word in services[name]["command"]:
            for old, new in swap.items():
                word = word.replace(old, new) if new else word
            # An address of its own: two flags with port 0 of the same one would mean one server.
            word = word.replace("--cluster-listen=0.0.0.0:50052", "--cluster-listen=127.0.0.2:0")
            words.append(re.sub(r"=(0\.0\.0\.0|127\.0\.0\.1):50\d+$|=0\.0\.0\.0:9090$", "=127.0.0.1:0", word))
        return [harness.BIN / words[0], *words[1:]]
    processes = [harness.Process("coordinator", command("coordinator"), logs)]
    try:
        address = processes[0].address()
        cluster = processes[0].wait_for_line(r"^workers join at (\S+)$").group(1)
        processes += [harness.Process(name, command(name), logs) for name in ("worker-0", "worker-1")]
        client = harness.Client(address)
        client.wait_serving()
        for process in processes:
            health = process.wait_for_line(r"^health at (\S+)$").group(1)
            # The healthcheck of the images.
            assert harness.run_program("millrace", "health", "--server", health, "--service", "liveness")[0] == 0
        case = min(golden, key=lambda c: len(c["ids"]))
        assert len(client.generate(case["ids"], 4, harness.GREEDY, {"ignore_eos": True}).ids) == 4
        client.close()
        assert processes[0].stop(40) == 0
        assert [process.wait() for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.close()


def test_list_of_packages_is_spdx(tmp_path):
    wheels = tmp_path / "wheels.txt"
    wheels.write_text("nvidia-nccl-cu13==2.28.9\n")
    done = subprocess.run([DOCKER / "list_packages.sh", wheels], check=True, stdout=subprocess.PIPE, text=True).stdout
    documents = done.split("\n\n")
    assert documents[0].startswith("SPDXVersion: SPDX-2.3\nDataLicense: CC0-1.0\nSPDXID: SPDXRef-DOCUMENT\n")
    names = [re.match(r"PackageName: (\S+)\nSPDXID: (SPDXRef-[A-Za-z0-9.-]+)\nPackageVersion: (\S+)\n", entry).group(1, 2)
             for entry in documents[1:]]
    assert len({identity for _, identity in names}) == len(names), "identifiers are unique"
    packages = [name for name, _ in names]
    assert "libc6" in packages and packages[-1] == "nvidia-nccl-cu13"
