"""What the chart promises of its pods, held against every values file of the matrix."""
import copy
import functools
import os
import re
import shlex
import subprocess

import pytest

import chart

MATRIX = chart.matrix()
BIN = os.environ.get("MILLRACE_BIN", str(chart.ROOT / "build" / "bin"))
PROGRAMS = {"millrace", "millrace-coordinator", "millrace-worker", "millrace-mpi"}
PLAIN_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "image"}
everywhere = pytest.mark.parametrize("name", MATRIX)


def objects_of(name):
    return chart.render(*MATRIX[name])


def serving(pod):
    """A pod that stays, which helm's test does not."""
    return not pod.where.startswith("Pod/")


def commands(container):
    """The programs of ours that a container runs, each with its arguments: its own, those of preStop, and those behind mpirun or a shell."""
    exec_ = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    for words in ([*container.get("command", []), *container.get("args", [])], exec_):
        if words[:2] == ["/bin/sh", "-c"]:
            words = shlex.split(words[2])
        for at, word in enumerate(words):
            if word.startswith("/usr/local/bin/millrace") and os.path.basename(word) in PROGRAMS:
                yield os.path.basename(word), words[at + 1:]
                break


def flag(args, name):
    found = [arg.split("=", 1)[1] for arg in args if arg.startswith(f"--{name}=")]
    assert len(found) <= 1, f"--{name} twice"
    return found[0] if found else None


def restricted_faults(pod):
    """What of the Pod Security standard 'restricted' a pod breaks, and of ours, which is stricter."""
    spec, faults = pod.spec, []

    def need(condition, what):
        if not condition:
            faults.append(what)
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        need(not spec.get(field), field)
    context = spec["securityContext"]
    need(context.get("runAsNonRoot") is True and context.get("runAsUser") == 65532, "runs as root")
    need(context["seccompProfile"] == {"type": "RuntimeDefault"}, "seccomp")
    need(not context.get("sysctls"), "sysctls")
    need(spec.get("automountServiceAccountToken") is False, "a service account's token")
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        need(len(kinds) == 1 and kinds <= PLAIN_VOLUMES, f"volume {volume['name']}: {kinds}")
        if "emptyDir" in volume:
            need("sizeLimit" in volume["emptyDir"], f"volume {volume['name']} without a limit")
    for container in pod.containers():
        own = container["securityContext"]
        at = container["name"] + ": "
        need(own.get("allowPrivilegeEscalation") is False and not own.get("privileged"), at + "privileges")
        need(own["capabilities"] == {"drop": ["ALL"]}, at + "capabilities")
        need(own.get("readOnlyRootFilesystem") is True, at + "root can be written")
        need(own.get("runAsNonRoot") is True and own.get("runAsUser", 1) != 0, at + "runs as root")
        need(not any(port.get("hostPort") for port in container.get("ports", [])), at + "host port")
        need("memory" in container["resources"].get("limits", {}), at + "no memory limit")
    return faults


@everywhere
def test_pod_security_restricted(name):
    for pod in chart.pods(objects_of(name)):
        faults = restricted_faults(pod)
        if "host" in name or name == "mpijob-gpu":  # the values ask for a hostPath, which the standard refuses; the README says so
            faults = [fault for fault in faults if fault != "volume model: {'hostPath'}"]
        assert not faults, f"{pod.where}: {faults}"
        assert not any(o["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount") for o in objects_of(name))


@everywhere
def test_every_container_that_stays_is_probed(name):
    for pod in filter(serving, chart.pods(objects_of(name))):
        asked = []
        for container in pod.spec["containers"]:
            ports = {port["containerPort"] for port in container["ports"]}
            if container["command"] == ["/usr/local/bin/millrace-sshd"]:
                assert {container[p]["tcpSocket"]["port"] for p in ("startupProbe", "livenessProbe", "readinessProbe")} == {2222} == ports
                continue
            for kind in ("startup", "liveness", "readiness"):
                probe = container[kind + "Probe"]
                assert probe["grpc"]["service"] == kind and probe["grpc"]["port"] in ports
                assert probe["timeoutSeconds"] <= probe["periodSeconds"]
                asked.append(probe["grpc"]["port"])
            # The port asked is the one the program answers on.
            ((_, args),) = [c for c in commands(container) if c[1][:1] != ["drain"]]
            assert flag(args, "health-listen") == f"0.0.0.0:{container['livenessProbe']['grpc']['port']}"
        assert len(set(asked)) * 3 == len(asked), "two containers of a pod on one port"
        listened = [port["containerPort"] for c in pod.spec["containers"] for port in c["ports"]]
        assert len(set(listened)) == len(listened)
        names = [port["name"] for c in pod.spec["containers"] for port in c["ports"]]
        assert len(set(names)) == len(names) and all(len(port) <= 15 for port in names)


