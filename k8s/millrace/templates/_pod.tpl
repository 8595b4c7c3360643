{{/* How the kubelet asks a container on its health port. Liveness and startup never ask for peers. */}}
{{- define "millrace.probes" -}}
{{- $p := .root.Values.probes -}}
startupProbe:
  grpc: {port: {{ .port }}, service: startup}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ divf $p.startupBudgetSeconds $p.periodSeconds | ceil }}
livenessProbe:
  grpc: {port: {{ .port }}, service: liveness}
  periodSeconds: {{ mul $p.periodSeconds 2 }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ $p.failureThreshold }}
  # What hangs drains nothing: it is not waited for as long as a pod that is told to end.
  terminationGracePeriodSeconds: {{ min (add .root.Values.drain.shutdownSeconds 5) .root.Values.terminationGracePeriodSeconds }}
readinessProbe:
  grpc: {port: {{ .port }}, service: readiness}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ $p.failureThreshold }}
{{- end -}}

{{- define "millrace.readsModel" -}}
{{- if or (eq .component "coordinator") (not .root.Values.model.push) -}}true{{- end -}}
{{- end -}}

{{- define "millrace.mounts" -}}
{{- $v := .root.Values -}}
- {name: tmp, mountPath: /tmp}
{{- if ne $v.mode "mpijob" }}
- {name: join-secret, mountPath: /etc/millrace/join, readOnly: true}
{{- end }}
{{- if include "millrace.readsModel" . }}
- {name: model, mountPath: /models, readOnly: true}
{{- else }}
- {name: model-cache, mountPath: /var/cache/millrace}
{{- end }}
{{- if include "millrace.hasTls" .root }}
- {name: tls, mountPath: /etc/millrace/tls, readOnly: true}
{{- end }}
{{- if and $v.gpu.enabled (eq .component "worker") }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- end -}}

{{- define "millrace.modelVolume" -}}
{{- $m := .Values.model -}}
- name: model
{{- if $m.existingClaim }}
  persistentVolumeClaim: {claimName: {{ $m.existingClaim | quote }}, readOnly: true}
{{- else if $m.hostPath }}
  hostPath: {path: {{ $m.hostPath | quote }}, type: Directory}
{{- else if $m.image.reference }}
  image: {reference: {{ $m.image.reference | quote }}, pullPolicy: {{ $m.image.pullPolicy }}}
{{- else }}
  emptyDir: {sizeLimit: {{ $m.download.sizeLimit | quote }}}
{{- end }}
{{- end -}}

{{/* root, component: coordinator, worker, or leader, which holds both */}}
{{- define "millrace.volumes" -}}
{{- $v := .root.Values -}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- if ne $v.mode "mpijob" }}
- name: join-secret
  secret:
    secretName: {{ include "millrace.joinSecretName" .root | quote }}
    defaultMode: 0440
    items: [{key: {{ $v.joinSecret.key | quote }}, path: secret}]
{{- end }}
{{- if or (eq .component "leader") (include "millrace.readsModel" .) }}
{{ include "millrace.modelVolume" .root }}
{{- end }}
{{- if and $v.model.push (ne .component "coordinator") }}
- name: model-cache
  emptyDir: {sizeLimit: {{ $v.model.cacheSizeLimit | quote }}}
{{- end }}
{{- if include "millrace.hasTls" .root }}
- name: tls
  secret:
    secretName: {{ include "millrace.tlsSecretName" .root | quote }}
    defaultMode: 0440
{{- end }}
{{- if and $v.gpu.enabled (ne .component "coordinator") }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $v.gpu.shmSize | quote }}}
{{- end }}
{{- end -}}

