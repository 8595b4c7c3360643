{{/* Values that contradict each other. What is wrong in itself, the schema says. */}}
{{- define "millrace.validate" -}}
{{- $v := .Values -}}
{{- $sources := 0 -}}
{{- range list $v.model.existingClaim $v.model.hostPath $v.model.image.reference $v.model.download.url -}}
{{- if . -}}{{- $sources = add1 $sources -}}{{- end -}}
{{- end -}}
{{- if eq (int $sources) 0 -}}
{{- fail "model: say where it comes from: set one of model.existingClaim, model.hostPath, model.image.reference, model.download.url" -}}
{{- end -}}
{{- if gt (int $sources) 1 -}}
{{- fail "model: set only one of model.existingClaim, model.hostPath, model.image.reference, model.download.url" -}}
{{- end -}}
{{- if and (not $v.model.download.url) (not $v.model.path) -}}
{{- fail "model.path: name the GGUF file within the source" -}}
{{- end -}}
{{- if and $v.model.download.url $v.model.path -}}
{{- fail "model.path: the downloaded file has a name of its own; leave model.path empty" -}}
{{- end -}}
{{- if and $v.model.download.url (not $v.model.download.sha256) -}}
{{- fail "model.download.sha256: needed with model.download.url, so that nothing else is served" -}}
{{- end -}}
{{- if and $v.model.image.reference (not (semverCompare ">=1.33-0" .Capabilities.KubeVersion.Version)) (not (.Capabilities.APIVersions.Has "millrace/image-volumes")) -}}
{{- fail (printf "model.image.reference: image volumes need Kubernetes 1.33 or later, this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if $v.layers -}}
{{- if ne (len (splitList "," $v.layers)) (int $v.stages) -}}
{{- fail (printf "layers: %q names %d stages, but stages is %d" $v.layers (len (splitList "," $v.layers)) (int $v.stages)) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" (include "millrace.fullname" .)) -}}
{{- fail (printf "name: %q must begin with a letter to be the name of a Service: choose another release name, or set fullnameOverride" (include "millrace.fullname" .)) -}}
{{- end -}}
{{- range $component := list "coordinator" "worker" -}}
{{- range $arg := (index $v $component).extraArgs -}}
{{- $flag := regexReplaceAll "=.*" $arg "" -}}
{{- if has $flag (list "--config" "--model" "--stages" "--stage" "--layers" "--listen" "--cluster-listen" "--health-listen" "--metrics" "--join-secret-file" "--grace" "--replacement-wait" "--coordinator" "--advertise" "--tensor-parallel" "--backend" "--join-timeout" "--push-model" "--model-cache" "--tls-cert" "--tls-key" "--tls-ca" "--tls-name") -}}
{{- fail (printf "%s.extraArgs: %s is set by the chart from other values" $component $flag) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $component := list "coordinator" "worker" -}}
{{- $settings := index $v $component -}}
{{- range $key, $_ := $settings.podLabels -}}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|component|version|managed-by)|helm\\.sh/chart|millrace/.*)$" $key -}}
{{- fail (printf "%s.podLabels: %s is set by the chart, whose Services and policies select pods by it" $component $key) -}}
{{- end -}}
{{- end -}}
{{- range $key, $_ := $settings.podAnnotations -}}
{{- if hasPrefix "checksum/" $key -}}
{{- fail (printf "%s.podAnnotations: %s is set by the chart" $component $key) -}}
{{- end -}}
{{- end -}}
{{- $limits := default dict $settings.resources.limits -}}
{{- range $resource, $request := default dict $settings.resources.requests -}}
{{- if hasKey $limits $resource -}}
{{- $limit := get $limits $resource -}}
{{- if gt (include "millrace.quantity" $request | float64) (include "millrace.quantity" $limit | float64) -}}
{{- fail (printf "%s.resources: requests.%s %v is more than limits.%s %v" $component $resource $request $resource $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with ((($v.worker.resources).limits).memory) -}}
{{- if and $v.worker.kvMemory (not $v.gpu.enabled) (ge (include "millrace.quantity" (trimSuffix "B" $v.worker.kvMemory) | float64) (include "millrace.quantity" . | float64)) -}}
{{- fail (printf "worker.kvMemory: %s leaves nothing of worker.resources.limits.memory %v for weights" $v.worker.kvMemory .) -}}
{{- end -}}
{{- end -}}
{{- $own := list "POD_IP" "STAGE" "CPU_LIMIT" "LWS_LEADER_ADDRESS" "LWS_GROUP_SIZE" "LWS_WORKER_INDEX" -}}
{{- range $v.worker.extraEnv -}}
{{- if or (has .name $own) (hasKey $v.gpu.nccl .name) -}}
{{- fail (printf "worker.extraEnv: %s is set by the chart" .name) -}}
{{- end -}}
{{- if and (eq $v.mode "mpijob") .valueFrom -}}
{{- fail (printf "worker.extraEnv: %s: in mode mpijob mpirun gives variables to ranks by their values, so valueFrom cannot be used" .name) -}}
{{- end -}}
{{- end -}}
{{- if eq $v.mode "lws" -}}
{{- range $key := list "podAnnotations" "podLabels" "nodeSelector" "tolerations" "affinity" -}}
{{- if index $v.coordinator $key -}}
{{- fail (printf "coordinator.%s: in mode lws the coordinator is in the leader's pod, for which worker.%s holds" $key $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.tls.mode "certManager") (le (include "millrace.seconds" $v.tls.certManager.duration | float64) (include "millrace.seconds" $v.tls.certManager.renewBefore | float64)) -}}
{{- fail (printf "tls.certManager.renewBefore: %s before the end of a certificate of %s is never; it must be shorter than tls.certManager.duration" $v.tls.certManager.renewBefore $v.tls.certManager.duration) -}}
{{- end -}}
{{- $least := add $v.drain.waitSeconds $v.drain.shutdownSeconds -}}
{{- if le (int $v.terminationGracePeriodSeconds) (int $least) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short: drain.waitSeconds and drain.shutdownSeconds take %d, so it must be longer" (int $v.terminationGracePeriodSeconds) (int $least)) -}}
{{- end -}}
{{- if lt (int $v.probes.periodSeconds) (int $v.probes.timeoutSeconds) -}}
{{- fail "probes.timeoutSeconds: must not be longer than probes.periodSeconds" -}}
{{- end -}}
{{- if and $v.gpu.enabled (ne (include "millrace.gpusPerWorker" . | int) (int $v.tensorParallel)) -}}
{{- fail (printf "gpu.perWorker: %d GPUs for %d shards: each shard has one GPU, so it must equal tensorParallel; for %d GPUs in all, stages x tensorParallel must be %d" (int $v.gpu.perWorker) (int $v.tensorParallel) (mul $v.stages $v.gpu.perWorker) (mul $v.stages $v.gpu.perWorker)) -}}
{{- end -}}
{{- if and $v.gpu.enabled (or (hasKey (default dict $v.worker.resources.limits) $v.gpu.resource) (hasKey (default dict $v.worker.resources.requests) $v.gpu.resource)) -}}
{{- fail (printf "worker.resources: %s is set by the chart: tensorParallel says how many" $v.gpu.resource) -}}
{{- end -}}
{{- if and (not $v.gpu.enabled) (or $v.gpu.runtimeClassName $v.gpu.nccl (gt (int $v.gpu.perWorker) 0)) -}}
{{- fail "gpu: gpu.perWorker, gpu.runtimeClassName and gpu.nccl do nothing without gpu.enabled" -}}
{{- end -}}
{{- if and (eq $v.service.type "LoadBalancer") (eq $v.tls.mode "off") (not $v.service.allowPlaintext) -}}
{{- fail "service.type: a LoadBalancer without TLS shows prompts and answers to whoever listens: set tls.mode, or service.allowPlaintext=true if something in front encrypts" -}}
{{- end -}}
{{- if and (ne $v.service.type "ClusterIP") $v.networkPolicy.enabled (not $v.service.loadBalancerSourceRanges) (not (regexMatch "\"ipBlock\"" (toJson $v.networkPolicy.clients))) -}}
{{- fail (printf "service.type: networkPolicy.clients lets nobody from outside the cluster in, so a %s cannot be reached: add an ipBlock to it, or set service.loadBalancerSourceRanges" $v.service.type) -}}
{{- end -}}
{{- if and $v.service.loadBalancerSourceRanges (ne $v.service.type "LoadBalancer") -}}
{{- fail "service.loadBalancerSourceRanges: only for service.type LoadBalancer" -}}
{{- end -}}
{{- if and $v.service.externalTrafficPolicy (eq $v.service.type "ClusterIP") -}}
{{- fail "service.externalTrafficPolicy: only for service.type LoadBalancer or NodePort" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "existingSecret") (not $v.tls.existingSecret) -}}
{{- fail "tls.existingSecret: name the secret for tls.mode existingSecret" -}}
{{- end -}}
{{- if and $v.tls.existingSecret (ne $v.tls.mode "existingSecret") -}}
{{- fail (printf "tls.existingSecret: does nothing with tls.mode %s; set tls.mode existingSecret" $v.tls.mode) -}}
{{- end -}}
{{- if and (eq $v.tls.mode "certManager") (not $v.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: name the issuer for tls.mode certManager" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (ne $v.mode "lws") -}}
{{- fail (printf "autoscaling: whole groups can be scaled with mode lws only, not %s: a coordinator and its workers would be scaled apart" $v.mode) -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: must not exceed autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (ne (int $v.replicas) 1) -}}
{{- fail "replicas: does nothing with autoscaling.enabled; set autoscaling.minReplicas" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (not $v.metrics.enabled) -}}
{{- fail "autoscaling: needs metrics.enabled, which tells how many requests wait" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (eq $v.autoscaling.type "keda") (not $v.autoscaling.prometheusAddress) -}}
{{- fail "autoscaling.prometheusAddress: where Prometheus answers, for autoscaling.type keda" -}}
{{- end -}}
{{- if and (not $v.metrics.enabled) (or $v.metrics.serviceMonitor.enabled $v.metrics.prometheusRule.enabled $v.metrics.dashboard.enabled) -}}
{{- fail "metrics: serviceMonitor, prometheusRule and dashboard need metrics.enabled" -}}
{{- end -}}
{{- if and $v.mpijob.enableSsh (ne $v.mode "mpijob") -}}
{{- fail "mpijob.enableSsh: only mode mpijob uses SSH" -}}
{{- end -}}
{{- if eq $v.mode "mpijob" -}}
{{- if not $v.mpijob.enableSsh -}}
{{- fail "mode mpijob: pods of an MPIJob start each other by SSH; set mpijob.enableSsh=true to accept that, or use mode statefulset or lws, which need none" -}}
{{- end -}}
{{- if and $v.gpu.enabled (not $v.image.tag) (not $v.image.digest) -}}
{{- fail "image.tag: name an image that has CUDA and sshd for mode mpijob with gpu.enabled; deploy/docker makes each of them, not both in one" -}}
{{- end -}}
{{- if $v.joinSecret.existingSecret -}}
{{- fail "joinSecret.existingSecret: does nothing in mode mpijob, where rank 0 makes the secret" -}}
{{- end -}}
{{- if gt (int $v.replicas) 1 -}}
{{- fail "mode mpijob: a job is one group; set replicas to 1" -}}
{{- end -}}
{{- if or (ne $v.service.type "ClusterIP") $v.metrics.serviceMonitor.enabled $v.metrics.prometheusRule.enabled -}}
{{- fail "mode mpijob: a job has no Service for clients or for metrics; use mode statefulset or lws for serving" -}}
{{- end -}}
{{- end -}}
{{- end -}}
