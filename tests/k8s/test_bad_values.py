"""Each value that cannot work is refused before anything is installed, with a line that says which and why."""
import concurrent.futures
import re
import subprocess

import pytest

import chart

OUTSIDE = "networkPolicy.clients[0].ipBlock.cidr=10.0.0.0/8"
SHA = "a" * 64
# (--set of helm beside a model, what the message must say)
SCHEMA = [
    ("replica=2", "replica"),
    ("model.file=x", "file"),
    ("worker.resources.limit.memory=1Gi", "limit"),
    ("tls.certManager.issuer=x", "issuer"),
    ("gpu.nccl.PATH=/x", "PATH"),
    ("networkPolicy.clients[0].podLabels.a=b", "podLabels"),
    ("worker.tolerations[0].keys=x", "keys"),
    ("worker.affinity.hostAffinity.x=y", "hostAffinity"),
    ("coordinator.extraEnv[0].name=A,coordinator.extraEnv[0].values=x", "values"),
    ("networkPolicy.monitoring[0].ipBlock.cidr=10.0.0.0", "networkPolicy.monitoring.0.ipBlock.cidr"),
    ("mode=deployment", "mode"),
    ("replicas=0", "replicas"),
    ("replicas=two", "replicas"),
    ("replicas=1.5", "replicas"),
    ("stages=0", "stages"),
    ("stages=-1", "stages"),
    ("tensorParallel=0", "tensorParallel"),
    ("layers=10-20", "layers"),
    ("fullnameOverride=My_Ring", "fullnameOverride"),
    ("fullnameOverride=ring.example", "fullnameOverride"),
    ("image.digest=sha256:123", "image.digest"),
    ("image.pullPolicy=Sometimes", "image.pullPolicy"),
    ("image.tag=a b", "image.tag"),
    ("model.path=../etc/passwd", "model.path"),
    ("model.path=/m.gguf", "model.path"),
    ("model.hostPath=models", "model.hostPath"),
    ("model.download.url=ftp://x/m.gguf", "model.download.url"),
    ("model.download.sha256=abc", "model.download.sha256"),
    ("model.cacheSizeLimit=much", "model.cacheSizeLimit"),
    ("serving.activations=int4", "serving.activations"),
    ("serving.kvType=fp8", "serving.kvType"),
    ("serving.context=0", "serving.context"),
    ("serving.interTokenGoal=50", "serving.interTokenGoal"),
    ("worker.kvMemory=8 Gi", "worker.kvMemory"),
    ("worker.topologySpread=Maybe", "worker.topologySpread"),
    ("worker.extraArgs={threads}", "worker.extraArgs"),
    ("worker.extraEnv[0].value=x", "name"),
    ("service.type=ExternalName", "service.type"),
    ("service.port=70000", "service.port"),
    ("tls.mode=on", "tls.mode"),
    ("joinSecret.key=a/b", "joinSecret.key"),
    ("probes.startupBudgetSeconds=1", "probes.startupBudgetSeconds"),
    ("drain.waitSeconds=-1", "drain.waitSeconds"),
    ("drain.shutdownSeconds=0", "drain.shutdownSeconds"),
    ("podDisruptionBudget.enabled=yes", "podDisruptionBudget.enabled"),
    ("gpu.resource=gpu", "gpu.resource"),
    ("autoscaling.type=vpa", "autoscaling.type"),
    ("mpijob.backoffLimit=-1", "mpijob.backoffLimit"),
    ("worker.resources.limits.memory=lots", "worker.resources.limits.memory"),
    ("worker.resources.requests.cpu=-1", "worker.resources.requests.cpu"),
    ("worker.podLabels.team=a b", "worker.podLabels.team"),
    ("worker.extraEnv[0].name=A B", "worker.extraEnv.0.name"),
    ("networkPolicy.clients[0].ipBlock.cidr=10.0.0.0/33", "networkPolicy.clients.0.ipBlock.cidr"),
    ("networkPolicy.clients[0].ipBlock.cidr=10.0.0.256/8", "networkPolicy.clients.0.ipBlock.cidr"),
    ("service.loadBalancerSourceRanges={fd00::/129}", "service.loadBalancerSourceRanges.0"),
    ("networkPolicy.clients[0].ipBlock.cidr=10.0.0.0/8,networkPolicy.clients[0].podSelector.matchLabels.a=b", "networkPolicy.clients.0"),
    (r"layers=10\,0", "layers"),
    ("model.hostPath=/srv/../etc", "model.hostPath"),
    ("worker.extraArgs={--coordinator-timeout 5s}", "worker.extraArgs.0"),
    ("coordinator.extraArgs={-v}", "coordinator.extraArgs.0"),
    ("worker.tolerations[0].operator=Equal", "worker.tolerations.0"),
    ("stages=null", "stages"),
    ("drain=null", "drain"),
]
# Good by themselves, and contradictory: the templates' own messages.
CONTRADICTIONS = [
    ("model.hostPath=", "model: say where it comes from"),
    ("model.existingClaim=c", "model: set only one of model.existingClaim, model.hostPath"),
    ("model.path=", "model.path: name the GGUF file within the source"),
    (f"model.hostPath=,model.download.url=https://x/m,model.download.sha256={SHA}", "model.path: the downloaded file has a name of its own"),
    ("model.hostPath=,model.path=,model.download.url=https://x/m", "model.download.sha256: needed with model.download.url"),
    ("model.hostPath=,model.image.reference=x/m:1", "model.image.reference: image volumes need Kubernetes 1.33 or later, this is v1.32"),
    (r"layers=10\,20\,30", 'layers: "10,20,30" names 3 stages, but stages is 2'),
    ("terminationGracePeriodSeconds=70", "terminationGracePeriodSeconds: 70 is too short: drain.waitSeconds and drain.shutdownSeconds take 70"),
    ("drain.waitSeconds=300", "terminationGracePeriodSeconds: 90 is too short"),
    ("probes.timeoutSeconds=9", "probes.timeoutSeconds: must not be longer than probes.periodSeconds"),
    ("gpu.enabled=true,gpu.perWorker=8,tensorParallel=4", "gpu.perWorker: 8 GPUs for 4 shards"),
    (r"gpu.enabled=true,worker.resources.limits.nvidia\.com/gpu=1", "worker.resources: nvidia.com/gpu is set by the chart"),
    ("gpu.perWorker=1", "do nothing without gpu.enabled"),
    ("gpu.runtimeClassName=nvidia", "do nothing without gpu.enabled"),
    ("gpu.nccl.NCCL_DEBUG=INFO", "do nothing without gpu.enabled"),
    (f"service.type=LoadBalancer,{OUTSIDE}", "service.type: a LoadBalancer without TLS shows prompts and answers"),
    ("service.type=LoadBalancer,service.allowPlaintext=true", "lets nobody from outside the cluster in, so a LoadBalancer cannot be reached"),
    ("service.type=NodePort", "lets nobody from outside the cluster in, so a NodePort cannot be reached"),
    ("service.loadBalancerSourceRanges={10.0.0.0/8}", "service.loadBalancerSourceRanges: only for service.type LoadBalancer"),
    ("service.externalTrafficPolicy=Local", "service.externalTrafficPolicy: only for service.type LoadBalancer or NodePort"),
    ("tls.mode=existingSecret", "tls.existingSecret: name the secret"),
    ("tls.existingSecret=s", "tls.existingSecret: does nothing with tls.mode off"),
    ("tls.mode=certManager", "tls.certManager.issuerRef.name: name the issuer"),
    ("autoscaling.enabled=true,autoscaling.type=hpa", "autoscaling: whole groups can be scaled with mode lws only, not statefulset"),
    ("autoscaling.enabled=true,mode=mpijob,mpijob.enableSsh=true", "autoscaling: whole groups can be scaled with mode lws only, not mpijob"),
    ("mode=lws,autoscaling.enabled=true,autoscaling.type=hpa,autoscaling.minReplicas=9", "autoscaling.minReplicas: must not exceed"),
    ("mode=lws,autoscaling.enabled=true,autoscaling.type=hpa,metrics.enabled=false", "autoscaling: needs metrics.enabled"),
    ("mode=lws,autoscaling.enabled=true,autoscaling.type=hpa,replicas=2", "replicas: does nothing with autoscaling.enabled"),
    ("mode=lws,autoscaling.enabled=true", "autoscaling.prometheusAddress: where Prometheus answers"),
    ("metrics.enabled=false,metrics.dashboard.enabled=true", "metrics: serviceMonitor, prometheusRule and dashboard need metrics.enabled"),
    ("mode=mpijob", "mode mpijob: pods of an MPIJob start each other by SSH; set mpijob.enableSsh=true"),
    ("mpijob.enableSsh=true", "mpijob.enableSsh: only mode mpijob uses SSH"),
    ("mode=mpijob,mpijob.enableSsh=true,gpu.enabled=true", "image.tag: name an image that has CUDA and sshd"),
    ("mode=mpijob,mpijob.enableSsh=true,replicas=2", "mode mpijob: a job is one group"),
    (f"mode=mpijob,mpijob.enableSsh=true,service.type=NodePort,{OUTSIDE}", "mode mpijob: a job has no Service"),
    ("mode=mpijob,mpijob.enableSsh=true,metrics.serviceMonitor.enabled=true", "mode mpijob: a job has no Service"),
    ("mode=mpijob,mpijob.enableSsh=true,joinSecret.existingSecret=s", "joinSecret.existingSecret: does nothing in mode mpijob"),
    ("mode=mpijob,mpijob.enableSsh=true,worker.extraEnv[0].name=A,worker.extraEnv[0].valueFrom.fieldRef.fieldPath=status.podIP",
     "worker.extraEnv: A: in mode mpijob mpirun gives variables to ranks by their values"),
    ("mode=lws,coordinator.nodeSelector.pool=llm", "coordinator.nodeSelector: in mode lws the coordinator is in the leader's pod"),
    ("worker.resources.requests.memory=64Gi", "worker.resources: requests.memory 64Gi is more than limits.memory 16Gi"),
    ("coordinator.resources.requests.cpu=1500m,coordinator.resources.limits.cpu=1", "coordinator.resources: requests.cpu 1500m is more than limits.cpu 1"),
    ("worker.kvMemory=16GiB", "worker.kvMemory: 16GiB leaves nothing of worker.resources.limits.memory 16Gi"),
    ("worker.podLabels.millrace/group=g", "worker.podLabels: millrace/group is set by the chart"),
    ("coordinator.podAnnotations.checksum/config=c", "coordinator.podAnnotations: checksum/config is set by the chart"),
    ("worker.extraEnv[0].name=STAGE,worker.extraEnv[0].value=x", "worker.extraEnv: STAGE is set by the chart"),
    ("gpu.enabled=true,gpu.nccl.NCCL_DEBUG=INFO,worker.extraEnv[0].name=NCCL_DEBUG", "worker.extraEnv: NCCL_DEBUG is set by the chart"),
    ("tls.mode=certManager,tls.certManager.issuerRef.name=ca,tls.certManager.duration=719h59m", "tls.certManager.renewBefore: 720h before the end"),
    ("coordinator.extraArgs={--listen=0.0.0.0:1}", "coordinator.extraArgs: --listen is set by the chart from other values"),
    ("worker.extraArgs={--stage=1}", "worker.extraArgs: --stage is set by the chart from other values"),
]
ALL = SCHEMA + CONTRADICTIONS


