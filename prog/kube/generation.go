package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	networking "k8s.io/api/networking/v1"
)

// generation hashes the content of policies and namespaces. It does not use resourceVersions, so that
// two nodes with the same content have the same generation.
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
		panic(err) // values that were decoded from JSON can be encoded
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}
