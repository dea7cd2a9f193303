//go:build tools

// Package tools pins the version of the Multus plugin that the local cluster builds.
package tools

import _ "gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus"