{{/* Fetches the model; what does not have the sum is never put in place. */}}
{{- define "millrace.download" -}}
{{- $d := .Values.model.download -}}
- name: download-model
  image: {{ include "millrace.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - /bin/sh
    - -ec
    - |
      file=/models/model.gguf
      check() { echo "$MODEL_SHA256  $1" | sha256sum --check --status; }
      if [ -e "$file" ] && check "$file"; then echo "the model is there"; exit 0; fi
      if ! { [ -e "$file.part" ] && check "$file.part"; }; then
        echo "downloading $MODEL_URL"
        curl --fail --location --silent --show-error --retry 5 --retry-connrefused --connect-timeout 30 --speed-limit 1 --speed-time 60 --continue-at - --output "$file.part" "$MODEL_URL" || {
          code=$?
          # What is there cannot be continued: the next attempt begins anew.
          case $code in 22|33|36) rm -f "$file.part" ;; esac
          exit $code
        }
      fi
      if ! check "$file.part"; then
        echo "the file's sha256 is $(sha256sum "$file.part" | cut -c1-64), expected $MODEL_SHA256: not used" >&2
        rm -f "$file.part"
        exit 1
      fi
      mv "$file.part" "$file"
  env:
    - {name: MODEL_URL, value: {{ $d.url | quote }}}
    - {name: MODEL_SHA256, value: {{ $d.sha256 | lower | quote }}}
  resources:
    requests: {cpu: 100m, memory: 64Mi}
    limits: {memory: 256Mi}
  securityContext:
    {{- include "millrace.securityContext" . | nindent 4 }}
  volumeMounts:
    - {name: model, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* Flags of what has a value. */}}
{{- define "millrace.servingArgs" -}}
{{- $s := .Values.serving -}}
{{- $args := list -}}
{{- range list (list "--layers" .Values.layers) (list "--activations" $s.activations) (list "--kv-type" $s.kvType) (list "--context" $s.context) (list "--max-rows" $s.maxRows) (list "--max-running" $s.maxRunning) (list "--max-queued" $s.maxQueued) (list "--inter-token-goal" $s.interTokenGoal) -}}
{{- if ne (toString (index . 1)) "" -}}
{{- $args = append $args (printf "%s=%v" (index . 0) (index . 1)) -}}
{{- end -}}
{{- end -}}
{{- if $args }}{{ toYaml $args }}{{ end -}}
{{- end -}}

{{/* Before a coordinator gets SIGTERM: new requests are refused, running ones finish. */}}
{{- define "millrace.drainAll" -}}
lifecycle:
  preStop:
    exec:
      command:
        - /usr/local/bin/millrace
        - drain
        - --server=127.0.0.1:50051
        - --wait={{ .Values.drain.waitSeconds }}s
        {{- with include "millrace.tlsArgs" . }}
        {{- . | nindent 8 }}
        {{- end }}
{{- end -}}

