{{- define "millrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 34 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 34 characters and no dots: with what is put behind it, it must be the name of a host. */}}
{{- define "millrace.fullname" -}}
{{- $name := include "millrace.name" . -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- $full | replace "." "-" | trunc 34 | trimSuffix "-" -}}
{{- end -}}

{{/* Its controller makes a headless Service of the same name for the names of pods, unless there is a Service so named: not the clients'. */}}
{{- define "millrace.leaderWorkerSet" -}}
{{- include "millrace.fullname" . -}}-group
{{- end -}}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ include "millrace.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "millrace.image" -}}
{{- $kind := ternary "-mpi" (ternary "-cuda" "" .Values.gpu.enabled) (eq .Values.mode "mpijob") -}}
{{- $tag := .Values.image.tag | default (printf "%s%s" .Chart.AppVersion $kind) -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- end -}}
{{- end -}}

{{/* What is put behind the names of group g: nothing for the first, so that one group has plain names. */}}
{{- define "millrace.suffix" -}}
{{- if gt (int .) 0 -}}-{{ . }}{{- end -}}
{{- end -}}

{{- define "millrace.joinSecretName" -}}
{{- .Values.joinSecret.existingSecret | default (printf "%s-join" (include "millrace.fullname" .)) -}}
{{- end -}}

{{- define "millrace.tlsSecretName" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "millrace.fullname" .)) -}}
{{- end -}}

{{- define "millrace.serverName" -}}
{{- .Values.tls.serverName | default (include "millrace.fullname" .) -}}
{{- end -}}

{{- define "millrace.hasTls" -}}
{{- if ne .Values.tls.mode "off" -}}true{{- end -}}
{{- end -}}

{{/* Flags of coordinator and workers. */}}
{{- define "millrace.tlsArgs" -}}
{{- if include "millrace.hasTls" . -}}
- --tls-cert=/etc/millrace/tls/tls.crt
- --tls-key=/etc/millrace/tls/tls.key
- --tls-ca=/etc/millrace/tls/ca.crt
- --tls-name={{ include "millrace.serverName" . }}
{{- end }}
{{- end -}}

{{/* Flags of a client in a pod that has a certificate, on one line: the coordinator may ask for it. */}}
{{- define "millrace.clientTls" -}}
{{- with include "millrace.tlsArgs" . }} {{ regexReplaceAll "(^|\n)- " . " " | trim }}{{ end -}}
{{- end -}}

{{/* Whether clients must show a certificate. */}}
{{- define "millrace.asksClients" -}}
{{- if has "--tls-clients=require" .Values.coordinator.extraArgs -}}true{{- end -}}
{{- end -}}

{{- define "millrace.modelPath" -}}
/models/{{ if .Values.model.download.url }}model.gguf{{ else }}{{ .Values.model.path }}{{ end }}
{{- end -}}

{{- define "millrace.gpusPerWorker" -}}
{{- .Values.gpu.perWorker | default .Values.tensorParallel -}}
{{- end -}}

{{/* A quantity of Kubernetes, as a number. */}}
{{- define "millrace.quantity" -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text -}}
{{- $factors := dict "" 1.0 "m" 0.001 "k" 1e3 "K" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- mulf (trimSuffix $unit $text | float64) (get $factors $unit) -}}
{{- end -}}

{{/* A time as the programs take it, in seconds. */}}
{{- define "millrace.seconds" -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+(ms|s|m|h)" . -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = addf $sum (mulf (trimSuffix $unit . | float64) (get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) $unit)) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{- define "millrace.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "millrace.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/*
Part of the name of StatefulSets: six digits that change with whatever coordinator and workers must agree about. A StatefulSet replaces its
next pod when the last one is ready; one that a new coordinator refuses is not, nor is any successor while the ring lacks a stage. Under
another name all workers are new at once.
*/}}
{{- define "millrace.agreement" -}}
{{- $v := .Values -}}
{{- $model := omit $v.model "push" "cacheSizeLimit" -}}
{{- $tls := list $v.tls.mode $v.tls.existingSecret (include "millrace.serverName" .) $v.tls.certManager.issuerRef -}}
{{- toJson (list (include "millrace.image" .) $model $tls $v.joinSecret.existingSecret) | sha256sum | trunc 6 -}}
{{- end -}}

{{/* Restarts pods when what they read at start changes. */}}
{{- define "millrace.checksums" -}}
{{- if ne .Values.mode "mpijob" }}
checksum/join-secret: {{ include (print $.Template.BasePath "/join-secret.yaml") . | sha256sum }}
{{- end }}
checksum/config: {{ toJson (dict "model" .Values.model "serving" .Values.serving "tls" .Values.tls "stages" .Values.stages "layers" .Values.layers) | sha256sum }}
{{- end -}}