def attempt(values, *args, release="m"):
    return subprocess.run([chart.tools() / "helm", "template", release, chart.CHART, *chart.LEAST, "--kube-version", "1.32.0", "--set", values, *args],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=200)


@pytest.fixture(scope="module")
def outcomes():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip([values for values, _ in ALL], pool.map(lambda case: attempt(case[0]), ALL)))


@pytest.mark.parametrize("values,message", ALL, ids=[values for values, _ in ALL])
def test_refused_with_its_message(outcomes, values, message):
    done = outcomes[values]
    assert done.returncode != 0 and not done.stdout, f"{values} was taken"
    if (values, message) in SCHEMA:
        assert "values don't meet the specifications of the schema" in done.stderr
        assert message in done.stderr.split("millrace:", 1)[1], done.stderr
    else:
        said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert len(said) == 1 and message in said[0] and "execution error" in said[0], done.stderr


def test_messages_of_the_templates_are_all_tried(outcomes):
    """Every message in the templates was said in a case above, so that none is there that nothing leads to."""
    text = (chart.CHART / "templates" / "_validate.tpl").read_text()
    messages = re.findall(r'fail \(?(?:printf )?"((?:[^"\\]|\\.)*)"', text)
    assert len(messages) == text.count("fail ") >= 40
    said = "\n".join(done.stderr for done in outcomes.values())
    for message in messages:
        literal = max(re.split(r"%[a-z]", message), key=len)
        assert literal in said or "must begin with a letter" in literal, message  # the release's name is tried below


@pytest.mark.parametrize("release", ["1st", "9"])
def test_a_release_whose_name_no_service_can_have(release):
    done = attempt("stages=1", release=release)
    assert done.returncode != 0 and "must begin with a letter to be the name of a Service" in done.stderr
    assert attempt("fullnameOverride=ring", release=release).returncode == 0


def test_the_same_without_the_fault_is_taken():
    """What the cases start from renders: they fail for their fault alone."""
    assert attempt("stages=2").returncode == 0
    assert attempt(f"service.type=LoadBalancer,service.allowPlaintext=true,{OUTSIDE}").returncode == 0
