{{/* Whether a CustomResourceDefinition was made by lb-svc. Helm takes the label for its own, and the first release had
none: its own words tell it from others, as in manifests/crds/apply.sh. */}}
{{- define "lb-svc.isOurs" -}}
{{- $labels := .metadata.labels | default dict }}
{{- $description := dig "schema" "openAPIV3Schema" "description" "" (first .spec.versions) }}
{{- if or (eq "lb-svc" (get $labels "app.kubernetes.io/managed-by"))
  (contains "from which LoadBalancer Services get theirs." $description)
  (contains "one Service's hold on one address of an attached network." $description) }}yes{{ end }}
{{- end }}

{{/* The controller's configuration file. */}}
{{- define "lb-svc.config" -}}
{{- if .Values.config }}{{ printf "%s\n" (toYaml .Values.config) }}{{ else }}{{ .Files.Get "files/config.yaml" }}{{ end }}
{{- end }}

{{/* The name of its ConfigMap, which changes with its content, so that a change restarts the controller: kustomize's
hash, so that an install by the manifests is taken over without one. */}}
{{- define "lb-svc.configName" -}}
{{- $data := dict "config.yaml" (include "lb-svc.config" .) }}
{{- $hash := dict "data" $data "kind" "ConfigMap" "name" "" | toJson | sha256sum | trunc 10 }}
{{- range $from, $to := dict "0" "g" "1" "h" "3" "k" "a" "m" "e" "t" }}
{{- $hash = replace $from $to $hash }}
{{- end }}
{{- printf "lb-svc-controller-%s" $hash }}
{{- end }}

{{/* The controller, as the subject of a binding. */}}
{{- define "lb-svc.subjects" -}}
- kind: ServiceAccount
  name: lb-svc-controller
  namespace: {{ .Release.Namespace }}
{{- end }}
