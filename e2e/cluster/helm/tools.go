//go:build tools

// Package tools pins the versions of Helm and kustomize that the tests of the manifests build.
package tools

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "sigs.k8s.io/kustomize/kustomize/v5"
)
