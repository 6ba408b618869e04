package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	networking "k8s.io/api/networking/v1"
)

// generation follows from what policies and namespaces say, not from versions that one API
// server gives: two nodes that know the same have the same.
func generation(policies []networking.NetworkPolicy, namespaces map[string]map[string]string) string {
	type named struct {
		Namespace, Name string
		Audit           map[string]string
		Spec            any
	}
	var list []named
	for _, p := range policies {
		list = append(list, named{p.Namespace, p.Name, p.Annotations, p.Spec})
	}
	data, err := json.Marshal([]any{list, namespaces})
	if err != nil {
		panic(err) // they came as JSON
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}
