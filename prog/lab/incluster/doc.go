// Package incluster runs agents as Nodes of a Kubernetes cluster on the hosts of a lab. Its
// API server is a stand-in (prog/kube/kubetest) on a host of its own: what is shown is what
// agents do, in seconds. That a real cluster behaves like this is for prog/lab/kube.
package incluster
