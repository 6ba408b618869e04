package policyview

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/peer"
	"weft/prog/agent/enforce"
	"weft/prog/api"
	"weft/router/policy"
)

// Origin is the origin of policies, for output.
type Origin interface {
	Title() string
	// Generation names a state of all policies and namespaces.
	Generation() string
	// Refuse reports why operators cannot change policies here, and what to do instead.
	Refuse(instead string) error
	// List returns all documents; known are the policies that the compiler has.
	List(known []policy.Policy) []Listed
}

// Listed is a document, and the policy that was read from it, if it is one.
type Listed struct {
	api.Policy
	Read *policy.Policy
}

// documents are policies that operators wrote into the mesh.
type documents struct {
	*enforce.Documents
	store *mesh.Documents
	name  func(peer.ID) string
}

// FromDocuments makes the origin of a host outside Kubernetes.
func FromDocuments(d *enforce.Documents, store *mesh.Documents, name func(peer.ID) string) Origin {
	return documents{d, store, name}
}

func (documents) Refuse(string) error { return nil }

func (d documents) List([]policy.Policy) (out []Listed) {
	for _, doc := range slices.Concat(d.store.List(enforce.KindPolicy), d.store.List(enforce.KindNamespace)) {
		one := Listed{Policy: api.Policy{
			DocumentRef: documentRef(doc), Manifest: string(doc.Body), Writer: d.name(doc.WriterID()), Written: time.Unix(doc.Written, 0).UTC(),
		}}
		if read := d.Of(doc); doc.Kind == enforce.KindPolicy && read.Err == nil {
			one.Read = &read.Policy
		}
		out = append(out, one)
	}
	return out
}

// documentRef returns a document's reference in output.
func documentRef(d *document.Document) api.DocumentRef {
	if d.Kind == enforce.KindNamespace {
		return api.DocumentRef{Kind: api.KindNamespace, Name: d.Name}
	}
	namespace, name, _ := strings.Cut(d.Name, "/")
	return api.DocumentRef{Kind: api.KindPolicy, Namespace: namespace, Name: name}
}

// kubernetes are policies of an API server.
type kubernetes struct {
	*enforce.Kubernetes
	server string
}

// FromKubernetes makes the origin of a Node.
func FromKubernetes(k *enforce.Kubernetes, server string) Origin { return kubernetes{k, server} }

func (k kubernetes) Refuse(instead string) error {
	return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf(
		"the policies of this network come from the Kubernetes API server (%s): use `kubectl %s`", k.server, instead)}
}

func (kubernetes) List(known []policy.Policy) (out []Listed) {
	for _, read := range known {
		out = append(out, Listed{Read: &read, Policy: api.Policy{
			DocumentRef: api.DocumentRef{Kind: api.KindPolicy, Namespace: read.Namespace, Name: read.Name},
			Manifest:    fmt.Sprintf("# kubectl --namespace %s get networkpolicy %s --output yaml\n", read.Namespace, read.Name),
		}})
	}
	return out
}
