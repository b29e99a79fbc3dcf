{{/* A Service's name begins with a letter and has no dot; a release's may. */}}
{{- define "laplora.name" -}}
{{- $release := .Release.Name | replace "." "-" }}
{{- $name := contains .Chart.Name $release | ternary $release (printf "%s-%s" $release .Chart.Name) }}
{{- if regexMatch "^[0-9]" $release }}{{ $name = printf "%s-%s" .Chart.Name $release }}{{ end }}
{{- .Values.fullnameOverride | default ($name | trunc 52 | trimSuffix "-") }}
{{- end }}

{{- define "laplora.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "laplora.testSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Of servers. Without the chart's version: a change of it alone would restart them all. */}}
{{- define "laplora.podLabels" -}}
{{ include "laplora.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with merge (dict) .Values.podLabels .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "laplora.labels" -}}
{{ include "laplora.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "laplora.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Of what Prometheus's operator reads. */}}
{{- define "laplora.monitoringLabels" -}}
{{ merge (dict) .Values.monitoring.labels (include "laplora.labels" . | fromYaml) | toYaml }}
{{- end }}

{{/* Where servers may run, and the pod that tests them. */}}
{{- define "laplora.nodes" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or .Values.tolerations (eq .Values.device "cuda") }}
tolerations:
  {{- if eq .Values.device "cuda" }}
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with .Values.tolerations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}

{{/* Whether more than one server may run: without replicas something outside the chart decides. */}}
{{- define "laplora.several" -}}
{{- if or .Values.autoscaling.enabled (kindIs "invalid" .Values.replicas) (gt (int .Values.replicas) 1) }}yes{{ end }}
{{- end }}

{{/* One server at a time may have a folder of jobs; two on one claim would also wait for each other's volume. */}}
{{- define "laplora.check" -}}
{{- if and .Values.state.claim (include "laplora.several" .) }}
{{- fail "state.claim is for one server: leave it empty with several replicas, and share jobs by jobs.url" }}
{{- end }}
{{- if and .Values.cache.baked .Values.cache.claim }}
{{- fail "cache.claim would hide the model that is baked into the image: give one of cache.claim and cache.baked" }}
{{- end }}
{{- if and .Values.cache.baked (contains "://" (print .Values.artifact.name .Values.settings.also_load)) }}
{{- fail "cache.baked leaves no room for an artifact from elsewhere: leave it off, and the pod fetches both, or mount the artifact" }}
{{- end }}
{{- if and .Values.jobs.url (include "laplora.several" .) (not (or .Values.settings.jobs_files_url .Values.settings.jobs_dir)) }}
{{- fail "jobs.url with several servers: uploads need a place that all reach, settings.jobs_files_url or settings.jobs_dir" }}
{{- end }}
{{- if and .Values.jobs.ca.secret .Values.jobs.ca.configMap }}
{{- fail "jobs.ca.secret and jobs.ca.configMap are both set: one is enough" }}
{{- end }}
{{- if and (not .Values.jobs.url) (or .Values.jobs.passwordSecret .Values.jobs.ca.secret .Values.jobs.ca.configMap) }}
{{- fail "jobs.passwordSecret and jobs.ca are for jobs.url, which is empty" }}
{{- end }}
{{- if and (gt (int .Values.gpu.count) 1) (or (ne .Values.device "cuda") (contains "/mig-" .Values.gpu.resource)) }}
{{- fail "gpu.count above 1 is for device cuda and whole cards: a process sees one MIG slice" }}
{{- end }}
{{- if and (eq .Values.device "cuda") (or (hasKey .Values.resources.requests .Values.gpu.resource) (hasKey (.Values.resources.limits | default dict) .Values.gpu.resource)) }}
{{- fail "resources names the GPU too: gpu.count and gpu.resource ask for it" }}
{{- end }}
{{- with .Values.strategy.rollingUpdate }}
{{- if and (has (toString .maxSurge) (list "0" "0%")) (has (toString .maxUnavailable) (list "0" "0%")) }}
{{- fail "strategy.rollingUpdate: maxSurge and maxUnavailable are both 0, so a rollout could not start" }}
{{- end }}
{{- end }}
{{- if and (not .Values.keys.secret) (not .Values.keys.exposedWithoutKeys) (or .Values.ingress.enabled .Values.httpRoute.enabled (ne .Values.service.type "ClusterIP")) }}
{{- fail "keys.secret is empty, and an ingress, httpRoute or service.type would let callers from outside the cluster do everything: give keys, or keys.exposedWithoutKeys: true if that is meant" }}
{{- end }}
{{- if and (has (toString .Values.settings.conditioning | lower) (list "true" "1" "yes" "on" "y" "t")) (not .Values.settings.artifacts_root) (or (not .Values.artifact.claim) .Values.artifact.readOnly) }}
{{- fail "settings.conditioning writes new versions of artifacts: give artifact.claim, and artifact.readOnly: false" }}
{{- end }}
{{- $names := list }}
{{- range concat (include "laplora.env" . | fromYamlArray) (.Values.extraEnv | default list) }}
{{- if and (eq .name "LAPLORA_JOBS_URL") (not $.Values.jobs.url) }}{{ fail "extraEnv: LAPLORA_JOBS_URL would skip encryption, the network policy and checks: use jobs.url" }}{{ end }}
{{- if has .name $names }}{{ fail (printf "extraEnv: %s is given twice, or is one that the chart sets" .name) }}{{ end }}
{{- $names = append $names .name }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.enabled needs ingress.hosts" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs, the Gateway" }}
{{- end }}
{{- if and (not .Values.keys.secret) (not .Values.settings.allowed_hosts) (or (and .Values.ingress.enabled (contains "*" (toString .Values.ingress.hosts))) (and .Values.httpRoute.enabled (or (not .Values.httpRoute.hostnames) (contains "*" (toString .Values.httpRoute.hostnames))))) }}
{{- fail "without keys a server answers names that it was told alone: name the hosts, none with *, or settings.allowed_hosts" }}
{{- end }}
{{- if and (ne .Values.service.type "ClusterIP") .Values.networkPolicy.enabled (not .Values.networkPolicy.from) }}
{{- fail "service.type lets callers from outside the cluster in, and the network policy does not: give networkPolicy.from, such as [{ipBlock: {cidr: 10.0.0.0/8}}]" }}
{{- end }}
{{- $containers := list "server" }}
{{- range concat (.Values.sidecars | default list) (.Values.initContainers | default list) }}
{{- if has .name $containers }}{{ fail (printf "sidecars and initContainers: the name %s is given twice, or is the server's own" .name) }}{{ end }}
{{- $containers = append $containers .name }}
{{- end }}
{{- $volumes := list "tmp" "state" "cache" "artifacts" "keys" "jobs-password" "jobs-ca" }}
{{- range .Values.extraVolumes }}
{{- if has .name $volumes }}{{ fail (printf "extraVolumes: the name %s is given twice, or is one of the chart's own" .name) }}{{ end }}
{{- $volumes = append $volumes .name }}
{{- end }}
{{- range .Values.extraVolumeMounts }}
{{- if not (has .name $volumes) }}{{ fail (printf "extraVolumeMounts: there is no volume %s" .name) }}{{ end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}
{{- fail "autoscaling.maxReplicas is below autoscaling.minReplicas" }}
{{- end }}
{{- end }}
