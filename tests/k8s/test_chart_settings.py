"""What is set arrives where it belongs, and what others depend on is said."""
import yaml

import chart
from test_chart_rules import commands, flag, objects_of, serving


def own(name):
    return yaml.safe_load((chart.VALUES / f"{name}.yaml").read_text())


def pods_of(name):
    return [pod for pod in chart.pods(objects_of(name)) if serving(pod)]


def test_settings_of_pods():
    values = own("everything")
    for pod in pods_of("everything"):
        component = pod.metadata["labels"]["app.kubernetes.io/component"]
        asked, spec, (container,) = values[component], pod.spec, pod.spec["containers"]
        for key in ("nodeSelector", "tolerations", "affinity"):
            assert spec.get(key) == asked.get(key), f"{component}: {key}"
        assert spec["serviceAccountName"] == "inference" and spec["enableServiceLinks"] is False
        assert spec["securityContext"]["fsGroup"] == 65532, "secrets and claims can be read by the user"
        assert asked["podLabels"].items() <= pod.metadata["labels"].items() and asked["podAnnotations"].items() <= pod.metadata["annotations"].items()
        assert asked["resources"] == container["resources"]
        assert asked["extraEnv"][0] in container["env"] and set(asked["extraArgs"]) <= set(container["args"])
        if component == "worker":
            assert flag(container["args"], "kv-memory") == "8GiB" and flag(container["args"], "join-timeout") == "3601s"
            limit, = [e["valueFrom"]["resourceFieldRef"] for e in container["env"] if e["name"] == "CPU_LIMIT"]
            assert flag(container["args"], "threads") == "$(CPU_LIMIT)" and limit == {"resource": "limits.cpu", "divisor": "1"}
    assert {str(pod.spec.get("imagePullSecrets")) for pod in chart.pods(objects_of("image-volume"))} == {"[{'name': 'registry'}]"}
    assert all(pod.spec["runtimeClassName"] == "nvidia" for pod in pods_of("lws-keda-gpu"))


def test_settings_of_serving():
    for pod in pods_of("groups"):
        for program, args in commands(pod.spec["containers"][0]):
            if program == "millrace-coordinator":
                said = {name: flag(args, name) for name in ("layers", "activations", "kv-type", "context", "max-rows", "max-running", "max-queued", "inter-token-goal")}
                assert said == {"layers": "10,20", "activations": "f32", "kv-type": "f16", "context": "4096", "max-rows": "64", "max-running": "32",
                                "max-queued": "0", "inter-token-goal": "50ms"}
                assert flag(args, "grace") == "10s"


def test_settings_of_the_service():
    service = chart.only(objects_of("tls-cert-manager"), "Service", "m-millrace")
    assert service["metadata"]["annotations"] == {"example.com/internal": "true"}
    assert service["spec"]["type"] == "LoadBalancer" and service["spec"]["loadBalancerSourceRanges"] == ["192.0.2.0/24"]
    clients = chart.only(objects_of("tls-cert-manager"), "NetworkPolicy", "m-millrace-clients")["spec"]["ingress"][0]
    assert {"ipBlock": {"cidr": "192.0.2.0/24"}} in clients["from"] and clients["ports"] == [{"port": "client"}]
    service = chart.only(objects_of("tls-secret"), "Service", "m-millrace")["spec"]
    assert (service["type"], service["externalTrafficPolicy"], service["ports"][0]["port"]) == ("NodePort", "Local", 443)


def test_settings_of_scaling():
    hpa = chart.only(objects_of("lws-hpa"), "HorizontalPodAutoscaler")["spec"]
    (metric,) = hpa["metrics"]
    assert (hpa["minReplicas"], hpa["maxReplicas"], metric["object"]["target"]) == (2, 8, {"type": "AverageValue", "averageValue": "16"})
    services = {o["metadata"]["name"] for o in objects_of("lws-hpa") if o["kind"] == "Service"}
    assert metric["object"]["describedObject"]["kind"] == "Service" and metric["object"]["describedObject"]["name"] in services
    keda = chart.only(objects_of("lws-keda-gpu"), "ScaledObject")["spec"]
    (trigger,) = keda["triggers"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"], trigger["metricType"]) == (1, 4, "AverageValue")
    assert trigger["metadata"]["threshold"] == "8" and trigger["metadata"]["serverAddress"] == "http://prometheus.monitoring:9090"
    monitor = chart.only(objects_of("monitoring"), "ServiceMonitor")
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "30s"}]
    assert monitor["metadata"]["labels"]["release"] == chart.only(objects_of("monitoring"), "PrometheusRule")["metadata"]["labels"]["release"] == "prometheus"


def test_what_a_leader_worker_set_says_to_its_controller():
    spec = chart.only(objects_of("lws"), "LeaderWorkerSet")["spec"]
    assert spec["startupPolicy"] == "LeaderCreated", "the leader is ready only when its workers have come"
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "None", "the ring replaces one worker; the default ends the whole group"
    (worker,) = spec["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
    (args,) = [args for program, args in commands(worker) if program == "millrace"]
    assert flag(args, "server") == "$LWS_LEADER_ADDRESS:50051"


def test_what_an_mpi_job_says_to_its_operator_and_to_mpirun():
    spec = chart.only(objects_of("mpijob"), "MPIJob")["spec"]
    assert spec["launcherCreationPolicy"] == "WaitForWorkersReady" and spec["runLauncherAsWorker"] is True and spec["slotsPerWorker"] == 1
    (launcher,) = spec["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"]
    # The image's user, whose home this is, has neither root's nor another's.
    home, = [e["value"] for e in launcher["env"] if e["name"] == "HOME"]
    assert spec["sshAuthMountPath"] == f"{home}/.ssh" == "/home/millrace/.ssh"
    before = launcher["args"][:launcher["args"].index("/usr/local/bin/millrace-mpi")]
    pairs = list(zip(before, before[1:]))
    assert ("--bind-to", "none") in pairs, "Open MPI confines each rank to a core where they are few"
    assert "--enable-recovery" in before, "else the coordinator ends with a worker"
    (rsh,) = [value for name, value in pairs if name == "plm_rsh_args"]
    assert rsh.startswith("-p 2222 ") and "StrictHostKeyChecking=no" in rsh and "UserKnownHostsFile=/dev/null" in rsh