def test_startup_may_take_the_budget():
    for pod in filter(serving, chart.pods(objects_of("everything"))):
        for container in pod.spec["containers"]:
            probe = container["startupProbe"]
            assert probe["periodSeconds"] * probe["failureThreshold"] >= 3601
            for program, args in commands(container):
                assert program != "millrace-coordinator" or flag(args, "replacement-wait") == "3601s"


@everywhere
def test_programs_listen_on_the_ports_of_their_containers(name):
    """On all addresses, so that probes, Services and peers reach them."""
    flags = {"client": "listen", "cluster": "cluster-listen", "health": "health-listen", "worker-health": "health-listen", "metrics": "metrics", "hop": "listen"}
    for pod in filter(serving, chart.pods(objects_of(name))):
        for container in pod.spec["containers"]:
            for _, args in [c for c in commands(container) if c[1][:1] != ["drain"]]:
                for port in container["ports"]:
                    assert flag(args, flags[port["name"]]) == f"0.0.0.0:{port['containerPort']}", f"{pod.where} {port['name']}"
                assert flag(args, "advertise") == ("$(POD_IP)" if container["name"] == "worker" else None)


def seconds(text):
    return int(text.removesuffix("s"))


@everywhere
def test_grace_is_longer_than_drain_and_shutdown(name):
    for pod in filter(serving, chart.pods(objects_of(name))):
        for container in pod.spec["containers"]:
            if container["command"] == ["/usr/local/bin/millrace-sshd"]:
                continue
            drains = [args for program, args in commands(container) if args[:1] == ["drain"]]
            assert len(drains) == 1, f"{pod.where} {container['name']} is not drained"
            (args,) = drains
            assert container["livenessProbe"]["terminationGracePeriodSeconds"] < pod.spec["terminationGracePeriodSeconds"], "what hangs is not waited for"
            grace = [flag(a, "grace") for _, a in commands(container) if flag(a, "grace")]
            shutdown = seconds(grace[0]) if grace else 0
            assert seconds(flag(args, "wait")) + shutdown < pod.spec["terminationGracePeriodSeconds"]
            if container["name"] == "worker":
                assert flag(args, "stage") in ("$STAGE", "$LWS_WORKER_INDEX")
            else:
                assert flag(args, "stage") is None and flag(args, "server").startswith("127.0.0.1:")


