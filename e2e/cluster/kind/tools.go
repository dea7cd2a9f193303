//go:build tools

// Package tools pins the versions of what the cluster on kind takes, apart from Kubernetes and Multus: kind itself, the
// macvlan plugin, and the etcd of the node image.
package tools

import (
	_ "github.com/containernetworking/plugins/plugins/main/macvlan"
	_ "go.etcd.io/etcd/server/v3"
	_ "sigs.k8s.io/kind"
)
