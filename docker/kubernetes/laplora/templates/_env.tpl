{{/* The variables that the chart sets; extraEnv may give none of them again. */}}
{{- define "laplora.env" -}}
{{- if gt (int .Values.gpu.count) 1 }}
- {name: LAPLORA_DEVICE, value: auto}
- {name: LAPLORA_DEVICE_MAP, value: {{ .Values.gpu.deviceMap | quote }}}
{{- else }}
- {name: LAPLORA_DEVICE, value: {{ .Values.device }}}
{{- end }}
- {name: LAPLORA_ARTIFACT, value: {{ .Values.artifact.name | quote }}}
{{- if .Values.keys.secret }}
- {name: LAPLORA_AUTH, value: keys}
- {name: LAPLORA_KEYS, value: {{ printf "/run/laplora/keys/%s" .Values.keys.entry | quote }}}
{{- else }}
- {name: LAPLORA_AUTH, value: "off"}
{{- $service := printf "%s.%s" (include "laplora.name" .) .Release.Namespace }}
{{- $hosts := list (include "laplora.name" .) $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service) }}
{{- range concat (ternary .Values.ingress.hosts list .Values.ingress.enabled) (ternary .Values.httpRoute.hostnames list .Values.httpRoute.enabled) }}
{{- if not (hasPrefix "*" .) }}{{ $hosts = append $hosts . }}{{ end }}
{{- end }}
- {name: LAPLORA_ALLOWED_HOSTS, value: {{ append $hosts .Values.settings.allowed_hosts | compact | uniq | join "," | quote }}}
{{- end }}
{{- if .Values.cache.baked }}
- {name: LAPLORA_CACHE, value: /opt/models}
# Nothing is fetched: what the image lacks is an error.
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: PIP_NO_INDEX, value: "1"}
{{- end }}
{{- if .Values.cache.claim }}
# Models of the hub too, which would otherwise go to HOME, and with the pod.
- {name: HF_HOME, value: /var/lib/laplora/cache/huggingface}
{{- end }}
- {name: LAPLORA_DEPLOYMENT, value: {{ printf "%s/%s" .Release.Namespace .Release.Name | quote }}}
- {name: LAPLORA_DRAIN_DELAY_S, value: {{ .Values.drain.delaySeconds | quote }}}
- {name: LAPLORA_DRAIN_S, value: {{ .Values.drain.seconds | quote }}}
{{- with .Values.jobs }}
{{- if .url }}
- {name: LAPLORA_JOBS_URL, value: {{ .url | quote }}}
# As PostgreSQL's own client reads them; a parameter of the URL counts more.
- {name: PGSSLMODE, value: {{ .sslmode }}}
{{- if or (hasPrefix "verify-" .sslmode) .ca.secret .ca.configMap }}
- name: PGSSLROOTCERT
  value: {{ or .ca.secret .ca.configMap | empty | ternary "/etc/ssl/certs/ca-certificates.crt" (printf "/run/laplora/jobs-ca/%s" .ca.entry) | quote }}
{{- end }}
{{- if .passwordSecret }}
- {name: LAPLORA_JOBS_PASSWORD_FILE, value: {{ printf "/run/laplora/jobs-password/%s" .passwordEntry | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := omit .Values.settings "allowed_hosts" }}
- {name: LAPLORA_{{ upper $name }}, value: {{ kindIs "float64" $value | ternary (toJson $value) $value | quote }}}
{{- end }}
{{- end }}