{{/* root */}}
{{- define "millrace.coordinatorContainer" -}}
{{- $v := .root.Values -}}
- name: coordinator
  image: {{ include "millrace.image" .root | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [/usr/local/bin/millrace-coordinator]
  args:
    - --model={{ include "millrace.modelPath" .root }}
    - --stages={{ $v.stages }}
    - --listen=0.0.0.0:50051
    - --cluster-listen=0.0.0.0:50052
    - --health-listen=0.0.0.0:50053
    {{- if $v.metrics.enabled }}
    - --metrics=0.0.0.0:9090
    {{- end }}
    - --join-secret-file=/etc/millrace/join/secret
    - --grace={{ $v.drain.shutdownSeconds }}s
    - --replacement-wait={{ $v.probes.startupBudgetSeconds }}s
    {{- if $v.model.push }}
    - --push-model
    {{- end }}
    {{- with include "millrace.servingArgs" .root }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with include "millrace.tlsArgs" .root }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $v.coordinator.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $v.coordinator.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - {name: client, containerPort: 50051}
    - {name: cluster, containerPort: 50052}
    - {name: health, containerPort: 50053}
    {{- if $v.metrics.enabled }}
    - {name: metrics, containerPort: 9090}
    {{- end }}
  {{- include "millrace.probes" (dict "root" .root "port" 50053) | nindent 2 }}
  {{- include "millrace.drainAll" .root | nindent 2 }}
  resources:
    {{- toYaml $v.coordinator.resources | nindent 4 }}
  securityContext:
    {{- include "millrace.securityContext" .root | nindent 4 }}
  volumeMounts:
    {{- include "millrace.mounts" (dict "root" .root "component" "coordinator") | nindent 4 }}
{{- end -}}

{{/* root; coordinator: its host; client: the same as a shell sees it; stage: the variable that holds the stage; healthPort */}}
{{- define "millrace.workerContainer" -}}
{{- $v := .root.Values -}}
- name: worker
  image: {{ include "millrace.image" .root | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [/usr/local/bin/millrace-worker]
  args:
    - --coordinator={{ .coordinator }}:50052
    - --listen=0.0.0.0:50054
    - --advertise=$(POD_IP)
    - --stage=$({{ .stage }})
    {{- if $v.model.push }}
    - --model-cache=/var/cache/millrace
    {{- else }}
    - --model={{ include "millrace.modelPath" .root }}
    {{- end }}
    - --tensor-parallel={{ $v.tensorParallel }}
    - --backend={{ ternary "cuda" "cpu" $v.gpu.enabled }}
    - --health-listen=0.0.0.0:{{ .healthPort }}
    - --join-secret-file=/etc/millrace/join/secret
    - --join-timeout={{ $v.probes.startupBudgetSeconds }}s
    {{- if ((($v.worker.resources).limits).cpu) }}
    - --threads=$(CPU_LIMIT)
    {{- end }}
    {{- with $v.worker.kvMemory }}
    - --kv-memory={{ . }}
    {{- end }}
    {{- with include "millrace.tlsArgs" .root }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $v.worker.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - name: POD_IP
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
    {{- if eq .stage "STAGE" }}
    - name: STAGE
      valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
    {{- end }}
    {{- if ((($v.worker.resources).limits).cpu) }}
    - name: CPU_LIMIT
      valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "1"}}
    {{- end }}
    {{- if $v.gpu.enabled }}
    {{- range $name, $value := $v.gpu.nccl }}
    - {name: {{ $name }}, value: {{ $value | quote }}}
    {{- end }}
    {{- end }}
    {{- with $v.worker.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: hop, containerPort: 50054}
    - {name: {{ ternary "worker-health" "health" (eq (int .healthPort) 50055) }}, containerPort: {{ .healthPort }}}
  {{- include "millrace.probes" (dict "root" .root "port" .healthPort) | nindent 2 }}
  lifecycle:
    preStop:
      exec:
        # Variables are not expanded here, so a shell does it.
        command: [/bin/sh, -c, "exec /usr/local/bin/millrace drain --server={{ .client }}:50051 --stage=\"${{ .stage }}\" --wait={{ $v.drain.waitSeconds }}s{{ include "millrace.clientTls" .root }}"]
  resources:
    {{- $resources := deepCopy $v.worker.resources }}
    {{- if $v.gpu.enabled }}
    {{- $resources = merge (dict "limits" (dict $v.gpu.resource (include "millrace.gpusPerWorker" .root | int))) $resources }}
    {{- end }}
    {{- toYaml $resources | nindent 4 }}
  securityContext:
    {{- include "millrace.securityContext" .root | nindent 4 }}
  volumeMounts:
    {{- include "millrace.mounts" (dict "root" .root "component" "worker") | nindent 4 }}
{{- end -}}

{{/* root, component (coordinator, worker or leader), group, settings: values of the component */}}
{{- define "millrace.podMetadata" -}}
{{- /* Not the chart's version: pods are not replaced for that alone. */}}
labels:
  {{- include "millrace.selector" .root | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/component: {{ .component }}
  {{- if ne .component "worker" }}
  millrace/coordinator: "true"
  {{- end }}
  {{- if .group }}
  millrace/group: {{ .group | quote }}
  {{- end }}
  {{- with .settings.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- include "millrace.checksums" .root | nindent 2 }}
  {{- with .settings.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The same, of a pod's spec without its containers. */}}
{{- define "millrace.podSpec" -}}
{{- $v := .root.Values -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $v.serviceAccount.name }}
serviceAccountName: {{ . | quote }}
{{- end }}
{{- with $v.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {name: {{ . | quote }}}
  {{- end }}
{{- end }}
{{- if and $v.gpu.enabled $v.gpu.runtimeClassName (ne .component "coordinator") }}
runtimeClassName: {{ $v.gpu.runtimeClassName | quote }}
{{- end }}
terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds }}
securityContext:
  {{- include "millrace.podSecurityContext" .root | nindent 2 }}
{{- with .settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and (ne .component "coordinator") (ne $v.worker.topologySpread "off") }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ $v.worker.topologySpread }}
    labelSelector:
      matchLabels:
        {{- include "millrace.selector" .root | nindent 8 }}
        {{- /* A leader holds a stage, too. */}}
        {{- if ne $v.mode "lws" }}
        app.kubernetes.io/component: worker
        {{- end }}
        {{- if .group }}
        millrace/group: {{ .group | quote }}
        {{- end }}
{{- end }}
{{- if and $v.model.download.url (or (eq .component "leader") (include "millrace.readsModel" .)) }}
initContainers:
  {{- include "millrace.download" .root | nindent 2 }}
{{- end }}
volumes:
  {{- include "millrace.volumes" . | nindent 2 }}
{{- end -}}