@functools.cache
def known_flags(program, command=""):
    words = [f"{BIN}/{program}", *([command] if command else []), "--help"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return set(re.findall(r"^  (?:-\w, )?(--[a-z][a-z0-9-]*)", done.stdout, re.MULTILINE))


@everywhere
def test_every_flag_exists(name):
    ran = 0
    for pod in chart.pods(objects_of(name)):
        for container in pod.containers():
            for program, args in commands(container):
                command = args[0] if program == "millrace" else ""
                for arg in args[1:] if command else args:
                    if arg.startswith("--"):
                        assert arg.split("=")[0] in known_flags(program, command), f"{pod.where}: {program} {command} has no {arg}"
                        ran += 1
    assert ran >= 10


def test_a_flag_that_is_not_there_is_found():
    assert "--stages" in known_flags("millrace-coordinator") and "--stage" in known_flags("millrace", "drain")
    assert "--replicas" not in known_flags("millrace-coordinator")


@everywhere
def test_services_reach_the_ports_that_programs_are_told(name):
    objects = objects_of(name)
    pods = chart.pods(objects)
    services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
    for service, spec in services.items():
        selected = [pod for pod in pods if spec["selector"].items() <= pod.metadata["labels"].items()]
        assert selected, f"{service} selects nothing"
        for port in spec["ports"]:
            for pod in selected:
                assert port["targetPort"] in [p["name"] for c in pod.containers() for p in c.get("ports", [])], f"{service} {port} {pod.where}"
    for pod in pods:
        for container in pod.containers():
            for _, args in commands(container):
                for target in filter(None, (flag(args, "coordinator"), flag(args, "server"))):
                    host, port = target.rsplit(":", 1)
                    if host == "127.0.0.1":
                        inside = [p["containerPort"] for c in pod.containers() for p in c.get("ports", [])]
                        assert int(port) in inside, f"{pod.where}: {target}"
                    elif "LWS_LEADER_ADDRESS" in host:
                        leader = [p for p in pods if p.where.endswith(":leaderTemplate")][0]
                        assert int(port) in [p["containerPort"] for c in leader.spec["containers"] for p in c["ports"]]
                    else:
                        assert int(port) in [p["port"] for p in services[host]["ports"]], f"{pod.where}: {target}"
    for name_, spec in services.items():
        for port in spec["ports"]:
            # What a balancer in front is told to expect.
            assert port.get("appProtocol") == (None if port["name"] != "grpc" else "https" if name in TLS else "kubernetes.io/h2c")
        if re.search(r"-(coordinator|worker)(-\d+)?$", name_):
            assert spec["clusterIP"] == "None" and spec["publishNotReadyAddresses"] is True


@pytest.mark.parametrize("name", [n for n in MATRIX if not n.startswith(("lws", "mpi"))])
def test_groups_are_whole_and_apart(name):
    objects = objects_of(name)
    deployments = [o for o in objects if o["kind"] == "Deployment"]
    sets = [o for o in objects if o["kind"] == "StatefulSet"]
    assert len(deployments) == len(sets) == {"groups": 3, "tls-cert-manager": 2, "everything": 2}.get(name, 1)
    pods = [pod for pod in chart.pods(objects) if serving(pod)]

    def picked(selector):
        return [pod.where for pod in pods if selector.items() <= pod.metadata["labels"].items()]
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == (0 if name == "host-path" else len(sets))
    for budget in budgets:
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow", "a group that serves nobody keeps no node"
        assert budget["maxUnavailable"] == 1 and len(picked(budget["selector"]["matchLabels"])) == 2
    for deployment, workers in zip(deployments, sets):
        for obj in (deployment, workers):
            assert picked(obj["spec"]["selector"]["matchLabels"]) == [f"{obj['kind']}/{obj['metadata']['name']}"]
        group = deployment["metadata"]["labels"]["millrace/group"]
        assert workers["metadata"]["labels"]["millrace/group"] == group
        assert deployment["spec"]["replicas"] == 1 and deployment["spec"]["strategy"] == {"type": "Recreate"}
        spec = workers["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        assert flag(container["args"], "coordinator") == deployment["metadata"]["name"] + ":50052"
        coordinator = deployment["spec"]["template"]["spec"]["containers"][0]
        assert int(flag(coordinator["args"], "stages")) == spec["replicas"]
        assert spec["podManagementPolicy"] == "Parallel" and spec["serviceName"] == chart.only(objects, "Service", spec["serviceName"])["metadata"]["name"]
        stage = [e for e in container["env"] if e["name"] == "STAGE"]
        assert stage[0]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
        assert flag(container["args"], "stage") == "$(STAGE)"
        spread = spec["template"]["spec"].get("topologySpreadConstraints", [])
        assert (not spread) == (name == "host-path")
        for rule in spread:
            assert picked(rule["labelSelector"]["matchLabels"]) == [f"StatefulSet/{workers['metadata']['name']}"]
        budget = coordinator["startupProbe"]["periodSeconds"] * coordinator["startupProbe"]["failureThreshold"]
        assert deployment["spec"]["progressDeadlineSeconds"] > budget + deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # Variables that arguments name are those of their container.
    for pod in pods:
        for container in pod.containers():
            known = {e["name"] for e in container.get("env", [])}
            assert set(re.findall(r"\$\((\w+)\)", " ".join(container.get("args", [])))) <= known, pod.where


@everywhere
def test_model_is_read_only_and_where_programs_look(name):
    for pod in filter(serving, chart.pods(objects_of(name))):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        mounts = {m["name"] for c in pod.containers() for m in c.get("volumeMounts", [])}
        assert mounts == set(volumes), f"{pod.where}: {mounts ^ set(volumes)} is mounted or there, not both"
        assert volumes.get("model", {}).get("persistentVolumeClaim", {}).get("readOnly", True) is True
        for container in pod.spec["containers"]:
            by_name = {m["name"]: m for m in container["volumeMounts"]}
            for mount in by_name.values():
                writable = {"tmp", "shm", "model-cache"}
                assert mount.get("readOnly", False) is (mount["name"] not in writable), f"{pod.where} {mount}"
            paths = [flag(args, "model") for _, args in commands(container) if flag(args, "model")]
            for path in paths:
                assert path.startswith("/models/") and by_name["model"]["mountPath"] == "/models"
        for container in pod.spec.get("initContainers", []):
            env = {e["name"]: e["value"] for e in container["env"]}
            assert re.fullmatch("[0-9a-f]{64}", env["MODEL_SHA256"]) and env["MODEL_URL"].startswith("https://")


def test_pushed_models_are_only_at_coordinators():
    objects = objects_of("download-push")
    by_kind = {pod.where.split("/")[0]: pod for pod in chart.pods(objects)}
    assert "initContainers" in by_kind["Deployment"].spec and "initContainers" not in by_kind["StatefulSet"].spec
    (_, coordinator), *_ = commands(by_kind["Deployment"].spec["containers"][0])
    (_, worker), *_ = commands(by_kind["StatefulSet"].spec["containers"][0])
    assert "--push-model" in coordinator and flag(worker, "model") is None and flag(worker, "model-cache") == "/var/cache/millrace"


@everywhere
def test_gpus_are_asked_for_by_workers_only(name):
    for pod in filter(serving, chart.pods(objects_of(name))):
        for container in pod.containers():
            limits = container["resources"].get("limits", {})
            worker = container["name"] == "worker"
            gpus = {"gpu": 8, "lws-keda-gpu": 4, "mpijob-gpu": 2}.get(name) if worker else None
            assert limits.get("nvidia.com/gpu") == gpus, f"{pod.where} {container['name']}"
            shm = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
            assert bool(shm) == (gpus is not None)
            for program, args in commands(container):
                if program in ("millrace-worker", "millrace-mpi"):
                    assert flag(args, "backend") == ("cuda" if "gpu" in name else "cpu")
                    assert flag(args, "tensor-parallel") == str({"everything": 2}.get(name, gpus or (2 if name == "mpijob-gpu" else 1)))
        if "gpu" in name and "worker" in [c["name"] for c in pod.containers()]:
            shm = [v for v in pod.spec["volumes"] if v["name"] == "shm"]
            assert shm[0]["emptyDir"]["medium"] == "Memory"
    if name == "gpu":
        (pod,) = [p for p in chart.pods(objects_of(name)) if p.where.startswith("StatefulSet")]
        assert pod.spec["runtimeClassName"] == "nvidia"
        assert {"name": "NCCL_IB_DISABLE", "value": "1"} in pod.spec["containers"][0]["env"]


@everywhere
def test_secrets_are_in_files_only(name):
    objects = objects_of(name)
    secrets = [o for o in objects if o["kind"] == "Secret"]
    expected = 0 if name in ("tls-secret", "mpijob", "mpijob-gpu", "mpijob-push-tls") else 1
    assert len(secrets) == expected, "a generated join secret, unless there is one already or ranks make theirs"
    text = [str(pod.spec) for pod in chart.pods(objects)]
    for secret in secrets:
        (value,) = secret["data"].values()
        assert len(value) >= 43 and not any(value in t for t in text)
        mounted = [v["secret"] for pod in chart.pods(objects) if serving(pod) for v in pod.spec["volumes"] if v["name"] == "join-secret"]
        assert {m["secretName"] for m in mounted} == {secret["metadata"]["name"]}
        assert {m["items"][0]["key"] for m in mounted} == set(secret["data"])
    assert not any("secretKeyRef" in t for t in text)


def test_images_are_those_that_deploy_docker_makes():
    def images(name):
        return {c["image"] for pod in chart.pods(objects_of(name)) for c in pod.containers()}
    version = "millrace:0.1.0"
    assert [images(n) for n in ("cpu", "gpu", "lws", "mpijob", "mpijob-gpu")] == [
        {version}, {version + "-cuda"}, {version}, {version + "-mpi"}, {version + "-cuda-mpi"}]
    assert images("image-volume") == {"registry.example.com/millrace@sha256:" + "0123456789abcdef" * 4}


def test_generated_secrets_differ():
    first, second = (chart.only(chart.render(*chart.LEAST, release=r), "Secret")["data"] for r in ("a", "b"))
    assert first != second


TLS = {"tls-cert-manager": "m-millrace", "tls-secret": "llm.example.com", "lws-hpa": "m-millrace",
       "mpijob-push-tls": "ring.example.com"}


@everywhere
def test_tls_is_everywhere_or_nowhere(name):
    server_name = TLS.get(name)
    for pod in chart.pods(objects_of(name)):
        for container in pod.containers():
            mounted = {m["mountPath"] for m in container.get("volumeMounts", [])}
            for program, args in commands(container):
                assert flag(args, "tls-name") == server_name, f"{pod.where}: {program} {args}"
                # Clients in the coordinator's and workers' pods have a certificate to show.
                for which in ("ca",) if args[:1] == ["generate"] else ("ca", "cert", "key"):
                    path = flag(args, f"tls-{which}")
                    assert (path is not None) == (server_name is not None)
                    if path:
                        assert os.path.dirname(path) in mounted
        if server_name and not serving(pod):
            assert [v["secret"].get("items") for v in pod.spec["volumes"]] == [[{"key": "ca.crt", "path": "ca.crt"}]], "who needs no key gets none"
    if name == "tls-cert-manager":
        objects = objects_of(name)
        spec = chart.only(objects, "Certificate")["spec"]
        names = {v["secret"]["secretName"] for p in chart.pods(objects) for v in p.spec["volumes"] if v["name"] == "tls"}
        assert names == {spec["secretName"]}
        assert {"m-millrace", "m-millrace.ns.svc", "llm.example.com"} <= set(spec["dnsNames"])
        assert {"server auth", "client auth"} <= set(spec["usages"])


def test_leader_worker_set():
    lws = chart.only(objects_of("lws"), "LeaderWorkerSet")
    spec = lws["spec"]
    group = spec["leaderWorkerTemplate"]
    # Its controller needs the name for a headless Service, and takes one that is there for its own.
    assert lws["metadata"]["name"] not in {o["metadata"]["name"] for o in objects_of("lws") if o["kind"] == "Service"}
    assert (spec["replicas"], group["size"]) == (2, 3)
    leader, worker = (group[t]["spec"]["containers"] for t in ("leaderTemplate", "workerTemplate"))
    assert [c["name"] for c in leader] == ["coordinator", "worker"] and [c["name"] for c in worker] == ["worker"]
    spread = [group[t]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].items() for t in ("leaderTemplate", "workerTemplate")]
    assert all(labels <= group[t]["metadata"]["labels"].items() for labels in spread for t in ("leaderTemplate", "workerTemplate"))
    for container in (leader[1], worker[0]):
        assert flag(container["args"], "stage") == "$(LWS_WORKER_INDEX)"
        assert flag(container["args"], "threads") == "$(CPU_LIMIT)"
    assert int(flag(leader[0]["args"], "stages")) == group["size"]
    # An autoscaler says how many there are; the chart must not say it too.
    for name in ("lws-hpa", "lws-keda-gpu"):
        objects = objects_of(name)
        assert "replicas" not in chart.only(objects, "LeaderWorkerSet")["spec"]
        scaler = [o["spec"] for o in objects if o["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
        assert [(s["scaleTargetRef"]["kind"], s["scaleTargetRef"]["name"]) for s in scaler] == [("LeaderWorkerSet", lws["metadata"]["name"])]


def test_mpi_job():
    job = chart.only(objects_of("mpijob"), "MPIJob")["spec"]
    (launcher,) = job["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"]
    assert launcher["args"][:2] == ["-np", "3"] and job["mpiReplicaSpecs"]["Worker"]["replicas"] == 2 and job["runPolicy"]["backoffLimit"] == 2
    assert flag(launcher["args"], "join-timeout") == "600s"
    (worker,) = job["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert worker["ports"] == [{"name": "ssh", "containerPort": 2222}]
    # What sshd starts has none of its container's variables: ranks get the workers' settings from mpirun and their own arguments.
    objects = chart.render("--values", str(chart.VALUES / "mpijob-gpu.yaml"), "--set", "worker.extraEnv[0].name=A,worker.extraEnv[0].value=b c,"
                           "worker.extraArgs={--pin-threads},worker.kvMemory=2GiB,worker.resources.limits.cpu=2500m")
    (launcher,) = chart.only(objects, "MPIJob")["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"]
    at = launcher["args"].index("/usr/local/bin/millrace-mpi")
    exported = {value for flag_, value in zip(launcher["args"][:at], launcher["args"][1:at]) if flag_ == "-x"}
    assert exported == {"NCCL_SOCKET_IFNAME=eth0", "A=b c"}
    assert {"--pin-threads", "--kv-memory=2GiB", "--threads=3"} <= set(launcher["args"][at:])
    # SSH is nowhere else.
    for name in MATRIX:
        if not name.startswith("mpijob"):
            assert "ssh" not in str([pod.spec for pod in chart.pods(objects_of(name))]).lower()


def test_helm_test_generates_a_token():
    for name in MATRIX:
        pods = [pod for pod in chart.pods(objects_of(name)) if not serving(pod)]
        assert len(pods) == (0 if name.startswith("mpi") else 1)
        for pod in pods:
            assert pod.metadata["annotations"]["helm.sh/hook"] == "test" and pod.spec["restartPolicy"] == "Never"
            args = pod.spec["containers"][0]["args"]
            assert flag(args, "max-tokens") == "1"
    (pod,) = [p for p in chart.pods(objects_of("everything")) if not serving(p)]
    assert pod.spec["containers"][0]["args"][-1] == 'Say "hello", please: {{ yes }}'
    (pod,) = [p for p in chart.pods(chart.render(*chart.LEAST, "--set", "test.prompt=a $(HOME)")) if not serving(p)]
    assert pod.spec["containers"][0]["args"][-1] == "a $$(HOME)"  # as Kubernetes writes a dollar that names no variable


def annotations(*args):
    pods = [p for p in chart.pods(chart.render(*args, "--set", "joinSecret.existingSecret=s")) if serving(p)]
    return [{k: v for k, v in p.metadata["annotations"].items() if k.startswith("checksum/")} for p in pods]


def test_checksums_change_with_what_pods_read():
    base = annotations(*chart.LEAST)
    assert len(base) == 2 and base[0] == base[1] and set(base[0]) == {"checksum/join-secret", "checksum/config"}
    assert annotations(*chart.LEAST, "--set", "networkPolicy.enabled=false") == base
    assert annotations(*chart.LEAST, "--set", "serving.maxRunning=7") != base
    generated = [p.metadata["annotations"]["checksum/join-secret"] for p in chart.pods(objects_of("groups")) if serving(p)]
    assert len(set(generated)) == 1, "one secret within one rendering"
    assert generated[0] != base[0]["checksum/join-secret"]


def test_what_is_not_restricted_is_found():
    (pod,) = [p for p in chart.pods(objects_of("cpu")) if p.where.startswith("StatefulSet")]
    for change in (lambda s: s.update(hostNetwork=True), lambda s: s.update(automountServiceAccountToken=True),
                   lambda s: s["securityContext"].update(runAsUser=0), lambda s: s["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
                   lambda s: s["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
                   lambda s: s["containers"][0]["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
                   lambda s: s["containers"][0]["resources"].pop("limits")):
        spec = copy.deepcopy(pod.spec)
        change(spec)
        assert restricted_faults(chart.Pod("x", pod.metadata, spec))
