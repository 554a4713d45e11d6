{{/* Labels of an object. They name no release, since the drivers' names allow one in a cluster. */}}
{{- define "spc.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Image of a container, and when it is pulled. */}}
{{- define "spc.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}

{{/* Probes that ask at a socket of the node, which is for root only. */}}
{{- define "spc.probes" -}}
readinessProbe:
  exec:
    command: [spc, doctor, --serve=unix:{{ . }}]
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  exec:
    command: [spc, doctor, --serve=unix:{{ . }}]
  periodSeconds: 60
  timeoutSeconds: 5
{{- end }}

{{/* Whether Kubernetes has the field `appArmorProfile`. Older versions have an annotation of the pod. */}}
{{- define "spc.hasAppArmorField" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}true{{ end }}
{{- end }}

{{/* Annotations of a pod: a list of the chart, those of the values, and the containers of spc. */}}
{{- define "spc.annotations" -}}
{{- $annotations := deepCopy (index . 1) }}
{{- if not (include "spc.hasAppArmorField" (index . 0)) }}
{{- range $container := index . 2 }}
{{- $_ := set $annotations (printf "container.apparmor.security.beta.kubernetes.io/%s" $container) "unconfined" }}
{{- end }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Privileges of spc: a list of the chart, and of the capabilities beside those of every mount. */}}
{{- define "spc.security" -}}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  capabilities:
    drop: [ALL]
    add:
      {{- concat (list "SYS_ADMIN" "SYS_CHROOT" "SYS_PTRACE") (index . 1) | toYaml | nindent 6 }}
  readOnlyRootFilesystem: true
  runAsUser: 0
  seccompProfile:
    type: RuntimeDefault
  # Where the node has AppArmor or SELinux, their profiles for containers forbid mount(2) and /proc/1.
  {{- if include "spc.hasAppArmorField" (index . 0) }}
  appArmorProfile:
    type: Unconfined
  {{- end }}
  seLinuxOptions:
    type: spc_t
{{- end }}

{{/* Privileges of a container beside spc, whose socket is for root only. */}}
{{- define "spc.sidecar" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  readOnlyRootFilesystem: true
  runAsUser: 0
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* Where pods run: a list of the chart and the section of the values. */}}
{{- define "spc.scheduling" -}}
{{- $root := index . 0 }}
{{- $section := index . 1 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $section.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $section.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $section.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $section.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
