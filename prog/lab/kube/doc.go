// Package kube holds the tests of Weft on a real Kubernetes: several nodes on this one machine, each a set of
// namespaces with its own containerd, kubelet and kube-proxy. cluster.sh in this folder starts and ends them; this
// is a module of its own, so that the product's go.mod does not carry Kubernetes.
package kube
