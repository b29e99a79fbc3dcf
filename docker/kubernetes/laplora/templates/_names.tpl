{{- define "laplora.name" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}{{ else if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "laplora.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "laplora.testSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Not the chart's version: a change of it alone would restart every server. */}}
{{- define "laplora.podLabels" -}}
{{ include "laplora.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "laplora.labels" -}}
{{ include "laplora.podLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "laplora.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* One server at a time may have a folder of jobs; two on one claim would also wait for each other's volume. */}}
{{- define "laplora.check" -}}
{{- if and .Values.state.claim (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) }}
{{- fail "state.claim is for one server: leave it empty with several replicas, and share jobs by jobs.url" }}
{{- end }}
{{- if and .Values.cache.baked .Values.cache.claim }}
{{- fail "cache.claim would hide the model that is baked into the image: give one of cache.claim and cache.baked" }}
{{- end }}
{{- if and .Values.cache.baked (contains "://" .Values.artifact.name) }}
{{- fail "cache.baked leaves no room for an artifact from elsewhere: leave it off, and the pod fetches both, or mount the artifact" }}
{{- end }}
{{- if and .Values.jobs.url (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) (not (or .Values.settings.jobs_files_url .Values.settings.jobs_dir)) }}
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
{{- with .Values.strategy.rollingUpdate }}
{{- if and (has (toString .maxSurge) (list "0" "0%")) (has (toString .maxUnavailable) (list "0" "0%")) }}
{{- fail "strategy.rollingUpdate: maxSurge and maxUnavailable are both 0, so a rollout could not start" }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.enabled needs ingress.hosts" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs, the Gateway" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}
{{- fail "autoscaling.maxReplicas is below autoscaling.minReplicas" }}
{{- end }}
{{- end }}
