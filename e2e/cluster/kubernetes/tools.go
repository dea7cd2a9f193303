//go:build tools

package main

// kubeadm is a program of its own: the nodes of kind take it, the local cluster does not.
import _ "k8s.io/kubernetes/cmd/kubeadm"
