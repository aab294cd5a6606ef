{{/* Name of the objects. */}}
{{- define "fairlead.name" -}}
{{- .Values.nameOverride | default .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "fairlead.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "fairlead.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name is required if serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "fairlead.waypoint" -}}{{ if eq .Values.role "waypoint" }}true{{ end }}{{- end -}}

{{/* The Gateway that is served, "" for none. */}}
{{- define "fairlead.gateway" -}}
{{- if include "fairlead.waypoint" . -}}
{{- .Values.gateway.name | default (include "fairlead.name" .) -}}
{{- else -}}
{{- .Values.gateway.name -}}
{{- end -}}
{{- end -}}

{{- define "fairlead.discoveryAddress" -}}
{{- $i := .Values.istio -}}
{{- $i.discoveryAddress | default (printf "istiod%s.%s.svc:15012" (ternary (printf "-%s" $i.revision) "" (ne $i.revision "")) $i.namespace) -}}
{{- end -}}

{{- define "fairlead.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods; they never change in the life of a release. */}}
{{- define "fairlead.selectorLabels" -}}
app.kubernetes.io/name: fairlead
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Labels by which istiod finds the Gateway of a pod. */}}
{{- define "fairlead.gatewayLabels" -}}
{{- with include "fairlead.gateway" . -}}
gateway.networking.k8s.io/gateway-name: {{ . | quote }}
{{- if include "fairlead.waypoint" $ }}
gateway.networking.k8s.io/gateway-class-name: {{ $.Values.gateway.className | default "istio-waypoint" }}
gateway.istio.io/managed: istio.io-mesh-controller
{{- else }}
gateway.networking.k8s.io/gateway-class-name: {{ $.Values.gateway.className | default "istio" }}
gateway.istio.io/managed: istio.io-gateway-controller
{{- end }}
{{- end -}}
{{- end -}}

{{- define "fairlead.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{ include "fairlead.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: {{ .Values.role }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.istio.network }}
topology.istio.io/network: {{ . | quote }}
{{- end }}
{{- with include "fairlead.gatewayLabels" . }}
{{ . }}
{{- end }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fairlead.podLabels" -}}
{{- $labels := include "fairlead.labels" . | fromYaml -}}
{{- $_ := unset $labels "helm.sh/chart" -}}
{{- $_ := set $labels "sidecar.istio.io/inject" "false" -}}
{{- $_ := set $labels "service.istio.io/canonical-name" (include "fairlead.name" .) -}}
{{- $_ := set $labels "service.istio.io/canonical-revision" "latest" -}}
{{- if include "fairlead.waypoint" . -}}
{{- $_ := set $labels "istio.io/dataplane-mode" "none" -}}
{{- else -}}
{{- $_ := set $labels "istio" (.Values.gateway.selector | default (printf "%sgateway" .Values.role)) -}}
{{- end -}}
{{- /* The selector's labels win over podLabels. */ -}}
{{- toYaml (mergeOverwrite $labels (deepCopy .Values.podLabels) (include "fairlead.selectorLabels" . | fromYaml)) -}}
{{- end -}}

{{- define "fairlead.proxyConfig" -}}
{{- $base := dict "discoveryAddress" (include "fairlead.discoveryAddress" .) "proxyMetadata" (dict "ISTIO_META_ENABLE_HBONE" "true") -}}
{{- toJson (mergeOverwrite $base (deepCopy .Values.proxyConfig)) -}}
{{- end -}}

{{/* The ports of the Service beside status-port. */}}
{{- define "fairlead.ports" -}}
{{- if .Values.service.ports -}}
{{ toYaml .Values.service.ports }}
{{- else if include "fairlead.waypoint" . -}}
- name: mesh
  port: 15008
  targetPort: 15008
  appProtocol: all
{{- else -}}
- name: http2
  port: 80
  targetPort: 8080
  appProtocol: http
- name: https
  port: 443
  targetPort: 8443
  appProtocol: https
{{- end -}}
{{- end -}}
