package enforce

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/peer"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/manifest"
	"weft/router/policy"
	"weft/router/problem"
)

// Kinds of documents.
const (
	KindPolicy    = "networkpolicy"
	KindNamespace = "namespace"
)

// Documents are policies that operators wrote into the mesh. They are the Source of a host outside
// Kubernetes. Documents are safe for concurrent use.
type Documents struct {
	live.Value[struct{}] // its version counts the changes of the documents

	store *mesh.Documents
	name  func(peer.ID) string

	mu     sync.Mutex
	read   uint64            // the version of the documents that are in parsed
	parsed map[string]Parsed // the parsed documents by their keys; nil: no document was read yet
}

// Parsed is a document that was read.
type Parsed struct {
	digest document.Digest
	manifest.Document
	Err error
}

// NewDocuments makes a Source of a store's documents. name returns a peer's name for output.
func NewDocuments(store *mesh.Documents, name func(peer.ID) string) *Documents {
	return &Documents{store: store, name: name}
}

// Unknown reports why the policies are not known yet.
func (d *Documents) Unknown() error {
	if !d.store.Synced() {
		return errors.New("waiting for the policies of the other peers (see `weft status peers`)")
	}
	return nil
}

// Empty returns nil: policies made of the known documents may replace the rules of an earlier agent.
func (d *Documents) Empty() error { return nil }

// Title names the origin of policies for output.
func (d *Documents) Title() string { return "documents of the network (weft policy apply)" }

// Hosts returns none: outside Kubernetes, policies name no hosts.
func (d *Documents) Hosts(*view.View) []policy.Host { return nil }

// Generation names a state of all policies and namespaces.
func (d *Documents) Generation() string {
	sum := sha256.Sum256([]byte(d.store.Generation(KindPolicy) + d.store.Generation(KindNamespace)))
	return hex.EncodeToString(sum[:8])
}

// Read reads the documents that changed.
func (d *Documents) Read(before string) (Rules, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	version := d.Version() // read before the documents: a document that comes meanwhile makes a newer version
	if d.parsed != nil && version == d.read {
		return Rules{}, false
	}
	d.read = version
	now := d.Generation()
	if d.parsed != nil && now == before {
		return Rules{}, false
	}
	next := map[string]Parsed{}
	rules := Rules{Generation: now, Namespaces: map[string]map[string]string{}}
	for _, doc := range slices.Concat(d.store.List(KindPolicy), d.store.List(KindNamespace)) {
		one := d.parsed[doc.Key()]
		if one.digest != doc.Digest {
			one = Parse(doc)
		}
		next[doc.Key()] = one
		switch {
		case one.Err != nil:
			rules.Problems = append(rules.Problems, problem.Problem{
				Reason: problem.Policy, What: fmt.Sprintf("%s %s, written by %s, is not understood here and not enforced", doc.Kind, doc.Name, d.name(doc.WriterID())),
				Effect: one.Err.Error(), Fix: "update Weft on this host, or apply the document again",
			})
		case doc.Kind == KindPolicy:
			rules.Policies = append(rules.Policies, one.Policy)
		default:
			rules.Namespaces[one.Namespace] = one.Labels
		}
	}
	d.parsed = next
	return rules, true
}

// Of returns the parsed content of a document, as of the last Read.
func (d *Documents) Of(doc *document.Document) Parsed {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.parsed[doc.Key()]
}

// Parse reads what any member of the mesh may have written.
func Parse(d *document.Document) Parsed {
	out := Parsed{digest: d.Digest}
	read, err := manifest.ParseStored(d.Body)
	switch {
	case err != nil:
		out.Err = err
	case read.Name() != d.Name || strings.ToLower(read.Kind) != d.Kind:
		out.Err = fmt.Errorf("it is not the %s %s", d.Kind, d.Name)
	default:
		out.Document = read
	}
	return out
}
