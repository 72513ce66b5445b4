{{- define "redirector.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "redirector.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "redirector.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "redirector.selector" -}}
app.kubernetes.io/name: redirector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "redirector.labels" -}}
{{ include "redirector.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "redirector.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Probes come from the node: with an address of its own, the default, which is the node's, is right. */ -}}
{{- define "redirector.probe" -}}
httpGet:
  {{- if not (contains "$(HOST_IP)" .Values.admin.host) }}
  host: {{ .Values.admin.host | trimPrefix "[" | trimSuffix "]" }}
  {{- end }}
  port: admin
{{- end -}}
