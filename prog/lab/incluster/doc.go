// Package incluster runs agents as Nodes of a Kubernetes cluster on the hosts of a lab. A fake API
// server (prog/kube/kubetest) runs on its own host, so the tests take seconds. Package prog/lab/kube
// tests that a real cluster behaves the same. Each test owns its lab.
package incluster
