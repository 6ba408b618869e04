// Package kube tests Weft on a real Kubernetes: several nodes on this machine, each a set of
// namespaces with its own containerd, kubelet and kube-proxy. cluster.sh in this folder starts and
// stops them. It is its own module, so that the product's go.mod does not have Kubernetes. The tests
// share one cluster and run one after the other.
package kube
